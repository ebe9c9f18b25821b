"""Properties of the assembled world model."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from aime.encoder_decoder import Posterior
from aime.multi_task_learning import LossAggregator
from aime.world_model import (
    DPGMMVariationalRecurrentAutoencoder,
    RememberedSequences,
    SequenceNoise,
    WorldModelConfig,
)
from aime.world_model.generation import foresee
from aime.world_model.inference import infer
from aime.world_model.rehearsal import rehearsal_loss
from tests.world_model.conftest import SMALL, sequences, small_model
from tests.world_model.oracle import forward_per_frame

Model = DPGMMVariationalRecurrentAutoencoder


def noise_for(model: Model, batch: int, frames: int) -> SequenceNoise:
    return SequenceNoise.draw(model.config, batch, frames, model.mean_image, torch.Generator().manual_seed(3))


@pytest.mark.parametrize("likelihood", ["gaussian", "mixture_of_logistics"])
def test_sequence_pass_equals_the_per_frame_oracle(likelihood: str) -> None:
    model, batch = small_model(likelihood=likelihood), sequences(5)
    noise = noise_for(model, 2, 5)
    fast = model.forward_sequence(*batch.all, noise=noise)
    slow = forward_per_frame(model, *batch.all, noise)
    assert torch.equal(fast["token_ids"], slow["token_ids"])
    for name in (
        "latents",
        "hidden_states",
        "context_sequence",
        "predicted_contexts",
        "reconstructions",
        "attention_maps",
        "prior_attention_maps",
        "predicted_movements",
    ):
        torch.testing.assert_close(
            fast[name], slow[name], rtol=0, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    aggregator = LossAggregator()
    fast_losses, _ = aggregator.compute_losses(fast)
    slow_losses, _ = aggregator.compute_losses(slow | {"cluster_entropies": fast["cluster_entropies"]})
    for name, value in fast_losses.items():
        # Relative: the reconstruction term is a sum over thousands of pixels.
        torch.testing.assert_close(
            value, slow_losses[name], rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_gradients_equal_those_of_the_oracle() -> None:
    model, batch = small_model(), sequences(4)
    noise = noise_for(model, 2, 4)
    gradients = []
    for outputs in (model.forward_sequence(*batch.all, noise=noise), forward_per_frame(model, *batch.all, noise)):
        losses, _ = LossAggregator().compute_losses(outputs, entropy_weight=0.0)
        gradients.append(torch.autograd.grad(losses["total_loss"], model.trainable, allow_unused=True))
    for (name, _), fast, slow in zip(
        ((n, p) for n, p in model.named_parameters() if p.requires_grad), *gradients, strict=True
    ):
        assert (fast is None) == (slow is None), name
        if fast is not None and slow is not None:
            scale = max(float(slow.abs().max()), 1e-2)
            torch.testing.assert_close(
                fast / scale, slow / scale, rtol=0, atol=2e-4, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("changed", [1, 3])
def test_a_changed_frame_changes_nothing_before_it(changed: int, model: Model) -> None:
    batch, noise = sequences(5), noise_for(model, 2, 5)
    other = batch.observations.clone()
    other[:, changed] = 255 - other[:, changed]
    before = model.forward_sequence(batch.observations, batch.actions, noise=noise)
    after = model.forward_sequence(other, batch.actions, noise=noise)
    for name in ("context_sequence", "latents", "hidden_states", "attention_maps", "reconstructions"):
        torch.testing.assert_close(before[name][:, :changed], after[name][:, :changed], rtol=0, atol=0)
        assert not torch.equal(before[name][:, changed], after[name][:, changed])
    # The prior of the changed frame has not seen it either.
    for name in ("prior_attention_maps", "predicted_contexts", "previous_hidden_states"):
        torch.testing.assert_close(before[name][:, : changed + 1], after[name][:, : changed + 1], rtol=0, atol=0)


def test_an_action_acts_on_the_frames_after_it_only(model: Model) -> None:
    batch, noise = sequences(5), noise_for(model, 2, 5)
    other = batch.actions.clone()
    other[:, 2] += 1.0
    before = model.forward_sequence(batch.observations, batch.actions, noise=noise)
    after = model.forward_sequence(batch.observations, other, noise=noise)
    torch.testing.assert_close(before["reconstructions"][:, :3], after["reconstructions"][:, :3], rtol=0, atol=0)
    torch.testing.assert_close(before["hidden_states"][:, :2], after["hidden_states"][:, :2], rtol=0, atol=0)
    assert not torch.equal(before["hidden_states"][:, 2], after["hidden_states"][:, 2])
    assert not torch.equal(before["reconstructions"][:, 3], after["reconstructions"][:, 3])


def test_observe_equals_the_sequence_pass_and_steps_equal_observe(model: Model) -> None:
    batch, noise = sequences(6), noise_for(model, 2, 6)
    outputs = model.forward_sequence(batch.observations, batch.actions, noise=noise)
    states = model.observe(batch.observations, batch.actions, noise=noise)
    torch.testing.assert_close(states.hidden, outputs["hidden_states"], rtol=0, atol=1e-5)
    torch.testing.assert_close(states.latent, outputs["latents"], rtol=0, atol=1e-5)
    torch.testing.assert_close(states.attention_map, outputs["attention_maps"], rtol=0, atol=1e-5)
    state = model.initial_state(2)
    for t in range(6):
        state = model.step(state, batch.observations[:, t], batch.actions[:, t], noise=noise.at(t, t + 1))
        for name in ("hidden", "lstm_cell", "latent", "context", "attention_map", "attention_hidden"):
            torch.testing.assert_close(getattr(state, name), getattr(states, name)[:, t], rtol=0, atol=1e-5)


def test_imagine_equals_observe_under_forced_latents(model: Model) -> None:
    batch, noise = sequences(7), noise_for(model, 2, 7)
    states = model.observe(batch.observations, batch.actions, noise=noise)
    imagined = model.imagine(states.at(2), batch.actions[:, 3:], forced_latents=states.latent[:, 3:])
    torch.testing.assert_close(imagined["hidden_states"], states.hidden[:, 3:], rtol=0, atol=1e-5)
    outputs = model.forward_sequence(batch.observations, batch.actions, noise=noise)
    torch.testing.assert_close(imagined["observations"], outputs["reconstructions"][:, 3:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("horizon", [0, 2])
def test_a_horizon_within_the_actions_is_kept(model: Model, horizon: int) -> None:
    states = model.observe(*sequences(3).all[:2])
    imagined = model.imagine(states.at(-1), torch.zeros(2, 4, 2), horizon=horizon)
    assert imagined["observations"].shape == (2, horizon, 3, 32, 32)
    assert {name: value.shape[1] for name, value in imagined.items()} == dict.fromkeys(imagined, horizon)
    full = model.imagine(states.at(-1), torch.zeros(2, 1, 2))
    assert full.keys() == imagined.keys()
    assert all(full[name].shape[2:] == imagined[name].shape[2:] for name in full)


def test_first_imagined_attention_is_the_prior_of_the_sequence_pass(model: Model) -> None:
    batch, noise = sequences(5), noise_for(model, 2, 5)
    outputs = model.forward_sequence(batch.observations, batch.actions, noise=noise)
    states = model.observe(batch.observations, batch.actions, noise=noise)
    imagined = model.imagine(states.at(2), batch.actions[:, 3:4])
    torch.testing.assert_close(
        imagined["attention_maps"][:, 0], outputs["prior_attention_maps"][:, 3], rtol=0, atol=1e-5
    )


def test_imagine_with_a_policy_and_reproducible_samples(model: Model) -> None:
    state = model.observe(*sequences(3).all[:2]).at(-1)
    policy = lambda arrived: arrived.latent[:, :2]  # noqa: E731
    runs = [model.imagine(state, policy, horizon=4, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert runs[0]["observations"].shape == (2, 4, 3, 32, 32)
    assert runs[0]["rewards"].shape == runs[0]["continues"].shape == (2, 4)
    assert torch.equal(runs[0]["latents"], runs[1]["latents"])
    other = model.imagine(state, policy, horizon=4, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(runs[0]["latents"], other["latents"])


@pytest.mark.parametrize(("batch", "frames", "size"), [(1, 2, 64), (1, 2, 84), (2, 50, 64), (1, 1, 64), (1, 50, 84)])
def test_any_batch_length_and_size(batch: int, frames: int, size: int) -> None:
    model = small_model(image_size=size)
    data = sequences(frames, batch, size)
    outputs = model.forward_sequence(*data.all)
    assert outputs["reconstructions"].shape == data.observations.shape
    if frames > 1:
        losses, _ = model.compute_total_loss(*data.all)
        assert all(bool(torch.isfinite(value)) for value in losses.values())


def test_strict_state_dict_round_trip_before_any_forward(tmp_path: Path) -> None:
    model = small_model()
    model.save_pretrained(tmp_path)
    loaded = Model.from_pretrained(tmp_path)
    assert loaded.config == model.config
    batch, noise = sequences(3), noise_for(model, 2, 3)
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
    first = model.forward_sequence(*batch.all, noise=noise)["reconstructions"]
    torch.testing.assert_close(
        loaded.forward_sequence(*batch.all, noise=noise)["reconstructions"], first, rtol=0, atol=0
    )
    assert set(loaded.state_dict()) == set(Model(model.config).state_dict())


def test_training_steps_reduce_the_loss_and_touch_every_parameter() -> None:
    model = small_model(gram_frames=2).train()
    batch = sequences(6, batch=4)
    model.initialise_from_data(batch.observations.flatten(0, 1), torch.Generator().manual_seed(0))
    model.configure_optimizer(learning_rate=3e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    history = [model.training_step_sequence(*batch.all, generator=generator) for _ in range(25)]
    assert all(float(step["finite"]) == 1.0 for step in history)
    assert float(history[-1]["recon_loss"]) < float(history[0]["recon_loss"])
    unchanged = [
        name
        for name, value in model.state_dict().items()
        if torch.equal(value, before[name]) and name not in ("mean_image", "pixel_spread")
    ]
    assert unchanged == []


def test_a_step_with_nan_changes_nothing() -> None:
    model = small_model(gram_frames=2).train()
    model.configure_optimizer()
    batch = sequences(4)
    model.training_step_sequence(*batch.all)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rewards = batch.rewards.clone()
    rewards[0, 0] = float("nan")
    metrics = model.training_step_sequence(batch.observations, batch.actions, rewards, batch.continues)
    assert float(metrics["finite"]) == 0.0
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == []


def remembered(batch: int = 3, frames: int = 7, seed: int = 0) -> RememberedSequences:
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(batch, frames, SMALL["latent_dim"], generator=generator)
    return RememberedSequences(mean, torch.full_like(mean, -2.0), torch.randn(batch, frames, 2, generator=generator))


def test_rehearsal_of_frames_that_were_seen_is_the_kl_of_the_sequence_pass(model: Model) -> None:
    sequences = remembered()
    length = sequences.mean.shape[1]
    generator = torch.Generator().manual_seed(1)
    estimates = [
        float(rehearsal_loss(model, sequences, length, kl_samples=64, generator=generator).detach()) for _ in range(20)
    ]
    rows = []
    for _ in range(20):
        posterior = Posterior(sequences.mean, sequences.log_scale)
        latent = posterior.rsample(torch.randn(posterior.mean.shape, generator=generator))
        states = infer(model, latent, sequences.actions)
        noise = torch.randn(64, *latent.shape, generator=generator)
        found = foresee(
            model, posterior, states.previous_hidden, states.previous_latent, kl_noise=noise, generator=generator
        )
        rows.append(float((found.kl + model.prior.stick_kl(found.prior)).mean().detach()))
    error = (np.var(estimates) / 20 + np.var(rows) / 20) ** 0.5
    assert abs(np.mean(estimates) - np.mean(rows)) < 4 * error


def test_rehearsal_trains_recurrence_and_prior_through_its_own_rollout() -> None:
    model = small_model().train()
    model.configure_optimizer(learning_rate=3e-3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    losses = [float(model.rehearse(remembered(16), 2, generator=generator)["rehearsal_loss"]) for _ in range(60)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    moved = {name.partition(".")[0] for name, value in model.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"dynamics", "prior", "persistence"}
    # A rollout is differentiable: the action of a rolled frame moves the loss of later frames.
    sequences = remembered()
    sequences.actions.requires_grad_()
    rehearsal_loss(model, sequences, 2, generator=generator).backward()
    assert sequences.actions.grad is not None
    assert float(sequences.actions.grad[:, 3].abs().sum()) > 0
    assert float(sequences.actions.grad[:, -1].abs().sum()) == 0  # no frame follows the last action


def test_a_rehearsal_with_nan_changes_nothing() -> None:
    model = small_model().train()
    model.configure_optimizer()
    sequences = remembered()
    sequences.mean[0, 0, 0] = float("nan")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert float(model.rehearse(sequences, 3)["rehearsal_finite"]) == 0.0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_documented_names_build_the_same_model_and_unknown_ones_name_the_near() -> None:
    config = WorldModelConfig.from_names(action_dim=3, input_dim=64, n_lstm_layers=2, num_attention_slots=5)
    assert (config.action_size, config.image_size, config.num_lstm_layers, config.num_slots) == (3, 64, 2, 5)
    with pytest.raises(TypeError, match="unknown world model option 'latnt_dim'; did you mean latent_dim"):
        WorldModelConfig.from_names(latnt_dim=3)
    with pytest.raises(TypeError, match="'action_size' is given twice"):
        WorldModelConfig.from_names(action_dim=3, action_size=3)
    with pytest.raises(ValueError, match="expected one of laptop, pillars, tier1, tier2, tier3, found 'desktop'"):
        WorldModelConfig.preset("desktop")


@pytest.mark.parametrize("preset", ["laptop", "pillars", "tier1", "tier2", "tier3"])
def test_presets_build_and_survive_json(preset: str) -> None:
    config = WorldModelConfig.preset(preset, action_size=3)
    assert WorldModelConfig.from_dict(config.to_dict()) == config


def test_clear_errors(model: Model, tmp_path: Path) -> None:
    batch = sequences(3)
    with pytest.raises(
        ValueError, match=r"observations: expected \(B, T, C=3, H=32, W=32\), found \(B=2, T=3, C=3, H=64"
    ):
        model.forward_sequence(sequences(3, size=64).observations, batch.actions)
    with pytest.raises(ValueError, match=r"actions: expected \(B=2, T=3, A=2\), found \(B=2, T=3, A=1\)"):
        model.forward_sequence(batch.observations, batch.actions[..., :1])
    with pytest.raises(ValueError, match="from imagination or from inside a trajectory"):
        model.step(model.observe(*batch.all[:2]).at(0), batch.observations[:, 0], batch.actions[:, 0])
    with pytest.raises(ValueError, match="horizon: expected a number of frames of at least 0, found -1"):
        model.imagine(model.initial_state(2), batch.actions, horizon=-1)
    with pytest.raises(ValueError, match="at most the 3 actions given, found 9"):
        model.imagine(model.initial_state(2), batch.actions, horizon=9)
    with pytest.raises(ValueError, match="a number of frames together with a policy"):
        model.imagine(model.initial_state(2), lambda state: state.latent)
    with pytest.raises(FileNotFoundError, match=r"expected a directory with config\.json"):
        Model.from_pretrained(tmp_path)
    with pytest.raises(TypeError, match="either a config or names"):
        Model(WorldModelConfig.from_names(**SMALL), latent_dim=3)


def test_manifold_keeps_the_recurrent_blocks_orthogonal_under_training() -> None:
    pytest.importorskip("geoopt")
    torch.manual_seed(0)
    model = Model(WorldModelConfig.from_names(**(SMALL | {"orthogonal": "manifold"}))).train()
    model.configure_optimizer(learning_rate=3e-3)
    batch = sequences(4)
    before = model.dynamics.lstm.weight_hh_l0.detach().clone()
    for _ in range(5):
        model.training_step_sequence(*batch.all)
    weight = model.dynamics.lstm.weight_hh_l0.detach()
    assert not torch.equal(weight, before)
    for block in weight.chunk(4):
        torch.testing.assert_close(block @ block.mT, torch.eye(block.shape[0]), rtol=0, atol=1e-4)


def test_training_decodes_a_share_of_the_frames_and_evaluation_all() -> None:
    model, batch = small_model(decoded_share=0.5), sequences(6)
    noise = noise_for(model, 2, 6)
    plain = model.forward_sequence(*batch.all, noise=noise)
    outputs = model.train().forward_sequence(*batch.all, noise=noise, generator=torch.Generator().manual_seed(0))
    times = outputs["decoded_times"]
    assert plain["decoded_times"].tolist() == list(range(6))
    assert len(set(times.tolist())) == 3
    # The frames that are decoded are those of the whole pass.
    torch.testing.assert_close(outputs["reconstructions"], plain["reconstructions"][:, times], rtol=0, atol=1e-5)


def test_whitened_frames_have_unit_likelihood_where_pixels_vary_alike() -> None:
    """Pixels that vary twice as much count as much as those that do not: the likelihood divides by their spread."""
    model = small_model(likelihood="gaussian", spread_floor=1e-3)
    generator = torch.Generator().manual_seed(0)
    frames = 128 + 8 * torch.randn(512, 3, 32, 32, generator=generator)
    frames[..., 16:] = 128 + 4 * (frames[..., 16:] - 128)  # the right half varies four times as much
    model.initialise_from_data(frames.clamp(0, 255).to(torch.uint8), generator)
    whitened = model.whiten(frames[:64, None].clamp(0, 255).to(torch.uint8))
    whitened = whitened / 4.0
    left, right = whitened[..., :16].square().mean(), whitened[..., 16:].square().mean()
    assert 0.8 < float(left / right) < 1.25
    # The mean image keeps its score: the squares sum to what they did before the division.
    images = frames[:64].clamp(0, 255).round() / 127.5 - 1
    plain = (images - model.mean_image).square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(whitened.square().sum((1, 2, 3, 4)).mean(), plain, rtol=0.1, atol=0)


def test_a_configured_model_is_pickled_and_copied_with_its_own_parameters() -> None:
    model = small_model()
    model.configure_optimizer()
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.rgb_optimizer.get_share_params()[0] is other.trainable[0]
        other.train().training_step_sequence(*sequences(3).all)


def test_other_parameter_types_are_refused_by_name() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(TypeError, match=f"expected float32 parameters .* found {dtype}"):
            small_model().to(dtype).observe(*sequences(2).all[:2])


def test_outputs_are_made_when_asked_for_and_name_the_near(model: Model) -> None:
    outputs = model.forward_sequence(*sequences(3).all)
    assert "reconstructions" in outputs and set(outputs) >= {"latents", "attention_maps", "perceiver_total_loss"}
    assert outputs["reconstructions"] is outputs["reconstructions"]
    with pytest.raises(KeyError, match="found 'reconstruction'; did you mean reconstructions"):
        outputs["reconstruction"]


@pytest.mark.parametrize("stack", [1, 2, 4])
@pytest.mark.parametrize("pieces", [(6,), (1, 1, 4), (2, 4), (1, 1, 1, 1, 1, 1)])
def test_the_trunk_sees_frames_and_the_changes_before_them(stack: int, pieces: tuple[int, ...]) -> None:
    model = small_model(frame_stack=stack)
    frames = torch.randn(2, 6, 3, 32, 32)
    past = torch.cat([frames[:, :1].expand(-1, stack, -1, -1, -1), frames], 1)  # the first frame stood still
    expected = torch.cat(
        [frames]
        + [past[:, stack - k : stack - k + 6] - past[:, stack - k - 1 : stack - k + 5] for k in range(stack - 1)],
        2,
    )
    found, before = [], None
    for piece in frames.split(pieces, 1):
        stacked, before = model.stack(piece, before)
        found.append(stacked)
    torch.testing.assert_close(torch.cat(found, 1), expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"downsample": 32}, r"downsample: expected the stride of a level of the trunk, one of 4, 8, 16 .* found 32"),
        ({"encoder_channels": (8,) * 6, "downsample": 8}, "encoder_channels: expected levels that leave a cell"),
        ({"perceiver_heads": 3}, "latent_channels: expected a multiple of perceiver_heads = 3, found 64"),
        ({"spread_floor": 0.0}, "spread_floor: expected a finite number from 0.001"),
        ({"max_components": 0}, "max_components: expected a whole number from 1"),
    ],
)
def test_sizes_that_do_not_fit_each_other_are_refused_where_they_are_given(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorldModelConfig.preset("pillars", **change)
