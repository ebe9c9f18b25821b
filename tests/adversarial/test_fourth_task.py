"""The adversarial task inside the world model and its training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from aime.data import EpisodeSpec
from aime.multi_task_learning import RGB, Sum
from aime.training import TrainConfig, train
from aime.world_model import DPGMMVariationalRecurrentAutoencoder
from tests.training.toy import ToySource
from tests.world_model.conftest import sequences, small_model

OPTIONS = {"adversarial": True, "critic_channels": 4, "critic_dim": 8, "critic_layers": 1, "critic_heads": 2}


def model_with_critics(**options: object) -> DPGMMVariationalRecurrentAutoencoder:
    return small_model(**(OPTIONS | {"decoded_share": 0.6, "critic_share": 1.0} | options)).train()


def test_a_step_of_four_tasks_is_the_sum_of_their_gradients() -> None:
    model, batch = model_with_critics(), sequences(5)
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def tasks() -> dict[str, torch.Tensor]:
        model.load_state_dict(before)  # a backward pass ends with a step of the codebook
        outputs = model.forward_sequence(*batch.all, generator=torch.Generator().manual_seed(3))
        return model.loss_aggregator.compute_losses(outputs)[1]

    names = list(tasks())
    assert names == ["elbo", "perceiver", "predictive", "adversarial"]
    expected = [torch.zeros_like(parameter) for parameter in model.trainable]
    reached: dict[str, set[str]] = {name: set() for name in names}
    parameter_names = {parameter: name.partition(".")[0] for name, parameter in model.named_parameters()}
    for task in names:
        gradients = torch.autograd.grad(tasks()[task], model.trainable, allow_unused=True)
        for total, gradient, parameter in zip(expected, gradients, model.trainable, strict=True):
            if gradient is not None:
                total.add_(gradient)
                reached[task].add(parameter_names[parameter])
    step = Sum().backward(tasks(), model.trainable)
    assert step.task_names == tuple(names)
    assert float(step.task_norms[3]) > 0
    for parameter, total in zip(model.trainable, expected, strict=True):
        found = torch.zeros_like(total) if parameter.grad is None else parameter.grad
        scale = max(float(total.abs().max()), 1e-2)
        torch.testing.assert_close(found / scale, total / scale, rtol=0, atol=1e-5)
    # Through the mean reconstruction it reaches the decoder, and the encoder through the latents; nothing of the prior.
    assert {"decoder", "encoder", "dynamics"} <= reached["adversarial"]
    assert "prior" not in reached["adversarial"]
    assert all(parameter.grad is None for parameter in model.critics.parameters())


def test_both_players_move_their_own_parameters() -> None:
    model, batch = model_with_critics(critic_steps=2), sequences(5)
    model.configure_optimizer(1e-3, balancer="rgb")
    assert model.opponent is not None and isinstance(model.rgb_optimizer, RGB)
    moved = {id(p) for group in model.optimizer.param_groups for p in group["params"]}
    critics = {id(p) for p in model.critics.parameters()}
    assert not moved & critics and len(moved) == len(model.trainable)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    metrics = model.training_step_sequence(*batch.all, generator=torch.Generator().manual_seed(0))
    changed = {name.partition(".")[0] for name, p in model.named_parameters() if not torch.equal(before[name], p)}
    assert {"critics", "decoder", "encoder"} <= changed
    assert float(metrics["finite"]) == 1.0
    for name in ("img_adv_loss", "temporal_adv_loss", "feat_match_loss", "img_disc_loss", "img_gp"):
        assert torch.isfinite(metrics[name]), name
    assert "grad_norm/adversarial" in metrics


@pytest.mark.parametrize("how", ["total", "tasks"])
def test_critics_follow_a_loop_of_ones_own(how: str) -> None:
    model, batch = model_with_critics(critic_steps=2), sequences(5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)  # the critics' too: they get no gradient from it
    before = {name: parameter.detach().clone() for name, parameter in model.critics.named_parameters()}

    def moved() -> bool:
        return any(not torch.equal(before[name], p) for name, p in model.critics.named_parameters())

    losses, _ = model.compute_total_loss(*batch.all)
    losses["perceiver_loss"].backward(retain_graph=True)
    assert not moved()  # nobody has learnt from the critics yet
    if how == "total":
        losses["total_loss"].backward()
    else:
        names = ("total_vae_loss", "perceiver_loss", "attention_loss", "adversarial_loss")
        model.rgb_optimizer.backward([losses[name] for name in names])
    optimizer.step()
    assert moved() and all(bool(torch.isfinite(p).all()) for p in model.critics.parameters())
    once = {name: parameter.detach().clone() for name, parameter in model.critics.named_parameters()}
    model.eval()
    model.compute_total_loss(*batch.all)[0]["total_loss"].backward()
    assert all(torch.equal(once[name], p) for name, p in model.critics.named_parameters())


def test_frames_that_critics_see_are_neighbours() -> None:
    model, batch = model_with_critics(), sequences(5)
    for seed in range(5):
        result = model.forward_sequence(*batch.all, generator=torch.Generator().manual_seed(seed)).result
        assert bool((result.decoded.times.diff() == 1).all()) and len(result.decoded.times) == 3
        real = model.forward_sequence(*batch.all)["observations"]  # (B, T, C, H, W) in [-1, 1]
        whitened = (real - model.mean_image) / model.pixel_spread * 4.0
        torch.testing.assert_close(result.contest.real, whitened[:, result.decoded.times], rtol=0, atol=1e-4)


def test_evaluation_has_three_tasks_and_a_model_without_critics_no_trace_of_them() -> None:
    batch = sequences(4)
    losses, _ = model_with_critics().eval().compute_total_loss(*batch.all)
    assert "adversarial_loss" not in losses
    model = small_model()
    assert model.critics is None and not any("critic" in name for name in model.state_dict())
    assert "adversarial_loss" not in model.train().compute_total_loss(*batch.all)[0]


class Squares(ToySource):
    """Episodes of 32 x 32 frames."""

    def __init__(self) -> None:
        super().__init__(episodes=6, length=12)
        self.spec = EpisodeSpec(image_shape=(3, 32, 32), action_size=2, domain="toy", task="square")
        self.frames = np.kron(self.frames, np.ones((4, 4), np.uint8))


def test_resuming_with_the_second_player_is_bit_exact(tmp_path: Path) -> None:
    config = {"batch_size": 4, "sequence_length": 4, "steps": 6, "log_every": 1, "validate_every": 0, "seed": 3}
    quiet = {"tensorboard": False, "show_progress": False}

    def run(path: Path, steps_by_session: list[int]) -> dict[str, torch.Tensor]:
        for session, until in enumerate(steps_by_session):
            model = model_with_critics()
            step = model.training_step_sequence
            calls = 0

            def interrupted(*args: object, until: int = until, step=step, **values: object) -> object:
                nonlocal calls
                if calls == until:
                    raise KeyboardInterrupt
                calls += 1
                return step(*args, **values)

            model.training_step_sequence = interrupted  # type: ignore[method-assign]
            options = TrainConfig(**config, checkpoint_every=1)
            try:
                train(model, Squares(), options, path, resume=session > 0, **quiet)
            except KeyboardInterrupt:
                assert session + 1 < len(steps_by_session)
        assert model.opponent is not None
        state = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
        for index, parameter in enumerate(model.critics.parameters()):
            state |= {f"{index}/{key}": value for key, value in model.opponent.optimizer.state[parameter].items()}
        return state

    whole, parts = run(tmp_path / "whole", [99]), run(tmp_path / "parts", [3, 99])
    assert whole.keys() == parts.keys() and any(key.endswith("exp_avg") for key in whole)
    for name, tensor in whole.items():
        assert torch.equal(tensor, parts[name]), name


def test_a_checkpoint_without_the_second_players_state_is_refused(tmp_path: Path) -> None:
    from aime.training.checkpoint import Checkpoint
    from aime.training.session import start_session
    from aime.training.training_state import capture, restore

    model = model_with_critics()
    session = start_session(
        model, Squares(), TrainConfig(batch_size=4, sequence_length=4, steps=6), torch.device("cpu")
    )
    model.training_step_sequence(*sequences(4).all)
    parts = (session.data.loader, session.counters, session.guard, session.generator)
    saved = capture(model, *parts)
    assert any(name.startswith("opponent/critics.video") for name in saved.tensors)
    damaged = dict(saved.tensors)
    name = next(name for name in damaged if name.startswith("opponent/") and name.endswith("exp_avg"))
    del damaged[name]
    with pytest.raises(ValueError, match="expected exp_avg, exp_avg_sq, step"):
        restore(Checkpoint(damaged, saved.values), model, parts[0], *parts[2:])


def test_both_learning_rates_follow_the_schedule() -> None:
    from aime.training.session import start_session

    session = start_session(
        model_with_critics(), Squares(), TrainConfig(batch_size=4, sequence_length=4, steps=6), torch.device("cpu")
    )
    session.set_learning_rates(0.5)
    own, other = session.optimizers
    peak = TrainConfig(steps=6).learning_rate
    assert {group["lr"] for group in other.param_groups} == {0.5 * 0.1 * peak}
    assert 0.5 * peak in {group["lr"] for group in own.param_groups}
