"""Examples and templates that the original's documents give beside their cards."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch

from aime.documented_names import SAID, RetiredArgumentWarning
from tests.legacy.test_snippets import THIN


@pytest.mark.parametrize(
    "template",
    [
        {"max_components": 5, "latent_dim": 16, "hidden_dim": 64, "context_dim": 32, "num_attention_slots": 3}
        | {"batch_size": 4, "sequence_length": 8},
        {"max_components": 15, "input_dim": 64, "latent_dim": 36, "hidden_dim": 512, "attention_dim": 64}
        | {"action_dim": 6, "sequence_length": 16, "num_latent_perceiver": 128, "num_latent_channels_perceiver": 256}
        | {"num_codebook_perceiver": 1024, "perceiver_code_dim": 256, "downsample_perceiver": 4}
        | {"attention_resolution": 21, "num_semantic_slots": 4, "batch_size": 8, "learning_rate": 0.0002}
        | {"grad_clip": 5.0, "warmup_epochs": 25},
    ],
    ids=["minimal", "default"],
)
def test_configuration_templates_build_the_model_that_they_say(template: dict[str, Any]) -> None:
    from world_model import DPGMMVariationalRecurrentAutoencoder

    thin = {name: value for name, value in THIN.items() if name != "downsample_perceiver"}
    model = DPGMMVariationalRecurrentAutoencoder(**thin, **template, device="cpu")
    config = model.config
    slots = template.get("num_attention_slots", template.get("num_semantic_slots"))
    assert (config.max_components, config.latent_dim, config.num_slots) == (
        template["max_components"],
        template["latent_dim"],
        slots,
    )
    assert config.context_dim == template.get("context_dim", template.get("num_latent_channels_perceiver"))
    assert model.training_options["batch_size"] == template["batch_size"]
    assert model.training_options["sequence_length"] == template["sequence_length"]


def test_every_argument_of_the_original_constructor_at_once() -> None:
    from VRNN.dpgmm_stickbreaking_prior_vrnn import DPGMMVariationalRecurrentAutoencoder

    named: dict[str, Any] = {
        "max_components": 15,
        "input_dim": 64,
        "latent_dim": 36,
        "hidden_dim": 32,
        "attention_dim": 16,
        "action_dim": 6,
        "sequence_length": 16,
        "img_perceiver_channels": 16,
        "img_disc_layers": 1,
        "disc_num_heads": 4,
        "device": "cpu",
        "patch_size": 16,
        "input_channels": 3,
        "learning_rate": 1e-5,
        "grad_clip": 10.0,
        "prior_alpha": 1.0,
        "prior_beta": 10.0,
        "weight_decay": 1e-5,
        "use_orthogonal": True,
        "number_lstm_layer": 3,
        "context_window_size": 10,
        "attention_resolution": 21,
        "warmup_epochs": 25,
        "dropout": 0.1,
        "num_encoder_perceiver_layers": 1,
        "num_perceiver_heads": 8,
        "num_latent_perceiver": 8,
        "num_latent_channels_perceiver": 128,
        "num_codebook_perceiver": 64,
        "perceiver_code_dim": 16,
        "downsample_perceiver": 4,
        "perceiver_lr_multiplier": 1.5,
    }
    SAID.clear()
    with pytest.warns(RetiredArgumentWarning) as seen:
        model = DPGMMVariationalRecurrentAutoencoder(**named)
    assert sorted(str(warning.message).split("=")[0].split(": ")[1] for warning in seen) == ["dropout", "patch_size"]
    assert all(warning.filename == __file__ for warning in seen)
    config = model.config
    assert (config.patch_size, config.downsample, config.num_lstm_layers, config.context_window) == (4, 4, 3, 10)
    assert (config.prior_alpha, config.prior_beta, config.critic_layers) == (1.0, 10.0, 1)
    assert model.optimizer.defaults["lr"] == 1e-5
    own = DPGMMVariationalRecurrentAutoencoder(**(THIN | {"patch_size": 8, "critic_layers": 1}))
    assert own.config.patch_size == 8


def test_shapes_of_every_output_are_printed() -> None:
    from tests.legacy.test_snippets import small

    outputs = small().forward_sequence(torch.zeros(1, 3, 3, 64, 64), torch.zeros(1, 3, 6))
    shapes = {}
    for key, value in outputs.items():
        if isinstance(value, list) and len(value) > 0:
            if isinstance(value[0], torch.Tensor):
                shapes[key] = (len(value), *value[0].shape)
        elif isinstance(value, torch.Tensor):
            assert not torch.isnan(value).any() and not torch.isinf(value).any(), key
            shapes[key] = tuple(value.shape)
    assert shapes["latents"] == (1, 3, 36) and shapes["context_states"] == (3, 1, 24)


def test_the_critics_are_made_and_called_as_documented() -> None:
    from src.models import ImageDiscriminator, TemporalDiscriminator

    SAID.clear()
    sizes = {"input_channels": 3, "image_size": 64, "hidden_dim": 32, "n_layers": 1, "n_heads": 4, "z_dim": 6}
    with pytest.warns(RetiredArgumentWarning) as seen:
        critic = TemporalDiscriminator(
            **sizes,
            max_sequence_length=32,
            patch_size=8,
            film_scale=0.5,
            device="cpu",
            use_rope_temporal=True,
            rope_base=1e4,
        )
    assert len(seen) == 4
    x, z = torch.randn(2, 5, 3, 64, 64), torch.randn(2, 5, 6)
    scores = critic(x, z, sequence_lengths=None, return_features=True)
    shapes = {name: tuple(scores[name].shape) for name in ("temporal_score", "per_frame_scores", "hidden_3d")}
    assert shapes == {"temporal_score": (2, 1), "per_frame_scores": (2, 5, 1), "hidden_3d": (2, 5, 1, 32)}
    assert scores["sequence_lengths"].tolist() == [5, 5]
    parts = scores["temporal_score"] + scores["spatial_score"] + scores["per_frame_scores"].mean(1)
    torch.testing.assert_close(scores["final_score"], parts)
    few = critic(x, z, torch.tensor([5, 3]))
    assert few["sequence_lengths"].tolist() == [5, 3] and "features" not in few
    torch.testing.assert_close(few["final_score"][1:], critic(x[1:, :3], z[1:, :3])["final_score"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = ImageDiscriminator(input_nc=3, ndf=4, n_layers=3, use_actnorm=False, device="cpu")
    assert image(x[:, 0]).shape == (2, 1, 8, 8)


@pytest.mark.parametrize("adversarial", [True, False])
def test_a_training_step_with_the_weights_of_the_documents(adversarial: bool) -> None:
    from tests.world_model.conftest import sequences, small_model

    sizes = {"critic_channels": 4, "critic_dim": 8, "critic_layers": 1, "critic_heads": 2}
    model, batch = small_model(adversarial=adversarial, **sizes).train(), sequences(4)
    weights = {"lambda_img": 0.2, "lambda_recon": 1, "lambda_att_dyn": 0.75, "lambda_gram": 0.25}
    metrics = model.training_step_sequence(
        batch.observations, batch.actions, beta=1, n_critic=3, entropy_weight=0.5, **weights
    )
    assert float(metrics["finite"]) == 1 and bool(torch.isfinite(metrics["total_loss"]))
    assert (model.opponent is not None) == adversarial
    if model.opponent is not None:
        taken = {int(state["step"]) for state in model.opponent.optimizer.state.values()}
        assert taken == {3}


def test_slots_are_drawn_where_they_are() -> None:
    from attention_schema import AttentionPosterior

    posterior = AttentionPosterior(image_size=64, attention_resolution=8, hidden_dim=4, context_dim=4)
    maps = torch.full((1, 2, 8, 8), 1e-4)
    maps[0, 0, :, :4], maps[0, 1, :, 4:] = 1.0, 1.0  # the left half is the first slot's, the right half the second's
    centers = torch.tensor([[[-0.5, 0.0], [0.5, 0.0]]])
    frame = torch.zeros(1, 3, 64, 64)
    drawn = posterior.visualize_multi_object_attention(
        observation=frame,
        slot_attention_maps=maps,
        slot_centers=centers,
        group_assignments=maps.movedim(1, -1),
        return_mode="all",
    )
    overlays, painted, contours = (
        drawn[name] for name in ("slot_overlays", "semantic_segmentation", "combined_with_contours")
    )
    assert overlays.shape == (2, 3, 64, 64) and painted.shape == contours.shape == (1, 3, 64, 64)
    assert float(overlays[0, :, :, :20].abs().min()) > 0.5 and float(overlays[0, :, :, 44:].abs().max()) < 0.01
    left, right = painted[0, :, :, :32].flatten(1), painted[0, :, :, 32:].flatten(1)
    assert torch.equal(left, left[:, :1].expand_as(left)) and torch.equal(right, right[:, :1].expand_as(right))
    assert not torch.equal(left[:, 0], right[:, 0])
    coloured = contours[0].abs().sum(0) > 0  # (H, W): the border, one pixel wide, and two marks of 3 x 3
    assert coloured[:, 32].all() and int(coloured.sum()) == 64 + 2 * 9
    assert coloured[32, 16] and coloured[32, 48]
    single = posterior.visualize_multi_object_attention(frame, maps, centers, return_mode="slot_overlays")
    assert list(single) == ["slot_overlays"]
    with pytest.raises(ValueError, match="return_mode: expected all, slot_overlays, .* found 'some'"):
        posterior.visualize_multi_object_attention(frame, maps, centers, return_mode="some")


def test_the_example_of_the_attention_prior_gives_maps() -> None:
    from attention_schema import AttentionPrior

    prior = AttentionPrior(
        attention_resolution=21, hidden_dim=256, latent_dim=32, motion_kernels=8, use_checkpoint=True
    )
    noise = torch.randn(2, 21, 21, generator=torch.Generator().manual_seed(0))  # no map: it is not positive
    predicted, info = prior(noise, torch.randn(2, 256), torch.randn(2, 32))
    torch.testing.assert_close(predicted.sum((1, 2)), torch.ones(2))
    assert float(predicted.detach().min()) > 0 and info["predicted_movement"][0].shape == (2, 21, 21)
    truth = torch.softmax(noise.flatten(1), -1).view_as(noise)
    h, z = torch.zeros(2, 256), torch.zeros(2, 32)
    torch.testing.assert_close(prior(2 * truth, h, z)[0], prior(truth, h, z)[0])


def test_the_codes_of_a_tokenizer() -> None:
    from perceiver_io import VQPTTokenizer

    tokenizer = VQPTTokenizer(num_codes=32, code_dim=8, downsample=16, base_channels=4)
    assert tokenizer.vq.codebook.shape[-2:] == (32, 8)
