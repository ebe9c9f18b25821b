"""Compile every Triton kernel for GPUs that are not present, and read what the compiler made of it.

The launchers of the ops run on CPU tensors against a driver that names a target but never launches: so exactly the
kernels, configurations and argument specialisations of a real call are compiled. Must run in a process without
TRITON_INTERPRET. Prints a JSON list, or a table with --markdown. Each op has a few demanding calls that stand for the
others; --all adds a call for every tile width that a launcher can choose, and takes a quarter of an hour.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
EVERY = "--all" in sys.argv
WIDTHS = (4, 8, 16, 32, 64, 128, 256, 512)  # every BLOCK_D
Case = tuple[str, Callable[[], Any]]
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """What one kernel costs on one target."""

    case: str
    kernel: str
    target: str
    registers: int
    spilled: int  # bytes of local memory (NVIDIA), registers (AMD)
    shared: int  # bytes
    matrix_unit: str  # instruction family, "fma" without one


class DriverWithoutDevice:
    """Enough of a Triton driver to compile; one device number a target, so that kernels are cached apart."""

    def __init__(self, number: int, target: GPUTarget) -> None:
        self._number, self._target = number, target

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, _: int) -> int:
        return 0


@contextmanager
def record_launches(target: str) -> Iterator[list[tuple[str, Any]]]:
    """Launches inside compile for `target` and are collected as (kernel name, compiled kernel)."""
    found: dict[int, tuple[str, Any]] = {}
    compile_and_launch = JITFunction.run

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kernel = compile_and_launch(self, *arguments, grid=grid, warmup=True, **options)
        found[id(kernel)] = (self.fn.__name__, kernel)
        return kernel

    driver = DriverWithoutDevice(list(TARGETS).index(target), TARGETS[target])
    result: list[tuple[str, Any]] = []
    with mock.patch.object(JITFunction, "run", compile_only):
        triton.runtime.driver.set_active(driver)
        yield result
    result.extend(found.values())


def nvidia_resources(cubin: bytes) -> tuple[int, int]:
    """Registers a thread and bytes of local memory (stack, spills) of a cubin."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(NVIDIA_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (max(map(int, re.findall(rf"{name}:(\d+)", text))) for name in ("REG", "STACK", "LOCAL"))
    return registers, stack + local


def read(case: str, name: str, target: str, kernel: Any) -> Compiled:
    if TARGETS[target].backend == "cuda":
        registers, spilled = nvidia_resources(kernel.asm["cubin"])
        ptx = kernel.asm["ptx"]
        units = ("tcgen05.mma", "wgmma.mma_async", "mma.sync")
        unit = next((unit for unit in units if unit in ptx), "fma")
    else:
        text = kernel.asm["amdgcn"]
        registers, spilled = (
            int(re.findall(rf"\.{key}:\s+(\d+)", text)[0]) for key in ("vgpr_count", "vgpr_spill_count")
        )
        unit = "mfma" if "v_mfma" in text else "fma"
    return Compiled(case, name, target, registers, spilled, kernel.metadata.shared, unit)


def vq_cases() -> Iterator[Case]:
    from aime.kernels.vq_lookup import triton as op

    many, few = (8192, 512, 64), (1024, 1024, 32)
    exact, fast, half = (torch.float32, "exact"), (torch.float32, "fast"), (torch.bfloat16, "exact")
    calls = [(many, exact), (many, fast), (many, half), (few, exact)]
    calls += [((65536, 512, 128), exact), ((65536, 512, 256), exact)]
    if EVERY:  # rows choose BLOCK_N and warps, the width BLOCK_D up to 128
        kinds = (exact, fast, half, (torch.float16, "exact"))
        widths = (16, 32, 64, 128, 256)
        calls += [((rows, 512, width), kind) for rows in (65536, 1024) for width in widths for kind in kinds]
        calls += [((1024, 512, width), exact) for width in (5, 4, 8, 36, 512)]
    for (rows, codes, width), (dtype, precision) in dict.fromkeys(calls):
        x, codebook = torch.empty(rows, 1, width, dtype=dtype), torch.empty(1, codes, width, dtype=dtype)
        label = f"lookup {rows}x{codes}x{width} {str(dtype)[6:]} {precision}"
        yield label, lambda x=x, codebook=codebook, precision=precision: op.lookup(x, codebook, precision)
    for width in WIDTHS if EVERY else (64,):
        x, codebook = torch.empty(4096, 2, width), torch.empty(2, 512, width)
        indices = torch.zeros(4096, 2, dtype=torch.int32)
        both = torch.empty(4096, 2, width), torch.empty(4096, 2)
        upstream = {"": both, " of quantized": (both[0], None), " of distance": (None, both[1])}
        for name, gradients in upstream.items() if EVERY else [("", both)]:
            call = (x, codebook, indices, *gradients, gradients[1] is not None, True)
            yield f"backward {width}{name}", lambda call=call: op.lookup_backward(*call)
        for deterministic in (False, True):
            call = (x, indices, 512, deterministic)
            yield f"statistics {width}", lambda call=call: op.statistics(*call)


def mixture_cases() -> Iterator[Case]:
    from aime.kernels.mixture_kl import triton as op

    for count in (14, 1, 127, 1023) if EVERY else (14,):
        log_a, weights = torch.empty(512, count), torch.empty(512, count + 1)
        yield f"sticks {count}", lambda a=log_a: op.stick_log_weights(a, a, a)
        yield f"sticks {count} backward", lambda a=log_a, w=weights: op.stick_log_weights_backward(a, a, a, w, a, a)
    # samples, rows, components, width, components shared by the rows: then the density on its own, else the KL
    sizes = [(4, 512, 15, 36, False), (8, 4096, 32, 64, True), (8, 512, 64, 512, False)]
    if EVERY:  # the width chooses BLOCK_D, components up to 2048 / BLOCK_D the rest of the tile
        sizes += [(8, 512, k, width, shared) for width in WIDTHS for k in (1, 1024) for shared in (False, True)]
        sizes += [(1024, 64, 32, 64, False), (1, 64, 32, 64, True)]
    for samples, rows, components, width, shared in sizes:
        z, log_pi = torch.empty(samples, rows, width), torch.empty(rows, components)
        means = torch.empty((components, width) if shared else (rows, components, width))
        result, row = torch.empty(samples, rows), torch.empty(rows, width)
        density, q = (z, log_pi, means, means), None if shared else (row, row)
        gradient = result if shared else torch.empty(rows)
        label = f"{'log_prob' if shared else 'kl'} {samples}x{rows}x{components}x{width}"
        yield label, lambda a=density, q=q: op.mixture_log_prob(*a, q)
        yield (
            f"{label} backward",
            lambda a=density, q=q, g=gradient, r=result: op.mixture_log_prob_backward(g, r, *a, q),
        )
        if shared:
            yield f"{label} responsibilities", lambda a=density: op.mixture_log_joint(*a)


def slot_weights(channels: int, width: int, hidden: int, bias: bool) -> list[Any]:
    shapes = [(channels,)] * 2 + [(width,)] * 2 + [(width, width), (width, channels), (width, channels)]
    shapes += [(3 * width, width)] * 2 + [(3 * width,)] * 2 + [(width,)] * 2
    shapes += [(hidden, width), (hidden,), (width, hidden), (width,)]
    return [torch.empty(*shape) for shape in shapes] + [torch.empty(width) if bias else None for _ in range(3)]


def slot_cases() -> Iterator[Case]:
    from aime.kernels.slot_attention import fused

    shapes = [(8, 256, 8, 64, 64), (32, 1024, 8, 128, 128), (64, 4096, 16, 256, 256), (4, 256, 7, 512, 512)]
    # heads, a mask, biases, no alignment: the most registers; one head at 128 channels, columns split over programs;
    # the laptop preset's, a program for an entry
    demanding = [((4, 300, 4, 128, 64), 4), ((32, 1024, 8, 128, 128), 1), ((256, 64, 4, 32, 32), 1)]
    others = [*((shape, 1) for shape in shapes if shape[0] != 32), ((4, 256, 32, 64, 64), 1), ((4, 256, 8, 16, 32), 1)]
    others += [
        ((256, 64, 7, 32, 32), 1),
        ((8, 256, 8, 128, 96), 1),
    ]  # the last: the widest tiles of a program for 16 slots
    others += [((4, 256, 16 // heads, 64, 64), heads) for heads in (2, 8, 16)]
    for shape, heads in [*demanding, *(others if EVERY else [])]:
        batch, count, slots, channels, width = shape
        inputs, initial = torch.empty(batch, count, channels), torch.empty(batch, slots, width)
        weights = slot_weights(channels, width, 2 * width, bias=heads > 1 or slots == 7)
        attention = torch.empty(batch, slots, count)
        mask = torch.zeros(batch, count, dtype=torch.bool) if slots == 7 or heads > 1 else None
        label = f"{batch}x{count}x{slots}x{channels}x{width}{'' if mask is None else ' masked'} {heads} heads"
        norms = [torch.empty(batch, count)] * 2
        rows = torch.empty(3, batch * slots, 14 * width)
        wide, scalars = torch.empty(3, batch * slots * heads, 3 * channels), torch.empty(3, batch * slots * heads, 2)
        saved = fused.Saved(*norms, rows, wide, scalars)
        call = (inputs, initial, weights, mask)
        for gelu in (True, False) if EVERY and heads in (1, 4) else (True,):
            yield (
                f"forward {label} gelu {gelu}",
                lambda c=call, h=heads, g=gelu: fused.forward(*c, 3, 1e-8, g, h),
            )
            yield (
                f"backward {label} gelu {gelu}",
                lambda c=call, h=heads, g=gelu, a=attention, s=saved: fused.backward(c[1], a, s, *c, 1e-8, g, h, False),
            )


def logistics_cases() -> Iterator[Case]:
    from aime.kernels.mixture_logistics import triton as op

    plane = torch.empty(4, 64, 64)
    for dtype in (torch.float32, torch.bfloat16) if EVERY else (torch.float32,):
        image, gradient = torch.empty(4, 3, 64, 64, dtype=dtype), torch.empty(4, 3, 64, 64)
        components = [torch.empty(4, 10, 3, 64, 64, dtype=dtype) for _ in range(3)]
        arguments = (image, torch.empty(4, 10, 64, 64, dtype=dtype), *components)
        saved = (gradient, plane, plane)
        for weights in (plane, None) if EVERY else (plane,):
            label = f"{str(dtype)[6:]}{' weighted' if weights is not None else ''}"
            call = (*arguments, weights)
            yield f"nll {label}", lambda c=call: op.mixture_logistics_nll(*c)
            yield (
                f"backward {label}",
                lambda c=call, g=gradient, s=saved: op.mixture_logistics_nll_backward(plane[:, 0, 0], g, *s, *c),
            )


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "vq_lookup": vq_cases,
    "mixture_kl": mixture_cases,
    "slot_attention": slot_cases,
    "mixture_logistics": logistics_cases,
}


def compile_kernels(ops: list[str], targets: list[str], only: str = "") -> Iterator[tuple[str, str, str, Any]]:
    """Case, kernel's name, target and compiled kernel of every launch in cases whose name has `only` in it."""
    for op in ops:
        for target in targets:
            for case, call in CASES[op]():
                if only not in case:
                    continue
                with record_launches(target) as launches:
                    call()
                for name, kernel in launches:
                    yield f"{op}: {case}", name, target, kernel


def compile_all(ops: list[str], targets: list[str], only: str = "") -> Iterator[Compiled]:
    for launch in compile_kernels(ops, targets, only):
        yield read(*launch)


def main(arguments: list[str]) -> None:
    names = [argument for argument in arguments if not argument.startswith("--")]
    ops = [name for name in names if name in CASES] or list(CASES)
    targets = [name for name in names if name in TARGETS] or list(TARGETS)
    results = list(dict.fromkeys(compile_all(ops, targets)))
    if "--markdown" not in arguments:
        print(json.dumps([asdict(result) for result in results]))
        return
    print(
        "| case | kernel | target | registers | spilled | shared, bytes | matrix unit |\n|---|---|---|---|---|---|---|"
    )
    for result in results:
        print("| " + " | ".join(str(value) for value in asdict(result).values()) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
