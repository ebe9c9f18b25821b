"""Open-loop films of the report: animations and strips beside the truth, attention and slot maps."""

from __future__ import annotations

from html import escape

import numpy as np
import torch
from torch import Tensor

from aime.evaluation.evaluate import Evaluation
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
from aime.evaluation.report.svg import Series, legend, line_chart

STRIP_COLUMNS = 8
MAP_COLUMNS = 9


def _with_context(forecast: Tensor, before: Tensor) -> Tensor:
    """Forecast frames (Hz, C, H, W) after what was shown during the context (L, C, H, W)."""
    return torch.cat([before.float(), forecast.float()])


def film_frames(evaluation: Evaluation, film: int) -> tuple[list[tuple[str, np.ndarray]], np.ndarray]:
    """Named panels (T, H, W, 3) of one clip and the frames of its animation.

    During the context a forecaster's panel shows the posterior reconstruction (the model) or the observed frame.
    """
    context = evaluation.config.context
    truth = evaluation.open_loop.film_clips.observations[film]
    forecasts = evaluation.open_loop.films
    reconstruction = evaluation.shown.get("reconstructions")
    before = truth[:context] if reconstruction is None else reconstruction[film][:context]
    mean = _with_context(forecasts["model"].mean[film], before)
    panels = [("truth", to_image(truth)), ("model, mean of samples", to_image(mean))]
    single = forecasts["model"].single
    if single is not None:
        panels.append(("model, one sample", to_image(_with_context(single[film], before))))
    panels.append(("absolute error of the mean", error_map(mean, truth)))
    others = [name for name in forecasts if name not in ("model", "copy_last", "mean_image")]
    panels += [(name, to_image(_with_context(forecasts[name].mean[film], truth[:context]))) for name in others]
    animation = with_progress(side_by_side([panel for _, panel in panels]), context)
    return panels, animation


def strip_times(evaluation: Evaluation) -> list[int]:
    """Frame indices of a strip: the last observed frame, then forecasts from the nearest to the farthest."""
    context, length = evaluation.config.context, evaluation.clip_length
    wanted = {horizon for horizon in evaluation.config.horizons if context + horizon <= length}
    reach = length - context
    for share in (0.22, 0.55, 0.75, 1.0, 0.1, 0.4):
        if len(wanted) >= STRIP_COLUMNS - 1:
            break
        wanted.add(max(1, round(share * reach)))
    return [context - 1, *(context - 1 + horizon for horizon in sorted(wanted))]


def film_section(evaluation: Evaluation) -> str:
    """Animations and strips of every shown clip."""
    context = evaluation.config.context
    times = strip_times(evaluation)
    parts = []
    for film, name in enumerate(evaluation.open_loop.film_clips.labels):
        panels, animation = film_frames(evaluation, film)
        heads = "".join(f"<span>{escape(title)}</span>" for title, _ in panels)
        head = "".join(
            f'<th class="{"seen" if t < context else "ahead"}">'
            f"{'last seen' if t < context else f'+{t - context + 1}'}</th>"
            for t in times
        )
        rows = "".join(
            f"<tr><th>{escape(title)}</th>"
            + "".join(f'<td><img alt="{escape(title)}, frame {t}" src="{data_uri(panel[t])}"></td>' for t in times)
            + "</tr>"
            for title, panel in panels
        )
        share = min(100, 20 * len(panels))
        parts.append(
            f'<div class="film"><h3>{escape(name)}</h3>'
            f'<div class="animation" style="max-width:{share}%"><div class="heads">{heads}</div>'
            f'<img alt="open loop beside the truth" src="{data_uri(animation, ".gif")}"></div>'
            f'<div class="scroll"><table class="strip"><tr><th></th>{head}</tr>{rows}</table></div>'
            f"{_reward_chart(evaluation, film)}</div>"
        )
    return "".join(parts)


def _reward_chart(evaluation: Evaluation, film: int) -> str:
    """Reward received and reward foreseen by the open loop, over the clip."""
    foreseen = evaluation.open_loop.films["model"].reward
    if foreseen is None:
        return ""
    context = evaluation.config.context
    received = evaluation.open_loop.film_clips.rewards[film].numpy()
    chart = line_chart(
        [
            Series("received", np.arange(len(received)), received, "ink"),
            Series("foreseen, mean of samples", np.arange(context, len(received)), foreseen[film].numpy(), "s1"),
        ],
        "reward",
        "frame",
        "reward",
        size=(760, 170),
        shade_until=context - 0.5,
    )
    keys = legend([("reward received", "ink", False), ("foreseen in open loop", "s1", False)])
    return f'<div class="reward">{chart}{keys}</div>'


def map_section(evaluation: Evaluation) -> str:
    """Attention and slot maps over frames, for the first shown clip of each kind that exists."""
    clips = evaluation.open_loop.film_clips
    height, width = clips.observations.shape[-2:]
    attention, slots = (evaluation.shown.get(name) for name in ("attention_maps", "slot_attention_maps"))
    if attention is None and slots is None:
        return '<p class="none">The model gives no attention maps.</p>'
    times = np.linspace(0, evaluation.clip_length - 1, MAP_COLUMNS).round().astype(int).tolist()
    parts = []
    for film, name in enumerate(clips.labels[:2]):
        truth = to_image(clips.observations[film])
        rows = [("frame", [truth[t] for t in times])]
        if attention is not None:
            maps = resize_maps(attention[film], height, width)
            rows.append(("attention A_t", [attention_overlay(truth[t], maps[t]) for t in times]))
        if slots is not None:
            maps = resize_maps(slots[film], height, width)
            rows.append(("slots", [slot_overlay(truth[t], maps[t]) for t in times]))
            rows += [
                (f"slot {slot + 1}", [attention_overlay(truth[t], maps[t, slot]) for t in times])
                for slot in range(min(maps.shape[1], 6))
            ]
        head = "".join(f"<th>{t}</th>" for t in times)
        body = "".join(
            f"<tr><th>{escape(title)}</th>"
            + "".join(f'<td><img alt="{escape(title)}" src="{data_uri(image)}"></td>' for image in images)
            + "</tr>"
            for title, images in rows
        )
        parts.append(
            f'<div class="film"><h3>{escape(name)}</h3><div class="scroll">'
            f'<table class="strip"><tr><th></th>{head}</tr>{body}</table></div></div>'
        )
    return "".join(parts)
