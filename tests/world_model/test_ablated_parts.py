"""A model without one of its parts, or with latent groups, is a whole one: it trains, observes, imagines, is stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from aime.ranges import OptionError
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, SequenceNoise, WorldModelConfig
from aime.world_model.inference import perceive, read_attention
from tests.world_model.conftest import sequences, small_model
from tests.world_model.test_model import remembered

ARMS = [
    {"max_components": 1},
    {"context_in_posterior": False},
    {"attention_in_posterior": False},
    {"attention_reading": "map"},
    {"attention_reading": "slots_and_map", "attention_balance": 0.2},
    {"latent_groups": 2},
    {"latent_groups": 3, "max_components": 1},
    {"max_components": 1, "context_in_posterior": False, "attention_in_posterior": False},
]


@pytest.mark.parametrize("arm", ARMS)
def test_it_trains_on_frames_and_on_memories_and_moves_all_it_has(arm: dict[str, object]) -> None:
    model, batch = small_model(**arm).train(), sequences(6, batch=4)
    model.initialise_from_data(batch.observations.flatten(0, 1), torch.Generator().manual_seed(0))
    model.configure_optimizer(learning_rate=3e-3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    history = [model.training_step_sequence(*batch.all, generator=generator) for _ in range(12)]
    assert all(float(step["finite"]) == 1.0 for step in history)
    assert float(history[-1]["recon_loss"]) < float(history[0]["recon_loss"])
    assert float(model.rehearse(remembered(4), 2, generator=generator)["rehearsal_finite"]) == 1.0
    same = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert same <= {"mean_image", "pixel_spread"}


@pytest.mark.parametrize("arm", ARMS)
def test_steps_equal_observe_and_imagination_equals_the_sequence_pass(arm: dict[str, object], tmp_path: Path) -> None:
    small_model(**arm).save_pretrained(tmp_path)
    model = DPGMMVariationalRecurrentAutoencoder.from_pretrained(tmp_path)
    batch = sequences(6)
    noise = SequenceNoise.draw(model.config, 2, 6, model.mean_image, torch.Generator().manual_seed(3))
    outputs = model.forward_sequence(*batch.all, noise=noise)
    states = model.observe(batch.observations, batch.actions, noise=noise)
    torch.testing.assert_close(states.latent, outputs["latents"], rtol=0, atol=1e-5)
    state = model.initial_state(2)
    for t in range(6):
        state = model.step(state, batch.observations[:, t], batch.actions[:, t], noise=noise.at(t, t + 1))
        for name in ("hidden", "latent", "context", "attention_map", "attention_hidden"):
            torch.testing.assert_close(getattr(state, name), getattr(states, name)[:, t], rtol=0, atol=1e-5)
    imagined = model.imagine(states.at(2), batch.actions[:, 3:], forced_latents=states.latent[:, 3:])
    torch.testing.assert_close(imagined["observations"], outputs["reconstructions"][:, 3:], rtol=0, atol=1e-5)
    nothing = model.imagine(states.at(2), batch.actions[:, 3:], horizon=0)
    assert {n: v.shape[2:] for n, v in nothing.items()} == {n: v.shape[2:] for n, v in imagined.items()}


def test_what_is_left_out_costs_neither_parameters_nor_a_task() -> None:
    whole, batch = small_model(), sequences(3)
    names = {name.partition(".")[0] for name, _ in whole.named_parameters()}
    found = {}
    for part in ("context_in_posterior", "attention_in_posterior"):
        model = small_model(**{part: False})
        outputs = model.forward_sequence(*batch.all)
        _, tasks = model.loss_aggregator.compute_losses(outputs)
        missing = names - {name.partition(".")[0] for name, _ in model.named_parameters()}
        found[part] = (missing, list(tasks), "token_ids" in outputs, "attention_maps" in outputs)
    assert found == {
        "context_in_posterior": ({"perceiver", "context_predictor"}, ["elbo", "predictive"], False, True),
        "attention_in_posterior": ({"attention"}, ["elbo", "perceiver", "predictive"], True, False),
    }
    neither = small_model(context_in_posterior=False, attention_in_posterior=False)
    _, tasks = neither.loss_aggregator.compute_losses(neither.forward_sequence(*batch.all))
    assert list(tasks) == ["elbo"]


def test_what_is_read_of_the_attention_is_all_that_reaches_the_posterior() -> None:
    config = small_model().config
    found = {}
    for reading in ("slots", "map", "slots_and_map"):
        model, batch = small_model(attention_reading=reading), sequences(2)
        reads = dict[str, bool]()
        for name in ("slots", "map"):
            seen = perceive(model, batch.observations)
            assert seen.attention is not None
            altered = dataclasses.replace(seen.attention, **{name: getattr(seen.attention, name) + 0.1})
            conditions = [read_attention(attention, reading) for attention in (seen.attention, altered)]
            assert conditions[0].shape == (4, model.config.attention_size)
            reads[name] = not torch.equal(*conditions)
        found[reading] = (model.config.attention_size, reads)
    slots, cells = config.num_slots * config.attention_channels, config.attention_resolution**2
    assert found == {
        "slots": (slots + 2, {"slots": True, "map": False}),
        "map": (cells + 2, {"slots": False, "map": True}),
        "slots_and_map": (slots + cells + 2, {"slots": True, "map": True}),
    }


@pytest.mark.parametrize("balance", [0.0, 0.2])
def test_the_forecast_of_maps_moves_them_by_its_balance(balance: float) -> None:
    model, batch = small_model(attention_balance=balance), sequences(4)
    outputs = model.forward_sequence(*batch.all)
    plain = small_model().forward_sequence(*batch.all)["attention_losses"]
    torch.testing.assert_close(outputs["attention_losses"], plain)  # the balance is the gradient's alone
    outputs["attention_losses"].mean().backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert any(name.startswith("attention.prior_net.") for name in moved)
    posterior = {name for name in moved if name.startswith(("attention.posterior_net.", "encoder."))}
    assert bool(posterior) == (balance > 0)


def test_precision_weights_need_the_map() -> None:
    with pytest.raises(OptionError, match="precision_weighting: expected False without attention_in_posterior"):
        WorldModelConfig(precision_weighting=True, attention_in_posterior=False)
