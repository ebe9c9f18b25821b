"""One op at one size: the implementations to compare, and the work that none of them can avoid."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from aime.kernels import dispatch

Run = Callable[[], object]
Forward = Callable[..., Tensor]

MOST_BYTES = 4e9
"""An implementation that would hold more than this at once is left out, and the table says so."""

TRANSCENDENTAL = 16.0
"""Operations that an exponential, logarithm or tanh counts for: its polynomial and range reduction."""


limits = {"rows": float("inf")}
"""Cases of more rows (frames, inputs, pixels) are left out."""


def within(rows: float) -> bool:
    """Whether a case of so many rows is measured."""
    return rows <= limits["rows"]


@dataclass(frozen=True)
class Kind:
    """Dtype of a case's tensors and precision of its products.

    Attributes:
        suffix: of the size in tables, "" for float32.
        dtype: of the inputs.
        precision: of vq_lookup, "exact" or "fast".
        products: how tensor cores would multiply: "tf32x3" (three products of TF32 for one of float32), "tf32", "half".
    """

    suffix: str
    dtype: torch.dtype
    precision: str
    products: str


FLOAT32 = Kind("", torch.float32, "exact", "tf32x3")
HALVES = (Kind(", bfloat16", torch.bfloat16, "exact", "half"), Kind(", float16", torch.float16, "exact", "half"))
FAST = Kind(", fast", torch.float32, "fast", "tf32")


def kinds(device: str, *further: Kind) -> tuple[Kind, ...]:
    """float32 everywhere, the others on a GPU."""
    return (FLOAT32, *further) if device == "cuda" else (FLOAT32,)


@dataclass(frozen=True)
class Case:
    """`runs` maps an implementation's name to a call that does the whole work once."""

    op: str
    size: str
    runs: Mapping[str, Run]
    flops: float  # additions and multiplications of the formula, counted for the fused form
    moved: float  # bytes of inputs and outputs, once for each pass that must read or write them
    held: float  # bytes of inputs and outputs that stand in memory together
    inputs: float  # bytes of the inputs alone
    left_out: Mapping[str, str] = field(default_factory=dict)  # implementation -> why it is not among the runs
    products: float = 0.0  # of the flops, those that tensor cores can do
    kind: str = "float32"  # of those products there: "float32" where nothing may be rounded, or a name of PRODUCTS


class Contestants:
    """Collects implementations; one that would need too much memory is noted instead."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.runs: dict[str, Run] = {}
        self.left_out: dict[str, str] = {}

    def add(self, name: str, run: Run, needs: float = 0.0) -> None:
        """A call that holds `needs` bytes at its peak."""
        if needs > MOST_BYTES:
            self.left_out[name] = f"would hold {needs / 1e9:.0f} GB"
        else:
            self.runs[name] = run


def ours(
    device: str, op: Callable[..., object], backends: tuple[str, ...]
) -> Iterator[tuple[str, Callable[..., object]]]:
    """The op by each backend that can run on the device, under the names of the tables."""
    possible = {
        "torch": True,
        "cpp": device == "cpu" and dispatch.EXTENSION_BUILT,
        "triton": device == "cuda" and dispatch.TRITON_INSTALLED,
        "cublas": device == "cuda" and torch.version.hip is None,
    }
    for backend in backends:
        if possible[backend]:
            yield f"aime {backend}", lambda *args, backend=backend, **options: op(*args, backend=backend, **options)


def nbytes(*tensors: Tensor) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def training(function: Forward, leaves: list[Tensor]) -> Run:
    """Forward and backward of a scalar function of leaves that require gradients."""

    def run() -> object:
        return torch.autograd.grad(function(*leaves), leaves)

    return run
