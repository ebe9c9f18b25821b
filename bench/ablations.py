"""What each part of the model and its training is worth: arms trained for equal CPU seconds, held-out episodes.

    python -m bench.ablations data/cartpole.h5 [--steps 500] [--seeds 1 2]

Arms are named changes of the laptop preset. What a part costs is part of the question, so the optimizer steps of an arm
are those that take the CPU seconds of the default's ``--steps``: both step in turn on the same batch first, and the
ratio of the least times counts. The seconds each really took are in the table besides. Results are written arm by
arm, and an arm that is there already is not run again, so a killed run is continued by the same command.
`OMP_NUM_THREADS=1` lets two of them run side by side, with a result file each.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Annotated, Any

import torch
import tyro

from aime.allocator import keep_freed_memory
from aime.data import Batch, EpisodeSource, open_source
from aime.evaluation.evaluate import evaluate_model
from aime.evaluation.protocol import EvaluationConfig
from aime.evaluation.record import write_json
from aime.training import TrainConfig, train
from aime.training.batches import TrainingData
from aime.training.config import PRESETS
from aime.training.experiment import build_model
from aime.training.precision import autocast_dtype
from aime.world_model import RememberedSequences

RESULTS = Path(__file__).parent / "results"
Change = dict[str, dict[str, Any]]

PILLARS = {"context_in_posterior": True, "attention_in_posterior": True}
ARMS: dict[str, Change] = {
    "default": {},
    "no-rehearsal": {"train": {"rehearsals": 0}},
    "rehearsal-96-sequences": {"train": {"rehearsal_batch": 96}},
    "rehearsal-16-frames": {"train": {"rehearsal_length": 16}},
    "rehearsal-any-age": {"train": {"rehearsal_age": 0}},
    "rehearsal-any-age-scattered-windows": {"train": {"rehearsal_age": 0, "consecutive": 1}},
    "rehearsal-all-rolled": {"train": {"rehearsal_rolled": 1.0}},
    "rehearsal-none-rolled": {"train": {"rehearsal_rolled": 0.0}},
    "no-whitening": {"model": {"spread_floor": 1000.0}},
    "one-component": {"model": {"max_components": 1}},
    "context": {"model": {"context_in_posterior": True}},
    "attention": {"model": {"attention_in_posterior": True}},
    "pillars": {"model": PILLARS},
    "pillars-sum-of-losses": {"model": PILLARS, "train": {"balancer": "sum", "balancer_options": {}}},
    "pillars-upgrad": {"model": PILLARS, "train": {"balancer": "upgrad", "balancer_options": {}}},
    "two-groups": {"model": {"latent_groups": 2}},
    "two-components": {"model": {"max_components": 2}},
    # What the posterior reads of the attention, and what moves its map: these arms' yardstick is "attention" too.
    "attention-map": {"model": {"attention_in_posterior": True, "attention_reading": "map"}},
    "attention-slots-and-map": {"model": {"attention_in_posterior": True, "attention_reading": "slots_and_map"}},
    "attention-balance": {"model": {"attention_in_posterior": True, "attention_balance": 0.2}},
    # Precision is the map's, so this arm's yardstick is "attention".
    "precision-weights": {"model": {"attention_in_posterior": True, "precision_weighting": True}},
    "gram": {"model": {"gram_frames": 4}},
    "no-average": {"train": {"weight_average": 0.0}},
    "windows-of-8": {"train": {"batch_size": 32, "sequence_length": 8, "consecutive": 8}},
    "float32": {"train": {"precision": "float32"}},
    "one-frame": {"model": {"frame_stack": 1}},
    # Not measured yet. Changing a batch (7 and 29 ms of CPU) is in the seconds that are told, not in the step costs.
    "shift": {"train": {"augment_shift": 4}},
    "jitter": {"train": {"augment_jitter": 0.2}},
    "adversarial": {"model": {"adversarial": True}},
    # RGB's default gives the critics' gradient the length of the likelihood's; here each task keeps its own.
    "adversarial-sum-norm": {
        "model": {"adversarial": True},
        "train": {"balancer_options": {**PRESETS["laptop"]["balancer_options"], "rescale": "sum_norm"}},
    },
}
"""Changes of the laptop preset by name."""
FIGURES = ("psnr_body", "ssim", "spread_ratio")


@dataclass
class Ablations:
    """Train and score arms of the laptop preset."""

    data: Annotated[Path, tyro.conf.Positional]
    """Episode file (HDF5)."""
    steps: int = 500
    """Optimizer steps of the default; other arms get its CPU seconds."""
    seeds: tuple[int, ...] = (1,)
    """Seeds of weights, windows and noise."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms."""
    out: Path | None = None
    """Result file. Default: bench/results/ablations-TASK.json."""

    def run(self) -> int:
        """Train what is not in the result file yet."""
        unknown = [name for name in self.arms if name not in ARMS]
        if unknown:
            raise SystemExit(f"--arms: expected names among {', '.join(ARMS)}, found {unknown[0]}")
        keep_freed_memory()
        source = open_source(self.data)
        task = f"{source.spec.domain}-{source.spec.task}"
        out = self.out or RESULTS / f"ablations-{task}.json"
        record = json.loads(out.read_text()) if out.is_file() else self.header(task)
        costs = record["step_costs"]
        for name in self.arms:
            if name not in costs:
                costs[name] = relative_cost(source, ARMS[name]) if ARMS[name] else 1.0
                write_json(out, record)
        for seed in self.seeds:
            for name in self.arms:
                key = f"{name}/{self.steps}/{seed}"
                if key in record["arms"]:
                    continue
                steps = round(self.steps / costs[name])
                print(f"{task}: {name}, {steps} steps, seed {seed}", flush=True)
                record["arms"][key] = run_arm(source, ARMS[name], steps, seed)
                write_json(out, record)
                print(json.dumps(record["arms"][key]["psnr_body"]), flush=True)
        print(table(record))
        print(f"stored in {out}")
        return 0

    def header(self, task: str) -> dict[str, Any]:
        """What the figures are of."""
        device = platform.processor() or platform.machine()
        facts = {"threads": torch.get_num_threads(), "torch": torch.__version__}
        return {"benchmark": "ablations", "task": task, "device": device, **facts, "step_costs": {}, "arms": {}}


def step_of(source: EpisodeSource, change: Change, batch: Batch) -> Callable[[], None]:
    """One optimizer step of an arm on a batch, with the rehearsals that follow it."""
    config = TrainConfig.preset("laptop", **change.get("train", {}))
    model = build_model("laptop", source, 0, change.get("model", {})).train()
    model.configure_optimizer(config.learning_rate, config.weight_decay, config.balancer, **config.balancer_options)
    generator = torch.Generator().manual_seed(0)
    model.initialise_from_data(batch.observations.flatten(0, 1), generator)
    autocast = autocast_dtype(config, torch.device("cpu"))
    sizes = model.config
    shape = (config.rehearsal_batch, config.rehearsal_length)
    remembered = RememberedSequences(
        torch.randn(*shape, sizes.latent_dim),
        torch.full((*shape, sizes.latent_dim), -2.0),
        torch.randn(*shape, sizes.action_size),
    )
    seen, rolled = (config.rehearsal_seen + shape[1]) // 2, round(config.rehearsal_rolled * shape[0])

    def step() -> None:
        model.training_step_sequence(
            batch.observations,
            batch.actions,
            batch.rewards,
            batch.continues,
            autocast=autocast,
            generator=generator,
        )
        for _ in range(config.rehearsals):
            model.rehearse(remembered, seen, rolled, autocast=autocast, generator=generator)

    return step


def relative_cost(source: EpisodeSource, change: Change, rounds: int = 10) -> float:
    """CPU time of an arm's step over the default's, on the frames that each takes, in turn; least times."""
    costs: list[list[float]] = [[], []]
    steps = []
    for arm in ({}, change):
        config = TrainConfig.preset("laptop", **arm.get("train", {}))
        loader = TrainingData.open(source, config, torch.device("cpu")).loader
        with loader:
            steps.append(step_of(source, arm, next(loader)))
    for step in steps:
        step()
    for _ in range(rounds):
        for taken, step in zip(costs, steps, strict=True):
            begin = time.process_time()
            step()
            taken.append(time.process_time() - begin)
    return min(costs[1]) / min(costs[0])


def run_arm(source: EpisodeSource, change: Change, steps: int, seed: int) -> dict[str, Any]:
    """Figures of one arm: open loop by horizon, reconstruction, probes, CPU seconds and frames of its training."""
    config = TrainConfig.preset("laptop", steps=steps, seed=seed, validate_every=0, **change.get("train", {}))
    model = build_model("laptop", source, seed, change.get("model", {}))
    begin = time.process_time()
    result = train(model, source, config, None, tensorboard=False, show_progress=False)
    cpu = time.process_time() - begin
    protocol = EvaluationConfig(episodes=15, films=1)
    found = evaluate_model(model, source, protocol)
    row: dict[str, Any] = {"change": change, "cpu_seconds": cpu, "frames": result.frames, "train": result.metrics}
    scores = found.open_loop.scores["model"].horizons
    for figure in FIGURES:
        row[figure] = {h: [values[figure].mean, values[figure].stderr] for h, values in scores.items()}
    row["reconstruction"] = found.reconstruction["psnr_body"].mean
    row["probe"] = {name: estimate.mean for name, estimate in found.probe.items()}
    return row


def table(record: dict[str, Any]) -> str:
    """Body PSNR by arm and horizon, in Markdown: mean over the seeds, and its standard error if there are several."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for key, found in record["arms"].items():
        rows.setdefault(key.split("/")[0], []).append(found)
    horizons = list(next(iter(rows.values()))[0]["psnr_body"])
    lines = [
        "| arm | seeds | a step's cost | " + " | ".join(f"h {h}" for h in horizons) + " |",
        "| --- | ---: | ---: |" + " ---: |" * len(horizons),
    ]
    for name, found in rows.items():
        cells = [name, str(len(found)), f"{record['step_costs'][name]:.2f}"]
        for horizon in horizons:
            values = [row["psnr_body"][horizon][0] for row in found]
            error = f" ± {stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
            cells.append(f"{fmean(values):.2f}{error}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(tyro.cli(Ablations).run())
