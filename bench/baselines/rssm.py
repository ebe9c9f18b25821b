"""Train the small RSSM baseline on an episode file and score it on the held-out split, without a world model.

    python bench/baselines/rssm.py data/cartpole.h5 --seconds 300 --out rssm.json

The class and its training live in ``aime.evaluation.baselines``, because ``aime evaluate --rssm`` needs them in an
installed package, which has no ``bench/``. This runner is for looking at the baseline alone, and for tuning it: the
figures come from the same protocol and the same code as those of ``aime evaluate``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from aime.data import open_source, splits_for
from aime.evaluation.baselines import RSSMConfig, RSSMTrainingConfig, train_rssm
from aime.evaluation.forecasters import CopyLast, MeanImage, RSSMForecaster
from aime.evaluation.open_loop import METRICS, score_open_loop
from aime.evaluation.protocol import EvaluationConfig, clip_length, cut_clips, spread, training_mean_image
from aime.evaluation.record import write_json
from aime.evaluation.run_directory import device_name


@dataclass
class TrainRSSM:
    """Train the RSSM baseline for a wall-clock budget; score it, copy-last and the mean image on held-out episodes."""

    data: Annotated[Path, tyro.conf.Positional]
    """Episode file (HDF5)."""
    out: Path | None = None
    """Where the figures go as JSON; they are printed in any case."""
    seconds: float = 300.0
    """Wall-clock seconds of training."""
    learning_rate: float = RSSMTrainingConfig.learning_rate
    """Peak learning rate."""
    batch_size: int = RSSMTrainingConfig.batch_size
    """Sequences in a batch."""
    sequence_length: int = RSSMTrainingConfig.sequence_length
    """Frames in a sequence."""
    observation_scale: float = RSSMConfig.observation_scale
    """Standard deviation of the pixel likelihood, frames in [0, 1]."""
    free_nats: float = RSSMConfig.free_nats
    """Nats of KL that cost nothing."""
    seed: int = 0
    """Seed of weights, windows and samples."""
    protocol: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is evaluated."""

    def run(self) -> dict[str, Any]:
        """Train, score, print and write."""
        source = open_source(self.data)
        splits = splits_for(source)
        training = [int(episode) for episode in splits["train"]]
        mean_image = training_mean_image(source, training, self.protocol.mean_image_frames)
        settings = RSSMTrainingConfig(
            seconds=self.seconds,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            seed=self.seed,
        )
        sizes = RSSMConfig(
            image_shape=source.spec.image_shape,
            action_size=source.spec.action_size,
            observation_scale=self.observation_scale,
            free_nats=self.free_nats,
        )
        trained = train_rssm(source, training, mean_image, settings, sizes, _progress)
        held_out = spread([int(episode) for episode in splits[self.protocol.split]], self.protocol.episodes)
        clips = cut_clips(source, held_out, clip_length(source, held_out, self.protocol), self.protocol.starts)
        scores = score_open_loop(
            {"rssm": RSSMForecaster(trained.model), "copy_last": CopyLast(), "mean_image": MeanImage(mean_image)},
            clips,
            self.protocol,
        ).scores
        record = {
            "device": device_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "data": self.data.name,
            "model": asdict(sizes),
            "training": trained.summary() | {"frames_per_second": trained.frames / trained.seconds},
            "history": trained.history,
            "open_loop": {
                str(horizon): {
                    metric: {name: asdict(score.horizons[horizon][metric]) for name, score in scores.items()}
                    for metric in METRICS
                }
                for horizon in self.protocol.horizons
            },
        }
        for metric in METRICS:
            print(metric)
            for name, score in scores.items():
                figures = (score.horizons[horizon][metric].mean for horizon in self.protocol.horizons)
                cells = "  ".join(f"{figure:8.3f}" if figure is not None else "       -" for figure in figures)
                print(f"  {name:12s} {cells}")
        print(json.dumps(record["training"]))
        if self.out is not None:
            write_json(self.out, record)
        return record


def _progress(share: float) -> None:
    sys.stderr.write(f"\rtraining the RSSM: {share:4.0%}")
    if share >= 1.0:
        sys.stderr.write("\n")


if __name__ == "__main__":
    tyro.cli(TrainRSSM).run()
