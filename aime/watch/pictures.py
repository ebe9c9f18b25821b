"""What the newest checkpoint of a run sees: a held-out clip, its open-loop continuation, attention and slots."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import torch

from aime.data import DataError, EpisodeSource, open_source, splits_for
from aime.evaluation.forecasters import ForecastTask, WorldModelForecaster
from aime.evaluation.protocol import cut_window
from aime.evaluation.report.images import (
    attention_overlay,
    data_uri,
    error_map,
    resize_maps,
    side_by_side,
    slot_overlay,
    to_image,
    with_progress,
)
from aime.files import DamagedFileError, read_json
from aime.training.checkpoint import CheckpointDirectory
from aime.training.training_state import load_weights
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig

SAMPLES = 8  # rollouts behind the mean
MAP_COLUMNS = 8
LONGEST = 25  # frames of a clip


@dataclass
class Pictures:
    """Pictures of the newest checkpoint, drawn again when there is another.

    Args:
        run: the run directory.
        data: its episode file; what run.json names where absent.
        context: frames observed before the model goes on by itself.
    """

    run: Path
    data: Path | None = None
    context: int = 5

    def __post_init__(self) -> None:
        self.step: int | None = None
        self.html = '<p class="none">No checkpoint yet.</p>'
        self._model: DPGMMVariationalRecurrentAutoencoder | None = None
        self._source: EpisodeSource | None = None

    def refresh(self) -> bool:
        """Draw what is new; whether anything changed. What cannot be drawn is told on the page."""
        directory = CheckpointDirectory(self.run / "checkpoints")
        step = directory.latest()
        if step is None or step == self.step:
            return False
        before = self.html
        try:
            model, source = self._opened()
            load_weights(directory.load(step), model, averaged=True)
            self.html = draw(model, source, self._episode(source), self.context)
        except (DamagedFileError, FileNotFoundError) as error:
            if directory.latest() != step:  # the trainer removed it meanwhile: the next one is tried
                return False
            self.html = _told(error)
        except (DataError, OSError, ValueError, TypeError, KeyError) as error:
            self.html = _told(error)
        self.step = step
        return self.html != before

    def _opened(self) -> tuple[DPGMMVariationalRecurrentAutoencoder, EpisodeSource]:
        if self._model is None or self._source is None:
            self._config: dict[str, Any] = read_json(self.run / "config.json")
            data = self.data or Path(read_json(self.run / "run.json").get("data") or self.run / "data.h5")
            self._source = open_source(data, body_masks=False, physics=False)
            self._model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_dict(self._config["model"])).eval()
        return self._model, self._source

    def _episode(self, source: EpisodeSource) -> int:
        return int(splits_for(source, int(self._config["train"]["seed"]))["validation"][0])


@torch.no_grad()
def draw(model: DPGMMVariationalRecurrentAutoencoder, source: EpisodeSource, episode: int, context: int) -> str:
    """Film and maps of an episode's first frames, HTML; every picture lies in it."""
    length = min(int(source.lengths[episode]), LONGEST)
    if length <= context:
        return f'<p class="none">The held-out episode {episode} has {length} frames, which is too short to show.</p>'
    clip = cut_window(source, episode, 0, length)
    observed = clip.observations[:, :context]
    generator = torch.Generator().manual_seed(0)
    task = ForecastTask(observed, clip.actions, SAMPLES, generator)
    forecast = WorldModelForecaster(model, torch.device("cpu")).forecast(task)
    outputs = model.forward_sequence(clip.observations, clip.actions, generator=generator)
    seen = outputs["reconstructions"][0].clamp(-1, 1).add(1).mul(127.5)  # (T, C, H, W)
    truth, mean = clip.observations[0], torch.cat([seen[:context], forecast.mean[0]])
    panels = [("truth", truth), ("reconstruction", seen), (f"open loop from frame {context}", mean)]
    if forecast.single is not None:
        panels.append(("one sample of it", torch.cat([seen[:context], forecast.single[0]])))
    images = [to_image(frames) for _, frames in panels] + [error_map(mean, truth)]
    heads = "".join(f"<span>{escape(name)}</span>" for name in [*(name for name, _ in panels), "its error"])
    film = data_uri(with_progress(side_by_side(images), context), ".gif", 6.0)
    return (
        f'<h3>{escape(clip.labels[0])}</h3><div class="animation"><div class="heads">{heads}</div>'
        f'<img alt="open loop beside the truth" src="{film}"></div>{_maps(images[0], outputs)}'
    )


def _maps(frames: np.ndarray, outputs: Any) -> str:
    """Attention and slots over some of the frames (T, H, W, 3)."""
    times = np.linspace(0, len(frames) - 1, MAP_COLUMNS).round().astype(int).tolist()
    height, width = frames.shape[1:3]
    rows = [("frame", [frames[t] for t in times])]
    if "attention_maps" in outputs:  # a model may be without
        attention = resize_maps(outputs["attention_maps"][0], height, width)  # (T, H, W)
        slots = resize_maps(outputs["slot_attention_maps"][0], height, width)  # (T, S, H, W)
        rows.append(("attention", [attention_overlay(frames[t], attention[t]) for t in times]))
        rows.append(("slots", [slot_overlay(frames[t], slots[t]) for t in times]))
    head = "".join(f"<th>{t}</th>" for t in times)
    body = "".join(
        f"<tr><th>{name}</th>"
        + "".join(f'<td><img alt="{name}" src="{data_uri(image)}"></td>' for image in images)
        + "</tr>"
        for name, images in rows
    )
    return f'<div class="scroll"><table class="strip"><tr><th></th>{head}</tr>{body}</table></div>'


def _told(error: Exception) -> str:
    return f'<p class="none">No pictures: {escape(str(error))}</p>'
