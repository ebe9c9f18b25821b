"""`aime bench`: run a benchmark of the source checkout. Each is imported only when it is the chosen one."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

#: The directory that holds bench/ in a checkout; in an installed package, the site directory, which has none.
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class EnvironmentBenchmark:
    """Environments against dm_control, Gymnasium, EnvPool and MuJoCo's own stepping; writes bench/results/env.json."""

    tasks: tyro.conf.Positional[tuple[str, ...]] = ()
    """Tasks as domain/task; the benchmark's own by default."""
    rounds: int = 3
    """Times that every contestant is measured; the median counts."""
    seconds: float = 0.8
    """Length of one measurement, at most."""
    minutes: float = 5.5
    """Length of the whole run, at most; tasks that do not fit are left out, and named."""
    num_envs: int = 32
    """Environments stepped at once."""
    threads: int = 0
    """Threads of each contestant; 0 takes one per core."""
    out: Path | None = None
    """Where the figures go; bench/results/env.json by default."""

    def run(self) -> int:
        """Measure, print and store."""
        flags = [f"--rounds={self.rounds}", f"--seconds={self.seconds}", f"--num-envs={self.num_envs}"]
        flags += [
            f"--minutes={self.minutes}",
            f"--threads={self.threads}",
            *([f"--out={self.out}"] if self.out else []),
        ]
        return int(load("bench.env").main([*flags, *(["--tasks", *self.tasks] if self.tasks else [])]))


@dataclass(frozen=True)
class KernelBenchmark:
    """Kernels against their plain, compiled and published twins; writes bench/results/kernels-DEVICE.json."""

    ops: tyro.conf.Positional[tuple[str, ...]] = ()
    """Kernels to measure; all by default."""
    device: Literal["cpu", "cuda"] | None = None
    """Where they run; a GPU where there is one by default."""
    rounds: int = 15
    """Times that every implementation is measured; the median counts."""
    compile: bool = True
    """Measure torch.compile as well."""

    def run(self) -> int:
        """Measure, print and store."""
        flags = [f"--rounds={self.rounds}", *([] if self.compile else ["--no-compile"])]
        flags += [f"--device={self.device}"] if self.device else []
        return int(load("bench.kernels.__main__").main([*self.ops, *flags]))


@dataclass(frozen=True)
class RaycastBenchmark:
    """The ray caster against MuJoCo's GL renderer: fidelity and speed; writes bench/results/raycast.json."""

    tasks: tyro.conf.Positional[tuple[str, ...]] = ()
    """Tasks as domain/task; the Control Suite's whole benchmark by default."""
    rounds: int = 3
    """Times that every contestant is measured; the median counts."""
    poses: int = 60
    """Pictures of each task that are compared."""
    only: Literal["fidelity", "speed", "samples"] | None = None
    """One part; all by default. What is not measured stays in the file as it was."""
    out: Path | None = None
    """Where the figures go."""

    def run(self) -> int:
        """Measure, print and store."""
        flags = [f"--rounds={self.rounds}", f"--poses={self.poses}", *([f"--only={self.only}"] if self.only else [])]
        flags += [f"--out={self.out}"] if self.out else []
        return int(load("bench.raycast").main([*flags, *(["--tasks", *self.tasks] if self.tasks else [])]))


@dataclass(frozen=True)
class StepBenchmark:
    """Training step: the time-parallel pass against the per-frame oracle; writes bench/results/step-cpu-DATE.json.

    With --profile: the share of each kernel in a step; writes bench/results/step-profile-cpu.json.
    """

    rounds: int = 5
    """Times that both are measured; the median ratio counts."""
    batch: int = 16
    """Sequences in a batch."""
    frames: int = 16
    """Frames in a sequence."""
    profile: bool = False
    """Time the kernels within whole steps of the laptop and tier1 presets, at their own sizes, instead."""
    out: Path | None = None
    """Where the figures go."""

    def run(self) -> int:
        """Measure, print and store."""
        if self.profile:
            chosen = [f"--rounds={self.rounds}", *([f"--out={self.out}"] if self.out else [])]
            return int(load("bench.step_profile").main(chosen))
        flags = [f"--rounds={self.rounds}", f"--batch={self.batch}", f"--frames={self.frames}"]
        return int(load("bench.step").main([*flags, *([f"--out={self.out}"] if self.out else [])]))


@dataclass(frozen=True)
class Bench:
    """Measure this machine. The benchmarks are part of the source checkout."""

    benchmark: tyro.conf.OmitSubcommandPrefixes[
        Annotated[EnvironmentBenchmark, tyro.conf.subcommand("env")]
        | Annotated[KernelBenchmark, tyro.conf.subcommand("kernels")]
        | Annotated[RaycastBenchmark, tyro.conf.subcommand("raycast")]
        | Annotated[StepBenchmark, tyro.conf.subcommand("step")]
    ]
    """Which one."""

    def run(self) -> int:
        """Run the chosen benchmark."""
        return self.benchmark.run()


def load(module: str) -> Any:
    """A module of the checkout's bench/ directory.

    Raises:
        FileNotFoundError: this is an installed package, which has no benchmarks; the message says how to get them.
    """
    if not (ROOT / "bench" / "env.py").exists():
        raise FileNotFoundError(
            f"expected the benchmarks in {ROOT / 'bench'}, found none: they come with the sources, not with the "
            "installed package. Get the sources, run `pip install -e .` in them, and try again"
        )
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(module)
