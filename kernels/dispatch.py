"""Which backend runs an op: an argument decides, never an import.

Every op takes `backend=None | "torch" | "triton" | "cpp"`, `vq_lookup` also "cublas". `None` lets the op choose by the
table below; a name is an order, and an order that cannot be carried out raises with the reason. Inside
`with use_backend(...)` its name takes the place of `None`; so does `AIME_KERNELS_BACKEND` (read once, when
`aime.kernels` is imported) everywhere, for debugging.
"""

import difflib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT32_AND_HALVES = (torch.float32, torch.bfloat16, torch.float16)

ENVIRONMENT_VARIABLE = "AIME_KERNELS_BACKEND"
BACKEND_FROM_ENVIRONMENT: str | None = os.environ.get(ENVIRONMENT_VARIABLE) or None

# Looked up once, so that torch.compile sees constants.
TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
EXTENSION_BUILT = importlib.util.find_spec("aime.kernels._cpu") is not None


class Preference(NamedTuple):
    """A backend, and from how many channels on `backend=None` takes it."""

    backend: str
    least_width: int = 0


CPP, TRITON = Preference("cpp"), Preference("triton")

# What `backend=None` runs, by op and device: the first entry whose width is reached and in whose way nothing is, else
# "torch", as for every device not listed.
#
# "cpu" is measured (bench/results/kernels-cpu.json): the C++ kernels won at every size tried, the smallest of AIME's
# presets included, but for slot_attention: forward and backward took 1.07 times PyTorch's kernels at 32 channels on two
# threads (.92 on one), where the slot side costs as much as the pass over the inputs, and .58 to .67 times at 64.
#
# frame_patches and frame_error spare passes over memory, of which a CPU has little bandwidth; on a GPU, where the
# world model whitens once for trunk and likelihood, PyTorch's operations compute them.
#
# "cuda" is measured on one H100 (docs/kernels/h100.md) for all but mixture_log_prob, whose row is predicted
# (PREDICTED); on the device Triton takes a half to a sixth of the time of PyTorch's operations for slot_attention, a
# sixth to a tenth for mixture_logistics_nll. What launches, bytes and operations said beforehand:
# - PyTorch's own kernels are written for a CPU's caches, and are launches of some 5 us each: 30 for a vq_lookup, 25 for
#   the sticks, 3 and more a sample for the densities, 60 for mixture_logistics_nll, against one to three of Triton's.
#   Intermediates beyond the second-level cache cost bytes besides; so small and large sizes fall to Triton alike.
# - vq_lookup, seconds a (row, code) pair, float32 as three TF32 products at 495 TFLOP/s of which cuBLAS reaches 80 %
#   and assignment kernels 40 %, and 8 bytes of a score written and read again at 3.35 TB/s: cuBLAS 1.5e-14 D + 2.4e-12,
#   Triton 3.0e-14 D; equal at D = 158. (PyTorch's own product, 3.5e-14 D + 2.4e-12 on the 67 TFLOP/s of float32, loses
#   to both.)
# - slot_attention: PyTorch's operations are 90 launches an iteration and read the inputs 7 times where Triton does
#   twice.
# - vq_statistics stays on two index_add_ until a GPU says otherwise: it is bound by the same atomic additions.
PREFERRED: dict[str, dict[str, tuple[Preference, ...]]] = {
    "vq_lookup": {"cpu": (CPP,), "cuda": (Preference("cublas", least_width=160), TRITON)},
    "stick_log_weights": {"cpu": (CPP,), "cuda": (TRITON,)},
    "mixture_log_prob": {"cpu": (CPP,), "cuda": (TRITON,)},
    "mixture_kl": {"cpu": (CPP,), "cuda": (TRITON,)},
    "mixture_logistics_nll": {"cpu": (CPP,), "cuda": (TRITON,)},
    "slot_attention": {"cpu": (Preference("cpp", least_width=64),), "cuda": (TRITON,)},
    "frame_patches": {"cpu": (CPP,)},
    "frame_error": {"cpu": (CPP,)},
}
PREDICTED = {"cuda": ("mixture_log_prob",)}
"""Ops whose row of PREFERRED no machine has confirmed at any size, by device."""

# Why a backend cannot run, None if it can, or a function that says so: only the backend that is meant is asked.
Obstacle = str | None | Callable[[], str | None]

# Filled by `use_backend`: op, or "" for all of them, to backend. A plain dictionary, which torch.compile can guard.
ORDERED: dict[str, str] = {}


@contextmanager
def use_backend(backend: str, *ops: str) -> Iterator[None]:
    """Within this block, calls that leave `backend` open take this one: a model's ops without touching the model.

    An op's backward pass runs on the backend of its forward pass, wherever it is called. Blocks nest, the inner one
    decides. Not for several threads with different wishes: the choice belongs to the process.

    >>> with use_backend("torch"):
    ...     vq_lookup(torch.zeros(3, 8), torch.ones(2, 8)).indices
    tensor([0, 0, 0], dtype=torch.int32)

    Args:
        backend: "torch", "triton" or "cpp"; an op that cannot carry it out raises with the reason, as for an argument.
        ops: names of the ops that this is for, all if none is given.
    """
    before = dict(ORDERED)
    if not ops:
        ORDERED.clear()
    ORDERED.update(dict.fromkeys(ops or ("",), backend))
    try:
        yield
    finally:
        ORDERED.clear()
        ORDERED.update(before)


def _reason(obstacles: Mapping[str, Obstacle], name: str) -> str | None:
    obstacle = obstacles.get(name, "not offered")
    return obstacle() if callable(obstacle) else obstacle


def preferred_backend(op: str, device_type: str, obstacles: Mapping[str, Obstacle], width: int = 0) -> str:
    """The table's backend for this op, device and width if nothing is in its way, else "torch"."""
    for name, least_width in PREFERRED.get(op, {}).get(device_type, ()):
        if width >= least_width and _reason(obstacles, name) is None:
            return name
    return "torch"


def choose_backend(
    op: str,
    requested: str | None,
    device_type: str,
    obstacles: Mapping[str, Obstacle],
    width: int = 0,
) -> str:
    """Name of the backend to run.

    Args:
        op: name of the op, for the table and the messages.
        requested: the caller's `backend` argument.
        device_type: of the tensors, "cpu" or "cuda" (also ROCm).
        obstacles: for every backend the op offers, why it cannot run on these inputs, None if it can, or a function
            that says so.
        width: channels, for ops whose preference depends on them.

    Raises:
        ValueError: `requested` is not a backend of this op.
        RuntimeError: `requested` exists but cannot run here.
    """
    ordered = ORDERED.get(op, ORDERED.get(""))
    name = requested or ordered or BACKEND_FROM_ENVIRONMENT
    if name is None:
        return preferred_backend(op, device_type, obstacles, width)
    if name not in obstacles:
        hint = ""
        if not torch.compiler.is_compiling():  # which cannot trace difflib
            near = difflib.get_close_matches(name, obstacles, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
        source = "" if requested else " (from use_backend)" if ordered else f" (from {ENVIRONMENT_VARIABLE})"
        raise ValueError(f"{op}: unknown backend {name!r}{source}, expected one of {sorted(obstacles)}{hint}")
    reason = _reason(obstacles, name)
    if reason is not None:
        raise RuntimeError(f"{op}: backend {name!r} cannot run: {reason}")
    return name


def _names(dtypes: tuple[torch.dtype, ...]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def triton_obstacle(*tensors: Tensor, allowed: tuple[torch.dtype, ...] = FLOAT32_AND_HALVES) -> str | None:
    """Why Triton cannot take these tensors, or None."""
    if not TRITON_INSTALLED:
        return "triton is not installed (pip install triton, Linux only)"
    device = tensors[0].device
    if device.type != "cuda" and not (device.type == "cpu" and TRITON_INTERPRETED):
        return f"it needs CUDA or ROCm tensors, found {device} (CPU only under the interpreter, TRITON_INTERPRET=1)"
    for tensor in tensors:
        if tensor.dtype not in allowed:
            return f"it takes {_names(allowed)}, found {tensor.dtype}"
    return None


def extension_obstacle(*tensors: Tensor, allowed: tuple[torch.dtype, ...] = FLOAT32_AND_HALVES) -> str | None:
    """Why the C++ extension cannot take these tensors, or None."""
    if not EXTENSION_BUILT:
        return "the C++ extension aime.kernels._cpu is not built; install aime where a C++17 compiler is"
    for tensor in tensors:
        if not tensor.is_cpu:
            return f"it needs CPU tensors, found {tensor.device}"
        if tensor.dtype not in allowed:
            return f"it takes {_names(allowed)}, found {tensor.dtype}"
    return None
