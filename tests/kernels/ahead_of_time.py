"""Compile every Triton kernel for GPUs that are not present, and read what the compiler made of it.

The launchers of the ops run on CPU tensors against a driver that names a target but never launches: so exactly the
kernels, configurations and argument specialisations of a real call are compiled. Must run in a process without
TRITON_INTERPRET. Prints a JSON list, or a table with --markdown. Slot attention has some forty kernels an architecture:
one demanding call of it stands for the others unless there is --all, which takes minutes.
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
    for (rows, codes, width), (dtype, precision) in ((many, exact), (many, fast), (many, half), (few, exact)):
        x, codebook = torch.empty(rows, 1, width, dtype=dtype), torch.empty(1, codes, width, dtype=dtype)
        label = f"lookup {rows}x{codes}x{width} {str(dtype)[6:]} {precision}"
        yield label, lambda x=x, codebook=codebook, precision=precision: op.lookup(x, codebook, precision)
    x, codebook = torch.empty(4096, 2, 64), torch.empty(2, 512, 64)
    indices = torch.zeros(4096, 2, dtype=torch.int32)
    gradients = torch.empty(4096, 2, 64), torch.empty(4096, 2)
    yield "backward", lambda: op.lookup_backward(x, codebook, indices, *gradients, True, True)
    for deterministic in (False, True):
        yield "statistics", lambda det=deterministic: op.statistics(x, indices, 512, det)


def mixture_cases() -> Iterator[Case]:
    from aime.kernels.mixture_kl import triton as op

    log_a, weights = torch.empty(512, 14), torch.empty(512, 15)
    yield "sticks", lambda: op.stick_log_weights(log_a, log_a, log_a)
    yield "sticks backward", lambda: op.stick_log_weights_backward(log_a, log_a, log_a, weights, log_a, log_a)
    for samples, rows, components, width in ((4, 512, 15, 36), (8, 4096, 32, 64), (8, 512, 64, 512)):
        shared = width == 64  # the density on its own with shared components, the KL with components a row
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


def slot_weights(channels: int, width: int, hidden: int, bias: bool) -> list[Any]:
    shapes = [(channels,)] * 2 + [(width,)] * 2 + [(width, width), (width, channels), (width, channels)]
    shapes += [(3 * width, width)] * 2 + [(3 * width,)] * 2 + [(width,)] * 2
    shapes += [(hidden, width), (hidden,), (width, hidden), (width,)]
    return [torch.empty(*shape) for shape in shapes] + [torch.empty(width) if bias else None for _ in range(3)]


def slot_cases() -> Iterator[Case]:
    from aime.kernels.slot_attention import fused

    every = "--all" in sys.argv
    shapes = [(8, 256, 8, 64, 64), (32, 1024, 8, 128, 128), (64, 4096, 16, 256, 256), (4, 256, 7, 512, 512)]
    demanding = [((4, 300, 4, 128, 64), 4)]  # heads, a mask, biases, no alignment: the most registers
    others = [*((shape, 1) for shape in shapes), ((4, 256, 32, 64, 64), 1)]
    for shape, heads in [*demanding, *(others if every else [])]:
        batch, count, slots, channels, width = shape
        inputs, initial = torch.empty(batch, count, channels), torch.empty(batch, slots, width)
        weights = slot_weights(channels, width, 2 * width, bias=heads > 1)
        attention = torch.empty(batch, slots, count)
        mask = torch.zeros(batch, count, dtype=torch.bool) if slots == 7 or heads > 1 else None
        label = f"{batch}x{count}x{slots}x{channels}x{width}{'' if mask is None else ' masked'} {heads} heads"
        norms = [torch.empty(batch, count)] * 2
        rows = torch.empty(3, batch * slots, 14 * width)
        wide, scalars = torch.empty(3, batch * slots * heads, 3 * channels), torch.empty(3, batch * slots * heads, 2)
        saved = fused.Saved(*norms, rows, wide, scalars)
        call = (inputs, initial, weights, mask)
        for gelu in (True, False) if every else (True,):
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

    image, plane = torch.empty(4, 3, 64, 64), torch.empty(4, 64, 64)
    arguments = (image, torch.empty(4, 10, 64, 64), *(torch.empty(4, 10, 3, 64, 64) for _ in range(3)), plane)
    saved = (image, plane, plane)
    yield "nll", lambda: op.mixture_logistics_nll(*arguments)
    yield "backward", lambda: op.mixture_logistics_nll_backward(plane[:, 0, 0], image, *saved, *arguments)


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "vq_lookup": vq_cases,
    "mixture_kl": mixture_cases,
    "slot_attention": slot_cases,
    "mixture_logistics": logistics_cases,
}


def compile_all(ops: list[str], targets: list[str], only: str = "") -> Iterator[Compiled]:
    for op in ops:
        for target in targets:
            for case, call in CASES[op]():
                if only not in case:
                    continue
                with record_launches(target) as launches:
                    call()
                for name, kernel in launches:
                    yield read(f"{op}: {case}", name, target, kernel)


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
