"""Alignment of contexts, actions and horizons, and the protocol's edges."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from aime.evaluation.bodies import fit_body_finder
from aime.evaluation.forecasters import CopyLast, ForecastTask, MeanImage, WorldModelForecaster
from aime.evaluation.metrics import PSNR_CEILING
from aime.evaluation.open_loop import METRICS, score_open_loop
from aime.evaluation.protocol import (
    EvaluationConfig,
    clip_length,
    cut_clips,
    probe_clips,
    spread,
    training_mean_image,
)
from tests.evaluation.ring_world import RingModel, RingState, RingWorld

CONFIG = EvaluationConfig(horizons=(1, 5, 15), context=4, samples=3, starts=2, rollouts_at_once=6, films=2)


def clips_of(world: RingWorld) -> tuple[list[int], object]:
    episodes = [7, 8, 9]
    return episodes, cut_clips(world, episodes, clip_length(world, episodes, CONFIG), CONFIG.starts)


def test_a_model_that_knows_the_truth_is_perfect_at_every_horizon(ring: RingWorld) -> None:
    _, clips = clips_of(ring)
    scores = score_open_loop({"model": WorldModelForecaster(RingModel())}, clips, CONFIG).scores
    for series in ("model", "model_single"):
        for horizon in CONFIG.horizons:
            figures = scores[series].horizons[horizon]
            assert figures["psnr"].mean == figures["psnr_body"].mean == PSNR_CEILING
            assert figures["ssim"].mean == pytest.approx(1.0, abs=1e-5)


def test_a_model_that_is_one_frame_late_is_not(ring: RingWorld) -> None:
    _, clips = clips_of(ring)
    scores = score_open_loop({"model": WorldModelForecaster(RingModel(late=True))}, clips, CONFIG).scores
    for horizon in CONFIG.horizons:
        assert scores["model"].horizons[horizon]["psnr_body"].mean < 25.0


def test_targets_are_the_frames_after_the_context(ring: RingWorld) -> None:
    """The curve's step h - 1 is the error against frame context - 1 + h, worked out here from the episodes."""
    episodes, clips = clips_of(ring)
    scores = score_open_loop({"copy_last": CopyLast()}, clips, CONFIG).scores
    for step in (0, 4, 14):
        values = []
        for episode in episodes:
            room = 40 - clips.length
            errors = []
            for start in (0, room):
                frames = ring.window(episode, start, clips.length).observations.astype(float)
                errors.append(np.square(frames[CONFIG.context - 1] - frames[CONFIG.context + step]).mean())
            mse = np.mean(errors)
            values.append(PSNR_CEILING if mse == 0 else 10 * np.log10(255**2 / mse))
        assert scores["copy_last"].curve["psnr"][step] == pytest.approx(np.mean(values))


def test_the_mean_of_samples_beats_one_noisy_sample(ring: RingWorld) -> None:
    _, clips = clips_of(ring)
    config = EvaluationConfig(horizons=(1, 5), context=4, samples=16, starts=2, films=1)
    scores = score_open_loop({"model": WorldModelForecaster(RingModel(noise=0.2))}, clips, config).scores
    for horizon in (1, 5):
        gain = scores["model"].horizons[horizon]["psnr"].mean - scores["model_single"].horizons[horizon]["psnr"].mean
        assert gain > 6.0  # averaging 16 independent errors is worth 10 log10(16) = 12 dB in expectation


def test_a_forecaster_more_changes_no_other_row(ring: RingWorld) -> None:
    _, clips = clips_of(ring)
    model = WorldModelForecaster(RingModel(noise=0.2))
    alone = score_open_loop({"model": model}, clips, CONFIG).scores["model"]
    beside = score_open_loop({"copy_last": CopyLast(), "model": model}, clips, CONFIG).scores["model"]
    assert alone == beside


def test_the_bodies_of_a_prediction_are_found_as_the_masks_say(ring: RingWorld) -> None:
    finder = fit_body_finder(ring, list(range(7)))
    assert finder is not None
    assert finder.agreement == 1.0  # the square differs from the background everywhere by 180 grey levels
    _, clips = clips_of(ring)
    assert torch.equal(finder.find(clips.observations), clips.body_masks)
    assert torch.equal(finder.reach, clips.body_masks.flatten(0, 1).any(0))  # its way round the ring
    faint = clips.observations.float() * 0.05 + finder.background * 0.95
    assert not finder.find(faint).any()
    assert fit_body_finder(RingWorld(masks=False), [0, 1]) is None


def test_a_rule_that_does_not_find_the_bodies_gives_no_union(ring: RingWorld) -> None:
    _, clips = clips_of(ring)
    finder = fit_body_finder(ring, list(range(7)))
    poor = dataclasses.replace(finder, agreement=0.3)
    scores = score_open_loop({"copy_last": CopyLast()}, clips, CONFIG, bodies=poor).scores["copy_last"]
    assert scores.horizons[5]["psnr_union"].mean is None
    assert scores.horizons[5]["crps_body"].mean > 0.0


def test_a_ghost_costs_the_union_and_not_the_targets_mask(ring: RingWorld) -> None:
    """A second square where there is none: the true one is drawn right, so only the union sees the error."""
    _, clips = clips_of(ring)
    finder = fit_body_finder(ring, list(range(7)))

    class Ghost(RingModel):
        @staticmethod
        def render(position: torch.Tensor) -> torch.Tensor:
            return torch.maximum(RingModel.render(position), RingModel.render(position + 12))

    def figures(model: RingModel) -> dict[str, float | None]:
        scores = score_open_loop({"model": WorldModelForecaster(model)}, clips, CONFIG, bodies=finder).scores
        return {metric: value.mean for metric, value in scores["model"].horizons[5].items()}

    exact, ghost = figures(RingModel()), figures(Ghost())
    assert exact["psnr_union"] == exact["psnr_body"] == ghost["psnr_body"] == PSNR_CEILING
    # Half of the union is wrong by 180 grey levels.
    assert ghost["psnr_union"] == pytest.approx(10 * np.log10(255**2 / (180**2 / 2)), abs=1e-3)


def test_shuffled_actions_cost_a_model_that_uses_them_and_not_one_that_does_not(ring: RingWorld) -> None:
    _, clips = clips_of(ring)

    class Resting(RingModel):
        def imagine(
            self, state: RingState, actions: torch.Tensor, horizon: int, **options: Any
        ) -> dict[str, torch.Tensor]:
            return super().imagine(state, torch.zeros_like(actions), horizon, **options)

    def ratios(model: RingModel) -> list[float | None]:
        scores = score_open_loop({"model": WorldModelForecaster(model)}, clips, CONFIG).scores
        return [scores["model"].horizons[horizon]["action_shuffle"].mean for horizon in CONFIG.horizons]

    used, unused = ratios(RingModel(noise=0.05)), ratios(Resting(noise=0.05))
    assert all(ratio > 5.0 for ratio in used)
    # Its state has absorbed the last action of the context, which is shuffled too; nothing after that reaches it.
    assert unused[2] == pytest.approx(1.0, abs=0.6)
    scores = score_open_loop({"copy_last": CopyLast()}, clips, CONFIG).scores["copy_last"]
    assert scores.horizons[5]["action_shuffle"].mean is None


def test_a_horizon_that_does_not_fit_is_missing() -> None:
    world = RingWorld(episodes=4, length=12)
    assert clip_length(world, [0, 1], CONFIG) == 4 + 5
    clips = cut_clips(world, [0, 1], 9, 2)
    scores = score_open_loop({"model": WorldModelForecaster(RingModel())}, clips, CONFIG).scores["model"]
    assert scores.horizons[5]["psnr"].mean == PSNR_CEILING
    assert {metric: value.mean for metric, value in scores.horizons[15].items()} == dict.fromkeys(METRICS)


def test_episodes_shorter_than_any_horizon_are_refused() -> None:
    with pytest.raises(ValueError, match="has 4 frames; context 4 and horizon 1 need 5"):
        clip_length(RingWorld(episodes=3, length=4), [0], CONFIG)
    with pytest.raises(ValueError, match="no episode in split"):
        clip_length(RingWorld(episodes=3), [], CONFIG)


def test_without_masks_the_body_figure_is_missing() -> None:
    world = RingWorld(episodes=4, masks=False)
    clips = cut_clips(world, [0, 1], 20, 1)
    scores = score_open_loop({"copy_last": CopyLast()}, clips, CONFIG).scores["copy_last"]
    assert scores.horizons[5]["psnr_body"].mean is None
    assert scores.horizons[5]["psnr"].mean is not None
    assert "psnr_body" not in scores.curve


def test_mean_image_is_that_of_the_given_episodes(ring: RingWorld) -> None:
    mean = training_mean_image(ring, [0, 3], 10_000)
    frames = np.concatenate([ring.window(episode, 0, 40).observations for episode in (0, 3)])
    np.testing.assert_allclose(mean.numpy(), frames.mean(0), rtol=1e-5)
    forecast = MeanImage(mean).forecast(ForecastTask(torch.zeros(2, 4, 3, 32, 32), torch.zeros(2, 9, 1)))
    assert forecast.mean.shape == (2, 5, 3, 32, 32)
    assert torch.equal(forecast.mean[1, 3], mean)


def test_clips_are_spread_over_the_episode_and_labelled(ring: RingWorld) -> None:
    clips = cut_clips(ring, [2], 20, 3)
    assert clips.labels == ("episode 2, frames 0-19", "episode 2, frames 10-29", "episode 2, frames 20-39")
    np.testing.assert_array_equal(clips.actions[1, :, 0].numpy(), ring.actions[2, 10:30])
    assert [len(batch) for _, batch in clips.batches(2)] == [2, 1]
    assert spread(range(10), 4) == [0, 3, 6, 9]
    assert spread([5, 6], 4) == [5, 6]


@pytest.mark.parametrize("field", ["context", "samples", "episodes", "starts", "films"])
def test_settings_below_one_are_refused(field: str) -> None:
    with pytest.raises(ValueError, match=f"{field}: expected .*, found 0"):
        EvaluationConfig(**{field: 0})


def test_probes_are_fitted_on_clips_from_everywhere_in_the_episodes(ring: RingWorld) -> None:
    length, episodes = 8, list(range(10))
    few = list(probe_clips(ring, episodes, length, EvaluationConfig(starts=3)))
    assert sum(len(part) for part in few) > 20, "up to three of each of ten episodes"
    one = list(probe_clips(ring, episodes, length, EvaluationConfig(starts=1)))
    found = torch.cat([part.episodes for part in one])
    assert found.tolist() == episodes, "one of each, in order"
    first = [int(label.split("frames ")[1].split("-")[0]) for part in one for label in part.labels]
    room = int(min(ring.lengths[episode] for episode in episodes)) - length
    assert len(set(first)) > 5
    assert min(first) < room / 4
    assert max(first) > 3 * room / 4
