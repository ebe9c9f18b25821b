"""What training keeps besides the model: remembered posteriors and averaged weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aime.data import Batch
from aime.encoder_decoder import Posterior
from aime.ranges import OptionError
from aime.threads import threads
from aime.training import TrainConfig, train
from aime.training.averaging import WeightAverage
from aime.training.rehearsal import PosteriorMemory, Rehearsals
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from tests.training.toy import ACTION_SIZE, ToySource, make_model

EPISODES, LENGTHS = np.array([7, 2, 5]), np.array([12, 9, 12])
SIZE = 3


def memory(seed: int = 0) -> PosteriorMemory:
    return PosteriorMemory(EPISODES, LENGTHS, SIZE, ACTION_SIZE, torch.device("cpu"), seed)


def batch(places: list[tuple[int, int]], length: int) -> tuple[Batch, Posterior]:
    """Windows whose posterior means and actions tell the episode and frame they are of."""
    episodes, starts = (torch.tensor(column) for column in zip(*places, strict=True))
    time = (starts[:, None] + torch.arange(length)).float()  # (B, T)
    code = torch.stack([episodes[:, None].expand_as(time).float(), time, 0 * time], -1)  # (B, T, D)
    empty = torch.zeros(len(places), length)
    frames = torch.zeros(len(places), length, 3, 8, 8, dtype=torch.uint8)
    return Batch(frames, code[..., :2], empty, empty, episodes=episodes, starts=starts), Posterior(code, code - 9)


def test_draws_are_windows_that_were_seen_whole_and_belong_together() -> None:
    kept = memory()
    kept.store(*batch([(7, 0), (2, 1)], 8))
    kept.store(*batch([(7, 4)], 8))  # frames 0 .. 11 of episode 7, 1 .. 8 of episode 2, none of episode 5
    drawn = kept.draw(16, 8, index=0)
    assert drawn is not None and drawn.mean.shape == (16, 8, SIZE)
    episodes, times = drawn.mean[..., 0], drawn.mean[..., 1]
    assert bool((episodes == episodes[:, :1]).all()) and set(episodes[:, 0].tolist()) <= {7.0, 2.0}
    assert bool((times.diff(dim=1) == 1).all())
    assert torch.equal(drawn.actions, drawn.mean[..., :2]) and torch.equal(drawn.log_scale, drawn.mean - 9)
    again, other = kept.draw(16, 8, index=0), kept.draw(16, 8, index=1)
    assert again is not None and torch.equal(again.mean, drawn.mean)  # a draw is a function of seed and index
    assert other is not None and not torch.equal(other.mean, drawn.mean)


def test_the_newest_posterior_is_kept_and_one_that_is_not_finite_is_left_out() -> None:
    kept = memory()
    windows, posterior = batch([(5, 0)], 12)
    kept.store(windows, posterior)
    kept.store(windows, Posterior(posterior.mean + 100, posterior.log_scale))
    broken = posterior.mean.clone()
    broken[:, 3] = float("nan")
    kept.store(windows, Posterior(broken + 500, posterior.log_scale))
    drawn = kept.draw(1, 12, index=0)
    assert drawn is not None
    assert drawn.mean[0, :, 2].tolist() == [500.0] * 3 + [100.0] + [500.0] * 8


def test_what_was_seen_too_long_ago_is_not_drawn() -> None:
    kept = PosteriorMemory(EPISODES, LENGTHS, SIZE, ACTION_SIZE, torch.device("cpu"), 0, age=2)
    kept.store(*batch([(7, 0)], 12))
    kept.store(*batch([(5, 0)], 6))
    assert set(episodes_drawn(kept)) == {7, 5}
    kept.store(*batch([(5, 6)], 6))  # the batch before is one of the last two, that of episode 7 is not
    assert set(episodes_drawn(kept)) == {5}
    resumed = PosteriorMemory(EPISODES, LENGTHS, SIZE, ACTION_SIZE, torch.device("cpu"), 0, age=2)
    resumed.load_tensors(kept.tensors())
    assert episodes_drawn(resumed) == episodes_drawn(kept)
    kept.store(*batch([(2, 0)], 3))  # a window over both halves of episode 5 is of two ages, one of them too old
    drawn = kept.draw(4, 12, index=0)
    assert drawn is not None and drawn.mean.shape[1] == 6 and set(drawn.mean[:, 0, 1].tolist()) == {6.0}


def episodes_drawn(kept: PosteriorMemory) -> list[int]:
    """Of 32 windows of 6 frames."""
    drawn = kept.draw(32, 6, index=0)
    assert drawn is not None
    return [int(episode) for episode in drawn.mean[:, 0, 0]]


def test_shorter_windows_are_drawn_until_long_ones_are_there() -> None:
    kept = memory()
    assert kept.draw(2, 40, index=0) is None
    kept.store(*batch([(7, 0)], 8))
    drawn = kept.draw(2, 40, index=0)
    assert drawn is not None and drawn.mean.shape[1] == 6  # 12 frames, the longest episode, halved
    assert kept.draw(64, 40, index=0) is None  # eight windows at least, there are three of 6 frames
    kept.store(*batch([(7, 4)], 8))
    drawn = kept.draw(2, 40, index=0)
    assert drawn is not None and drawn.mean.shape[1] == 12


class NoCopies(TorchDispatchMode):
    """Refuses copies between devices but those that are marked as not waited for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        places = {leaf.device for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)}
        assert len(places) == 1 or (kwargs or {}).get("non_blocking"), function
        return result


def test_a_memory_on_a_device_is_written_and_read_without_waiting(monkeypatch) -> None:
    """On meta tensors, which stand in for those of a GPU; page-locked memory needs one."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    there = PosteriorMemory(EPISODES, LENGTHS, SIZE, ACTION_SIZE, torch.device("meta"), 0)
    seen, posterior = batch([(7, 0), (5, 4), (2, 1)], 6)
    seen, posterior = (
        replace(seen, actions=seen.actions.to("meta")),
        Posterior(posterior.mean.to("meta"), posterior.log_scale.to("meta")),
    )
    with NoCopies():
        there.store(seen, posterior)
        drawn = there.draw(4, 6, 0)
    assert drawn is not None and drawn.mean.device.type == "meta" and drawn.mean.shape == (4, 6, SIZE)


def test_weights_are_averaged_and_swapped_in_and_back() -> None:
    model = make_model()
    average = WeightAverage(model, 0.9)
    name, parameter = next(iter(model.named_parameters()))
    start, values = parameter.detach().clone(), []
    for step in range(30):
        with torch.no_grad():
            parameter.add_(1.0)
        average.update()
        decay = min(0.9, (1 + step) / (10 + step))
        values.append((values[-1] if values else 0.0) * decay + (step + 1) * (1 - decay))
    with average.in_place():
        torch.testing.assert_close(model.state_dict()[name], start + values[-1])
    torch.testing.assert_close(model.state_dict()[name], start + 30.0)
    other = WeightAverage(make_model(1), 0.9)
    other.load_tensors(average.tensors())
    assert all(torch.equal(value, other.tensors()[key]) for key, value in average.tensors().items())


def test_a_run_with_rehearsals_and_averages_continues_exactly(tmp_path) -> None:
    config = WorldModelConfig.preset(
        "pillars", action_size=2, image_size=32, encoder_channels=(8, 8), decoder_channels=(8, 8), downsample=8,
        hidden_dim=16, prior_hidden_dim=16, attention_resolution=4, latent_channels=16, num_codes=8, mlp_hidden_dim=16,
    )  # fmt: skip
    source = ToySource(episodes=8, length=16)
    source.spec = type(source.spec)(image_shape=(3, 32, 32), action_size=2, domain="toy", task="square")
    source.frames = source.frames.repeat(4, -1).repeat(4, -2)

    def run(path, steps: int, resume: bool = False):
        torch.manual_seed(0)
        model = DPGMMVariationalRecurrentAutoencoder(config)
        training = TrainConfig.preset(
            "laptop", steps=steps, batch_size=4, sequence_length=4, consecutive=3, rehearsal_age=5,
            rehearsal_batch=4, rehearsal_length=12,
            rehearsals=2, validation_batches=1, validate_every=0, checkpoint_every=4, warmup_fraction=0.0,
            final_learning_rate=1.0, beta_warmup_fraction=0.0, log_every=1,
        )  # fmt: skip
        result = train(model, source, training, path, resume=resume, show_progress=False, tensorboard=False)
        return model, result

    whole, result = run(tmp_path / "whole", 12)
    assert "rehearsal_loss" in result.metrics
    run(tmp_path / "parts", 8)
    resumed, _ = run(tmp_path / "parts", 12, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    exported = [
        DPGMMVariationalRecurrentAutoencoder.from_pretrained(tmp_path / p / "weights") for p in ("whole", "parts")
    ]
    for name, value in exported[0].state_dict().items():
        assert torch.equal(value, exported[1].state_dict()[name]), name
    assert torch.equal(exported[0].dynamics.norm.weight, whole.dynamics.norm.weight)  # the model ends as it is exported


def test_a_model_that_cannot_rehearse_is_refused() -> None:
    with pytest.raises(OptionError, match="rehearsals: expected 0, since ToyModel cannot rehearse .* found 1"):
        train(make_model(), ToySource(), TrainConfig(steps=1, rehearsals=1, batch_size=2, sequence_length=4))


def test_fewer_threads_are_taken_and_the_others_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with threads(1):
            assert torch.get_num_threads() == 1
        with threads(5):
            assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), threads(1):
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def rehearsing() -> tuple[DPGMMVariationalRecurrentAutoencoder, Rehearsals]:
    """A small model, and rehearsals of a memory that holds random posteriors of every frame."""
    torch.manual_seed(0)
    config = WorldModelConfig.preset(
        "laptop", action_size=2, image_size=32, encoder_channels=(8, 8), decoder_channels=(8, 8), hidden_dim=16,
        prior_hidden_dim=16, mlp_hidden_dim=16, downsample=8,
    )  # fmt: skip
    model = DPGMMVariationalRecurrentAutoencoder(config)
    kept = PosteriorMemory(EPISODES, LENGTHS, config.latent_dim, 2, torch.device("cpu"), seed=0)
    kept.posteriors.normal_()
    kept.stored[:] = 1
    return model, Rehearsals(model, kept, TrainConfig(steps=1, rehearsals=1, rehearsal_batch=4, rehearsal_length=8))


@pytest.mark.parametrize("count", [1, 2])
def test_a_rehearsal_beside_a_step_has_the_gradient_of_the_parameters_that_the_step_began_with(count: int) -> None:
    model, rehearsals = rehearsing()
    alone = rehearsals._gradient(3)
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with rehearsals.beside(3) as found:
            assert torch.get_num_threads() == 1  # of two, the other is the rehearsal's
            sum(p.square().sum() for p in model.trainable).backward()  # a pass of the main thread, as a step has one
            beside = found()
        assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(before)
    assert torch.equal(alone.loss, beside.loss)
    pairs = list(zip(alone.gradients, beside.gradients, model.trainable, strict=True))
    assert sum(a is not None for a, _, _ in pairs) > 5
    assert all((a is None and b is None) or torch.equal(a, b) for a, b, _ in pairs)
    assert all(torch.equal(p.grad, 2 * p) for _, _, p in pairs)  # of which the rehearsal has written nothing
    weights = [p.detach().clone() for p in model.trainable]
    assert float(rehearsals.take(3, beside)["rehearsal_finite"]) == 1.0
    moved = {
        not torch.equal(p, w)
        for p, w, g in zip(model.trainable, weights, beside.gradients, strict=True)
        if g is not None
    }
    assert moved == {True}


def test_what_fails_in_a_rehearsal_beside_a_step_is_raised_by_the_step() -> None:
    _, rehearsals = rehearsing()
    rehearsals.memory.actions = rehearsals.memory.actions[..., :1]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ValueError, match="actions"), rehearsals.beside(0) as found:
            found()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
