"""Train an RSSM baseline on an episode file and score it on the held-out split, without a world model.

    python bench/baselines/rssm.py data/cartpole.h5 --row rssm_tuned --seconds 300 --out rssm_tuned.json

The class and its training live in ``aime.evaluation.baselines``, because ``aime evaluate --rssm`` needs them in an
installed package, which has no ``bench/``. This runner is for looking at the baseline alone, and for tuning it: the
figures come from the same protocol and the same code as those of ``aime evaluate``.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from aime.data import open_source, splits_for
from aime.evaluation.baselines import RSSMTrainingConfig, baseline_settings, train_rssm
from aime.evaluation.forecasters import CopyLast, MeanImage, RSSMForecaster
from aime.evaluation.open_loop import METRICS, score_open_loop
from aime.evaluation.protocol import EvaluationConfig, clip_length, cut_clips, spread, training_statistics
from aime.evaluation.record import write_json
from aime.evaluation.run_directory import device_name


@dataclass
class TrainRSSM:
    """Train an RSSM baseline for some CPU seconds; score it, copy-last and the mean image on held-out episodes."""

    data: Annotated[Path, tyro.conf.Positional]
    """Episode file (HDF5)."""
    out: Path | None = None
    """Where the figures go as JSON; they are printed in any case."""
    row: Literal["rssm", "rssm_tuned"] = "rssm"
    """Which baseline."""
    seconds: float = 300.0
    """CPU seconds of training."""
    learning_rate: float | None = None
    """Peak learning rate; the row's own by default."""
    batch_size: int = RSSMTrainingConfig.batch_size
    """Sequences in a batch."""
    sequence_length: int = RSSMTrainingConfig.sequence_length
    """Frames in a sequence."""
    observation_scale: float | None = None
    """Standard deviation of the pixel likelihood, frames in [0, 1]; the row's own by default."""
    free_nats: float | None = None
    """Nats of KL that cost nothing; the row's own by default."""
    seed: int = 0
    """Seed of weights, windows and samples."""
    protocol: EvaluationConfig = field(default_factory=EvaluationConfig)
    """How much is evaluated."""

    def run(self) -> dict[str, Any]:
        """Train, score, print and write."""
        source = open_source(self.data)
        splits = splits_for(source)
        training = [int(episode) for episode in splits["train"]]
        statistics = training_statistics(source, training, self.protocol.mean_image_frames)
        sizes, settings = baseline_settings(self.row, source.spec, self.seconds, self.seed)
        settings = replace(settings, batch_size=self.batch_size, sequence_length=self.sequence_length)
        if self.learning_rate is not None:
            settings = replace(settings, learning_rate=self.learning_rate)
        if self.observation_scale is not None:
            sizes = replace(sizes, observation_scale=self.observation_scale)
        if self.free_nats is not None:
            sizes = replace(sizes, free_nats=self.free_nats)
        trained = train_rssm(source, training, statistics, settings, sizes, _progress)
        held_out = spread([int(episode) for episode in splits[self.protocol.split]], self.protocol.episodes)
        clips = cut_clips(source, held_out, clip_length(source, held_out, self.protocol), self.protocol.starts)
        scores = score_open_loop(
            {
                self.row: RSSMForecaster(trained.model),
                "copy_last": CopyLast(),
                "mean_image": MeanImage(statistics.mean),
            },
            clips,
            self.protocol,
        ).scores
        record = {
            "device": device_name(torch.device("cpu")),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "data": self.data.name,
            "model": asdict(sizes),
            "training": trained.summary() | {"frames_per_cpu_second": trained.frames / trained.cpu_seconds},
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
