"""Episodes on disk: windows a second by layout, the training step with and without its loader, memory of a large file.

    python -m bench.data [--parts layouts memory batches stall convert] [--data FILE] [--device cpu] [--preset tier2]
        [--batch B] [--out FILE]

layouts: random windows of 20 frames of 84 x 84, read from the same episodes in many layouts, one after the other in
rounds; the least of the rounds, in CPU seconds of the process (pages are cached; waiting for a disk is not seen).
memory: a file of 1,000 episodes of 1,000 steps of 84 x 84, made of ten again and again (chunks are moved: the file is
as large as if they were different), is read by random windows in a process of its own, whose largest resident size is
told at each stage. batches: CPU seconds in which one thread makes a preset's batch. stall, where it is named (a step of
tier 2 wants a GPU): a preset's training step on the device, on one batch that stays there and with batches of the
loader, in turn; the loader reads from the file, or from frames held in memory. convert, where it is named: what each
format costs to convert (bench.data_convert).

The parts that ran replace their entries in bench/results/data.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from aime.data import EpisodeSource, HDF5Source, WindowSampler, open_source
from bench.data_convert import measure_convert

RESULTS = Path(__file__).parent / "results" / "data.json"
LENGTH = 20  # frames in a window, as tier 2 has
EPISODES, STEPS, SIZE = 10, 1000, 84  # of the part that the large file repeats
REPEATS = 100
PARTS = ("layouts", "memory", "batches", "stall", "convert")


def collect(file: Path) -> None:
    """Episodes of reacher easy, drawn by the ray caster."""
    from aime.data.collect import Collect

    Collect(
        "reacher", "easy", episodes=EPISODES, steps=STEPS, action_repeat=1, size=SIZE, masks=False, num_envs=EPISODES,
        out=file,
    ).run()  # fmt: skip


def random_windows(source: EpisodeSource, count: int, seed: int) -> list[tuple[int, int]]:
    """(episode, start) of random windows; the last step of an episode, which not every format has, is in none."""
    source = _First(source, len(source.lengths), short_by=1)
    sampler = WindowSampler(source, count, LENGTH, seed=seed)
    return [(int(episode), int(start)) for episode, start in sampler.indices(0)]


def measure_layouts(file: Path, *, rounds: int, budget: float, episodes: int = 4) -> list[dict[str, Any]]:
    """Windows a second and size of each layout, the default's speed being 1 in the ratio."""
    from aime.data.convert import convert
    from bench.data_layouts import OURS, write_layouts

    with tempfile.TemporaryDirectory() as place:
        directory, whole = Path(place), open_source(file)
        part = directory / "own.h5"
        convert(_First(whole, episodes), part)
        source = open_source(part)
        raw = int(source.lengths.sum()) * int(np.prod(source.spec.image_shape))
        layouts = write_layouts(source, part, directory)
        windows = random_windows(source, 4096, seed=0)
        best = dict.fromkeys(layouts, float("inf"))
        for _ in range(rounds):
            for name, (read, _) in layouts.items():
                best[name] = min(best[name], _seconds_a_window(read, windows, budget))
        names = sorted(best, key=best.__getitem__)
        ours = best[OURS]
        return [
            {"layout": name, "windows_per_second": round(1 / best[name], 1), "megabytes": layouts[name][1] / 1e6,
             "compression": round(raw / layouts[name][1], 2), "ratio": round(ours / best[name], 3)}
            for name in names
        ]  # fmt: skip


class _First:
    """The first episodes of a source, each without its last `short_by` steps."""

    def __init__(self, source: EpisodeSource, count: int, short_by: int = 0) -> None:
        self.source, self.spec, self.lengths = source, source.spec, source.lengths[:count] - short_by

    def window(self, episode: int, start: int, length: int) -> Any:
        return self.source.window(episode, start, length)


def _seconds_a_window(read: Any, windows: list[tuple[int, int]], budget: float) -> float:
    """CPU seconds of a window, over as many as the budget allows, at least two."""
    begin, count = time.process_time(), 0
    while count < 2 or (time.process_time() - begin < budget and count < len(windows)):
        episode, start = windows[count]
        assert read(episode, start, LENGTH).shape[0] == LENGTH
        count += 1
    return (time.process_time() - begin) / count


def measure_memory(file: Path) -> dict[str, Any]:
    """Resident memory of a process that reads a file of 1,000 episodes of 1,000 steps."""
    from aime.data.joining import join

    source = HDF5Source(file)
    source.close()
    with tempfile.TemporaryDirectory() as place:
        large = Path(place) / "large.h5"
        join([file] * REPEATS, large, source.spec, body_masks=False, split_seed=0)
        run = subprocess.run(
            [sys.executable, "-m", "bench.data", "--read", str(large)], check=True, capture_output=True, text=True
        )
        frames = int(source.lengths.sum()) * REPEATS * int(np.prod(source.spec.image_shape))
        return {
            "file_megabytes": large.stat().st_size / 1e6,
            "frames_megabytes": frames / 1e6,
            **json.loads(run.stdout),
        }


def read_large(file: Path) -> dict[str, Any]:
    """What `measure_memory` asks of the process: megabytes at each stage, windows read, seconds."""
    stages, batch = {"imported": _resident()}, 32
    begin = time.perf_counter()
    source = open_source(file)
    opened = time.perf_counter() - begin
    stages["opened"] = _resident()
    sampler = WindowSampler(source, batch, LENGTH, seed=0)
    episodes: set[int] = set()
    begin, count, first = time.perf_counter(), 0, 0.0
    while len(episodes) < len(source.lengths) or count < 100:
        windows = next(sampler)
        assert windows.episodes is not None
        episodes.update(windows.episodes.tolist())
        count += 1
        first = _resident() if count == 10 else first
    stages |= {"10 batches": first, "all batches": _resident()}
    return {
        "episodes": len(source.lengths), "steps": int(source.lengths.sum()), "batch": batch, "window": LENGTH,
        "batches": count, "episodes_read": len(episodes), "open_seconds": opened,
        "read_seconds": time.perf_counter() - begin, "largest_resident_megabytes": stages,
    }  # fmt: skip


def _resident() -> float:
    """The largest resident size so far, in megabytes (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def measure_stall(
    file: Path, *, preset: str, device: str, batch: int | None, rounds: int, steps: int
) -> dict[str, Any]:
    """Seconds of a step without a loader, with one that reads the file, and with one that holds the frames."""
    import torch

    from aime.data import PrefetchLoader, cached
    from aime.training import TrainConfig
    from aime.training.precision import autocast_dtype
    from aime.training.step_graph import WARM_UPS
    from aime.training.stepping import make_captured
    from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

    train = TrainConfig.preset(preset, **({} if batch is None else {"batch_size": batch}))
    source = open_source(file)
    torch.manual_seed(0)
    config = WorldModelConfig.preset(preset, action_size=source.spec.action_size)
    model = DPGMMVariationalRecurrentAutoencoder(config).to(device).train()
    model.configure_optimizer(train.learning_rate, train.weight_decay, train.balancer, **train.balancer_options)
    generator = torch.Generator(device).manual_seed(0)
    sampler = WindowSampler(source, train.batch_size, train.sequence_length, seed=0)
    fixed = sampler.batch(0).to(device)
    model.initialise_from_data(fixed.observations.flatten(0, 1), generator)
    autocast = autocast_dtype(train, torch.device(device))

    captured = make_captured(model, [model.optimizer], train, generator, None)

    def take(batch: Any) -> None:
        """One step as a run takes it: a replay of a CUDA graph where there can be one."""
        if captured is not None:
            captured.step(batch, train.beta_max)
            return
        model.training_step_sequence(
            batch.observations,
            batch.actions,
            batch.rewards,
            batch.continues,
            autocast=autocast,
            generator=generator,
        )

    for _ in range(WARM_UPS + 1 if captured is not None else 0):
        take(fixed)

    def run(batches: Any) -> float:
        """Seconds a step, after one that is not counted."""
        for step in range(steps + 1):
            if step == 1:
                _wait(device)
                begin = time.perf_counter()
            take(next(batches))
        _wait(device)
        return (time.perf_counter() - begin) / steps

    held = WindowSampler(cached(source, limit_bytes=1 << 40), train.batch_size, train.sequence_length, seed=0)
    loaders = {"from the file": PrefetchLoader(sampler, device), "held in memory": PrefetchLoader(held, device)}
    least, waits = {}, dict.fromkeys(loaders, float("inf"))
    for _ in range(rounds):
        arms: dict[str, Any] = {"without a loader": iter(lambda: fixed, None), **loaders}
        for name, batches in arms.items():
            before = loaders[name].stall_seconds if name in loaders else 0.0
            least[name] = min(least.get(name, float("inf")), run(batches))
            if name in loaders:
                waits[name] = min(waits[name], (loaders[name].stall_seconds - before) / (steps + 1))
    for loader in loaders.values():
        loader.close()
    return {
        "preset": preset, "batch": train.batch_size, "frames": train.sequence_length,
        "size": source.spec.image_shape[1],
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu", "autocast": str(autocast),
        "cuda_graph": captured is not None,
        "step_seconds": least, "wait_seconds_a_step": waits,
        "ratio": {name: least[name] / least["without a loader"] for name in loaders},
    }  # fmt: skip


def measure_batches(file: Path, preset: str, rounds: int) -> dict[str, Any]:
    """CPU seconds in which one thread makes a preset's batch: a step that takes longer is never kept waiting by it."""
    from aime.data import cached
    from aime.training import TrainConfig

    train, source = TrainConfig.preset(preset), open_source(file)
    sources = {"from the file": source, "held in memory": cached(source, limit_bytes=1 << 40)}
    least = dict.fromkeys(sources, float("inf"))
    for number in range(2 * rounds):
        for name, one in sources.items():
            sampler = WindowSampler(one, train.batch_size, train.sequence_length, seed=0)
            begin = time.process_time()
            sampler.batch(number)
            least[name] = min(least[name], time.process_time() - begin)
    size = source.spec.image_shape[1]
    sizes = {"batch": train.batch_size, "frames": train.sequence_length, "size": size}
    return {"preset": preset, **sizes, "seconds_a_batch": least}


def _wait(device: str) -> None:
    import torch

    if device != "cpu":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:3])
    parser.add_argument("--data", type=Path, help="episodes of 84 x 84 to use; collected where it is not given")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--preset", default="tier2")
    parser.add_argument("--batch", type=int, help="windows of the stall's step; the preset's own by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="of the stall's arms in a round")
    parser.add_argument("--budget", type=float, default=0.4, help="CPU seconds of a layout in a round")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.read is not None:
        print(json.dumps(read_large(options.read)))
        return
    with tempfile.TemporaryDirectory() as place:
        file = options.data or Path(place) / "episodes.h5"
        if options.data is None:
            collect(file)
        measured: dict[str, Any] = {}
        if "layouts" in options.parts:
            measured["layouts"] = measure_layouts(file, rounds=options.rounds, budget=options.budget)
        if "memory" in options.parts:
            measured["memory"] = measure_memory(file)
        if "batches" in options.parts:
            measured["batches"] = measure_batches(file, options.preset, options.rounds)
        if "stall" in options.parts:
            stall = measure_stall(
                file,
                preset=options.preset,
                device=options.device,
                batch=options.batch,
                rounds=options.rounds,
                steps=options.steps,
            )
            measured["stall"] = stall
        if "convert" in options.parts:
            measured["convert"] = measure_convert(file, Path(place), _seconds_a_window, options.budget)
    print(json.dumps(measured, indent=1))
    record(options.out, measured)


def record(out: Path, measured: dict[str, Any]) -> None:
    """Put the parts that ran into the file of results."""
    stamp = {"date": datetime.now(UTC).date().isoformat(), "machine": platform.processor() or platform.machine()}
    results = json.loads(out.read_text()) if out.is_file() else {}
    out.write_text(
        json.dumps(results | {name: {**stamp, "measured": value} for name, value in measured.items()}, indent=1)
    )


if __name__ == "__main__":
    main()
