"""What the original's documents tell a user to type, row by row: their names, smaller sizes where those cost time."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.documented_names import SAID, RetiredArgumentWarning
from aime.multi_task_learning.losses import LOSSES, TaskLoss, TaskLossValue, register_loss
from tests.training.test_documented_trainer import write_walk

#: sizes that the documents leave free
THIN: dict[str, Any] = {
    "encoder_channels": (8, 16, 16),
    "decoder_channels": (16, 16, 8),
    "cells_per_level": 0,
    "squeeze_excitation": False,
    "prior_hidden_dim": 16,
    "mlp_hidden_dim": 16,
    "latent_channels": 16,
    "num_encoder_perceiver_layers": 1,
    "num_perceiver_heads": 2,
    "downsample_perceiver": 16,
    "kl_samples": 2,
}


@pytest.fixture(scope="module")
def dmc_humanoid(tmp_path_factory) -> str:
    """data/dmc_humanoid: episodes of 64 x 64 pixels."""
    directory = tmp_path_factory.mktemp("data") / "dmc_humanoid"
    directory.mkdir()
    write_walk(directory / "humanoid_walk.h5", size=64, actions=6, episodes=4, length=20)
    return str(directory)


def card_1(device: torch.device | str = "cpu", **sizes: Any) -> Any:
    """The model as the first card makes it."""
    from VRNN.dpgmm_stickbreaking_prior_vrnn import DPGMMVariationalRecurrentAutoencoder

    torch.manual_seed(0)
    names: dict[str, Any] = {
        "max_components": 15,
        "input_dim": 64,
        "latent_dim": 36,
        "hidden_dim": 512,
        "attention_dim": 64,
        "action_dim": 6,
        "sequence_length": 16,
        "img_perceiver_channels": 64,
        "img_disc_layers": 4,
        "disc_num_heads": 4,
        "device": device,
        "num_latent_perceiver": 128,
        "num_latent_channels_perceiver": 256,
        "num_codebook_perceiver": 1024,
        "perceiver_code_dim": 256,
    }
    return DPGMMVariationalRecurrentAutoencoder(**{**names, **sizes}).to(device)


def small() -> Any:
    """The same, smaller where the first card's sizes cost time."""
    return card_1(
        hidden_dim=32,
        attention_dim=16,
        img_perceiver_channels=16,
        num_latent_perceiver=4,
        num_latent_channels_perceiver=24,
        num_codebook_perceiver=32,
        perceiver_code_dim=8,
        **THIN,
    )


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    """Observations (B, T, C, H, W) in [-1, 1] and actions (B, T, A)."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 16, 3, 64, 64, generator=generator) * 2 - 1
    return frames, torch.randn(2, 16, 6, generator=generator)


# ---------------------------------------------------------------------- the model


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_1_the_constructor_of_the_first_card(device: torch.device | str) -> None:
    config = card_1(device).config
    assert (config.max_components, config.image_size, config.latent_dim, config.hidden_dim) == (15, 64, 36, 512)
    assert (config.attention_channels, config.action_size, config.tokenizer_channels) == (64, 6, 64)
    assert (config.num_latents, config.context_dim, config.num_codes, config.code_dim) == (128, 256, 1024, 256)


def test_2_the_short_constructor_and_a_step_of_its_loop(batch) -> None:
    from src.world_model import DPGMMVariationalRecurrentAutoencoder

    model = DPGMMVariationalRecurrentAutoencoder(max_components=15, latent_dim=36, hidden_dim=512, device="cpu")
    assert model.config.image_shape == (3, 64, 64) and model.config.action_size == 6
    assert model.config.context_dim == 256 and model.config.attention_resolution == 21
    model = DPGMMVariationalRecurrentAutoencoder(max_components=15, latent_dim=36, hidden_dim=32, device="cpu", **THIN)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    one_step_with_parts(model, optimizer, *batch)


def test_3_what_a_pass_gives(batch) -> None:
    model = small()
    outputs = model.forward_sequence(*batch)
    shapes = {
        "observations": (2, 16, 3, 64, 64),
        "reconstructions": (2, 16, 3, 64, 64),
        "latents": (2, 16, 36),
        "context": (2, 16, 24),
        "h_t": (2, 32),
        "attention_maps": (2, 16, 21, 21),
        "dpgmm_weights": (2, 15),
        "tokens": (2, 16, 4, 4),
    }
    assert {name: tuple(outputs[name].shape) for name in shapes} == shapes
    torch.testing.assert_close(outputs["observations"], batch[0], rtol=0, atol=1e-5)
    prior = outputs["prior_params"]
    assert len(prior) == 16 and prior[0]["pi"].shape == (2, 15)
    assert prior["means"].shape == prior["variances"].shape == (2, 16, 15, 36)
    torch.testing.assert_close(prior[-1]["pi"].sum(-1), torch.ones(2))
    torch.testing.assert_close(prior[-1]["pi"], outputs["dpgmm_weights"])
    torch.testing.assert_close(prior[3]["log_vars"].exp(), prior["variances"][:, 3])


CONTRACT = (
    "observations reconstructions latents hidden_states attention_maps context_sequence z_means z_logvars "
    "context_states prior_params posterior_params reconstruction_losses kl_latents kumaraswamy_kl_losses kl_losses "
    "cluster_entropies gram_enc attention_losses predicted_movements attention_diversity_losses "
    "attention_dynamics_loss K_eff slot_attention_maps slot_centers group_assignments slot_features "
    "perceiver_reconstructed_img perceiver_vq_loss perceiver_ce_loss perceiver_total_loss device vq_perplexity "
    "attention_entropy slot_usage"
)


def test_3_every_key_of_the_contract_is_there_or_says_where_it_went(batch) -> None:
    outputs = small().forward_sequence(batch[0][:, :3], batch[1][:, :3])
    for name in CONTRACT.split():
        assert outputs[name] is not None, name
    assert len(outputs["posterior_params"]) == len(outputs["context_states"]) == 3
    first = outputs["posterior_params"][0]
    torch.testing.assert_close(first["logvar"], 2 * outputs["z_log_scales"][:, 0])
    torch.testing.assert_close(outputs["group_assignments"].sum(-1), torch.ones(2, 3, 21, 21))
    assert 0 < float(outputs["attention_entropy"].detach()) <= torch.log(torch.tensor(441.0)) + 1e-4
    assert outputs["perceiver_reconstructed_img"].shape == (2, 3, 3, 64, 64)
    for name, where in {
        "attention_states": "slot_features",
        "attention_features": "slot_centers",
        "mdl_params": "reconstructions",
        "perceiver_perceptual_loss": "perceiver_reconstruction_loss",
    }.items():
        assert name not in outputs
        with pytest.raises(KeyError, match=f"'{name}' is gone: .*{where}"):
            outputs[name]


def test_4_the_losses(batch) -> None:
    losses, outputs = small().compute_total_loss(
        *batch, beta=1.0, entropy_weight=0.6, lambda_recon=1.0, lambda_att_dyn=0.1, lambda_gram=0.05
    )
    for name in ("total_loss", "total_vae_loss", "perceiver_loss", "attention_loss"):
        assert losses[name].dim() == 0 and bool(torch.isfinite(losses[name]))
    assert float(losses.get("adversarial_loss", torch.tensor(0.0))) == 0
    assert outputs["latents"].shape == (2, 16, 36)


def moved(model: Any, before: dict[str, Tensor]) -> set[str]:
    """Parts of which some parameter moved."""
    return {n.partition(".")[0] for n, p in model.named_parameters() if not torch.equal(p, before[n])}


def test_5_a_step_with_what_the_model_owns(batch) -> None:
    model = small()
    observations, actions = batch
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    codebook = model.perceiver.tokenizer.quantizer.codebook.clone()
    losses, _ = model.compute_total_loss(observations, actions)
    model.rgb_optimizer.backward(
        [
            losses["total_vae_loss"],
            losses["perceiver_loss"],
            losses["attention_loss"],
            losses.get("adversarial_loss", torch.tensor(0.0)),
        ]
    )
    model.optimizer.step()
    model.optimizer.zero_grad()
    assert moved(model, before) >= {"encoder", "decoder", "perceiver", "attention", "prior", "dynamics"}
    assert not torch.equal(codebook, model.perceiver.tokenizer.quantizer.codebook)
    assert all(parameter.grad is None for parameter in model.parameters())


def one_step_with_parts(model: Any, optimizer: Any, observations: Tensor, actions: Tensor) -> dict[str, Tensor]:
    """The step of the sixth row."""
    from multi_task_learning import RGB, LossAggregator

    rgb = RGB()
    loss_agg = LossAggregator()
    outputs = model.forward_sequence(observations, actions)
    losses_dict, task_losses = loss_agg.compute_losses(outputs, beta=1.0, lambda_recon=1.0, lambda_att_dyn=0.1)
    rgb.task_num = len(task_losses)
    rgb.device = observations.device
    rgb.rep_grad = False
    rgb.get_share_params = lambda: model.parameters()  # noqa: PLW0108
    rgb.mu, rgb.lambd, rgb.alpha_steps = 0.9, 1.0, 3
    optimizer.zero_grad()
    rgb.backward(task_losses)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
    optimizer.step()
    for name in ("total_elbo", "perceiver_loss", "total_predictive"):
        assert bool(torch.isfinite(losses_dict[name]))
    for place, name in enumerate(task_losses):
        assert task_losses[place] is task_losses[name]
    assert task_losses[:2] == [task_losses["elbo"], task_losses["perceiver"]]
    return dict(task_losses)


def test_6_a_step_with_parts_and_three_tasks(batch) -> None:
    model = small()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    tasks = one_step_with_parts(model, torch.optim.Adam(model.parameters(), lr=2e-4), *batch)
    assert list(tasks)[:3] == ["elbo", "perceiver", "predictive"]
    assert "decoder" in moved(model, before)


def test_6_a_task_more_is_picked_up(batch) -> None:
    class Stillness(TaskLoss):
        name = "stillness"

        def __call__(self, outputs: Any, weights: Any) -> TaskLossValue:
            value = outputs["latents"].diff(dim=1).square().mean()
            return TaskLossValue(value, {"stillness_loss": value})

    register_loss(Stillness)
    try:
        model = small()
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        tasks = one_step_with_parts(model, model.optimizer, *batch)
        assert "stillness" in tasks and len(tasks) >= 4
        assert "encoder" in moved(model, before)
        metrics = model.training_step_sequence(*batch)
        assert float(metrics["grad_norm/stillness"]) > 0 and "grad_cosine/elbo_stillness" in metrics
    finally:
        del LOSSES["stillness"]


def test_7_the_old_loop(batch) -> None:
    model = small()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    observations, actions = batch
    history = []
    for _ in range(3):
        losses, _ = model.compute_total_loss(observations, actions)
        optimizer.zero_grad()
        losses["total_loss"].backward()
        optimizer.step()
        history.append(float(losses["total_loss"].detach()))
    assert all(torch.isfinite(torch.tensor(history)))


def test_8_a_state_dict_goes_out_and_in(tmp_path, batch) -> None:
    model, other = small(), small()
    with torch.no_grad():
        next(iter(model.parameters())).add_(1.0)
    torch.save(model.state_dict(), tmp_path / "checkpoint.pth")
    other.load_state_dict(torch.load(tmp_path / "checkpoint.pth"))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=0, atol=0)
    optimizer = model.optimizer
    content = {"epoch": 3, "model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(content, tmp_path / "full.pth")
    checkpoint = torch.load(tmp_path / "full.pth", map_location="cpu")
    other.load_state_dict(checkpoint["model_state_dict"])
    other.optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
    assert checkpoint["epoch"] == 3


# ---------------------------------------------------------------------- its parts


def test_9_the_perceiver_alone() -> None:
    from src.perceiver_io import CausalPerceiverIO

    perceiver = CausalPerceiverIO(
        video_shape=(16, 3, 64, 64), num_latents=4, num_latent_channels=32, hidden_dim=32, context_dim=24, downsample=16
    )
    assert perceiver.extract_context(torch.zeros(2, 20, 3, 64, 64)).shape == (2, 20, 24)
    with torch.no_grad():
        made = perceiver.generate_autoregressive(torch.zeros(2, 5, 3, 64, 64), 15)  # 20 frames, trained on 16
    assert made.shape == (2, 20, 3, 64, 64)


def test_10_the_prior_and_its_distributions() -> None:
    from generative_prior import AdaptiveStickBreaking, DPGMMPrior
    from generative_prior.distributions import GammaPosterior, KumaraswamyStable

    torch.manual_seed(0)
    prior = DPGMMPrior(max_components=15, latent_dim=36, hidden_dim=64, device=torch.device("cpu"))
    h_t = torch.randn(4, 64)
    mixture_dist, params = prior(h_t)
    assert mixture_dist.sample().shape == (4, 36)
    mean, logvar = torch.zeros(4, 36), torch.full((4, 36), -1.0)
    kl = prior.compute_kl_divergence_mc(mean, logvar, params, n_samples=10)
    assert kl.shape == () and float(kl.detach()) > 0
    noise = torch.Generator().manual_seed(0)
    exact = prior.kl_divergence(mean, logvar / 2, params, num_samples=4, generator=noise).mean()
    same = prior.compute_kl_divergence_mc(mean, logvar, params, n_samples=4, generator=noise.manual_seed(0))
    torch.testing.assert_close(same, exact)
    z = torch.randn(4, 36)
    torch.testing.assert_close(mixture_dist.log_prob(z), prior.log_prob(z, params), rtol=1e-4, atol=1e-3)
    assert prior.compute_kl_loss(params, params["alpha"], h_t).shape == ()
    with pytest.raises(KeyError, match="sticks keep their order"):
        params["perm"]
    pi, info = AdaptiveStickBreaking(max_components=15, hidden_dim=64, device="cpu")(h_t)
    torch.testing.assert_close(pi.sum(-1), torch.ones(4))
    assert info["active_components"].shape == (4,) and 1 <= int(info["active_components"].min()) <= 15
    few = torch.tensor([[0.7, 0.2999, 0.0001]])
    assert prior.get_effective_components(few).tolist() == [2]
    sticks = KumaraswamyStable(torch.zeros(3), torch.zeros(3))
    assert torch.isfinite(sticks.log_prob(sticks.rsample())).all()
    assert GammaPosterior(hidden_dim=64, device=torch.device("cpu"))(h_t)[0].shape == (4,)


def test_11_attention() -> None:
    from attention_schema import AttentionPosterior, AttentionSchema, ConvGRUCell

    posterior = AttentionPosterior(
        image_size=84,
        attention_resolution=21,
        hidden_dim=32,
        context_dim=16,
        num_semantic_slots=4,
        attention_fusion_mode="weighted",
        enforce_diversity=True,
    )
    attn_probs, coords = posterior(torch.randn(2, 3, 84, 84), torch.randn(2, 32), torch.randn(2, 16))
    assert attn_probs.shape == (2, 21, 21) and coords.shape == (2, 2)
    torch.testing.assert_close(attn_probs.sum((1, 2)), torch.ones(2))
    assert posterior.slot_attention_maps.shape == (2, 4, 21, 21) and posterior.slot_centers.shape == (2, 4, 2)
    assert posterior.group_assignments.shape == (2, 21, 21, 4) and posterior.diversity_loss.dim() == 0

    schema = AttentionSchema(image_size=84, attention_resolution=21, hidden_dim=32, latent_dim=8, context_dim=16)
    maps, movements = [], []
    for t in range(3):
        frame, h_t, c_t, z_t = torch.randn(2, 3, 84, 84), torch.randn(2, 32), torch.randn(2, 16), torch.randn(2, 8)
        maps.append(schema.posterior_net(observation=frame, hidden_state=h_t, context=c_t)[0])
        if t > 0:
            predicted, info = schema.prior_net(maps[t - 1], h_t, z_t)
            assert predicted.shape == info["predicted_movement"][0].shape == (2, 21, 21)
            movements.append(info["predicted_movement"])
    assert bool(torch.isfinite(schema.compute_attention_dynamics_loss(maps, movements)))
    cell = ConvGRUCell(input_size=1, hidden_size=8, kernel_size=5, cuda_flag=True)
    assert cell(torch.zeros(2, 1, 21, 21), None).shape == (2, 8, 21, 21)


def test_11_the_dynamics_loss_of_a_motion_that_is_foreseen_is_zero() -> None:
    from attention_schema import AttentionSchema

    schema = AttentionSchema(image_size=64, attention_resolution=8, hidden_dim=8, latent_dim=4, context_dim=4)
    maps = torch.zeros(3, 1, 8, 8)
    for t in range(3):
        maps[t, 0, 2, 2 + t] = 1.0  # one cell to the right a frame
    right = torch.tensor([[1.0, 0.0]])
    assert float(schema.compute_attention_dynamics_loss(list(maps), [right, right])) == pytest.approx(0.0)
    field = right[:, :, None, None].expand(1, 2, 8, 8)
    assert float(schema.compute_attention_dynamics_loss(list(maps), [field, -field])) == pytest.approx(0.75)


def test_12_the_dataset_in_a_loader(dmc_humanoid) -> None:
    from VRNN.dmc_vb_transition_dynamics_trainer import DMCVBDataset

    dataset = DMCVBDataset(root=dmc_humanoid, sequence_length=16)
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True)
    batch = next(iter(loader))
    assert batch["observations"].shape == (8, 16, 3, 64, 64) and batch["observations"].dtype == torch.float32
    assert batch["actions"].shape == (8, 16, 6) and float(batch["observations"].abs().max()) <= 1
    assert len(DMCVBDataset(data_path=dmc_humanoid, sequence_length=16, environment="humanoid_walk")) == len(dataset)


def test_13_a_tensor_is_checked() -> None:
    from src.models import check_tensor

    check_tensor(torch.zeros(3), "z")
    with pytest.raises(ValueError, match=r"z: expected finite numbers, found 1 NaN and 1 infinite of 6, .*\(0, 2\)"):
        check_tensor(torch.tensor([[0.0, 1.0, float("nan")], [float("inf"), 0.0, 0.0]]), "z")


def test_the_recurrent_layer_steps_as_documented() -> None:
    from VRNN.lstm import LSTMLayer

    torch.manual_seed(0)
    lstm = LSTMLayer(input_size=10, hidden_size=8, n_lstm_layers=2, use_orthogonal=True)
    inputs, h, c = torch.randn(3, 4, 10), torch.zeros(2, 3, 8), torch.zeros(2, 3, 8)
    whole, (h_end, c_end) = lstm(inputs, h, c)
    for t in range(4):
        h_t, (h, c) = lstm(x=inputs[:, t], hxs=h, cxs=c, masks=torch.ones(3))
        torch.testing.assert_close(h_t, whole[:, t])
    torch.testing.assert_close(h, h_end)
    torch.testing.assert_close(c, c_end)
    fresh, _ = lstm(inputs[:, 0], torch.zeros(2, 3, 8), torch.zeros(2, 3, 8))
    masked, _ = lstm(inputs[:, 0], h, c, torch.zeros(3))
    torch.testing.assert_close(masked, fresh)


def test_the_encoder_is_called_as_documented() -> None:
    from encoder_decoder import GramLoss, VAEDecoder, VAEEncoder

    observations = torch.rand(2, 5, 3, 64, 64) * 2 - 1
    encoder = VAEEncoder(latent_dim=36, context_dim=16, image_channels=3, base_channels=4)
    z_mean, z_logvar = encoder(observations, torch.zeros(2, 5, 16))
    assert z_mean.shape == z_logvar.shape == (2, 5, 36)
    z = encoder.reparameterize(z_mean[:, 0], z_logvar[:, 0])
    decoder = VAEDecoder(latent_dim=36, image_channels=3, base_channels=4, num_mixtures=10)
    skips = encoder.get_unet_skips(observations[:, 0], levels=("C2", "C3", "C4", "C5", "C6"))
    slots = torch.rand(2, 5, 8, 8)
    logit_probs, means, log_scales, coeffs = decoder(z, skips=skips, attention_map=slots)
    assert logit_probs.shape == (2, 10, 64, 64)
    assert means.shape == log_scales.shape == coeffs.shape == (2, 10, 3, 64, 64)
    reconstruction = decoder.mdl_head.sample(logit_probs, means, log_scales, coeffs)
    assert reconstruction.shape == (2, 3, 64, 64) and float(reconstruction.abs().max()) <= 1
    same = [value.flatten(2).transpose(1, 2) for value in skips.values()]
    assert float(GramLoss()(same[0].detach(), same[0], img_level=True)) == pytest.approx(0.0)


def test_the_mixture_head_draws_from_the_density_that_the_likelihood_scores() -> None:
    from encoder_decoder import VAEDecoder

    from aime.kernels import mixture_logistics_nll

    torch.manual_seed(0)
    head = VAEDecoder(latent_dim=4, base_channels=2, num_mixtures=2).mdl_head
    logits = torch.tensor([0.5, -0.5]).view(1, 2, 1, 1)
    means = torch.tensor([[-0.4, -0.3, -0.2], [0.3, 0.2, 0.4]]).view(1, 2, 3, 1, 1)
    log_scales, coeffs = torch.full((1, 2, 3, 1, 1), -4.0), torch.full((1, 2, 3, 1, 1), 0.3)
    grown = [x.expand(-1, *x.shape[1:-2], 200, 200) for x in (logits, means, log_scales, coeffs)]
    drawn = head.sample(*grown).mean((0, 2, 3))  # (3,)
    black = torch.zeros(1, 3, 1, 1)
    expected = mixture_logistics_nll(black, logits, means, log_scales, coeffs.atanh())[1].flatten()
    torch.testing.assert_close(drawn, expected, atol=0.02, rtol=0)


# ---------------------------------------------------------------------- the cards, from top to bottom


def test_card_2_from_top_to_bottom(dmc_humanoid) -> None:
    from VRNN.dmc_vb_transition_dynamics_trainer import DMCVBDataset

    device = torch.device("cpu")
    model = small().to(device)
    loader = torch.utils.data.DataLoader(
        DMCVBDataset(root=dmc_humanoid, sequence_length=16), batch_size=4, shuffle=True
    )
    for batch in loader:
        observations = batch["observations"].to(device)
        actions = batch["actions"].to(device)
        losses, _ = model.compute_total_loss(observations, actions)
        model.rgb_optimizer.backward(
            [
                losses["total_vae_loss"],
                losses["perceiver_loss"],
                losses["attention_loss"],
                losses.get("adversarial_loss", torch.tensor(0.0)),
            ]
        )
        model.optimizer.step()
        model.optimizer.zero_grad()
        assert torch.isfinite(losses["total_vae_loss"])
        break


def test_card_4_hyperparameters_build_model_and_trainer(dmc_humanoid) -> None:
    from training import DMCVBTrainer

    capacity = {"max_components": 15, "latent_dim": 36, "hidden_dim": 32, "num_codebook_perceiver": 64}
    training = {"learning_rate": 0.0002, "batch_size": 8, "sequence_length": 16, "grad_clip": 5.0, "warmup_epochs": 25}
    weights = {"beta": 1.0, "entropy_weight": 0.6, "lambda_recon": 1.0, "lambda_att_dyn": 0.1}
    model = card_1(**{**capacity, **training}, rgb_config={"mu": 0.9, "lambd": 1.0, "alpha_steps": 3}, **THIN)
    assert (model.rgb_optimizer.mu, model.rgb_optimizer.alpha_steps) == (0.9, 3)
    assert model.optimizer.defaults["lr"] == 0.0002
    trainer = DMCVBTrainer(model, dmc_humanoid, {**training, **weights, "num_epochs": 100})
    assert (trainer.config.batch_size, trainer.config.learning_rate, trainer.config.grad_clip) == (8, 0.0002, 5.0)
    assert trainer.config.beta_warmup_fraction == 0.25 and trainer.config.balancer_options["alpha_steps"] == 3


# ---------------------------------------------------------------------- arguments


def test_every_documented_argument_of_every_class_is_accepted() -> None:
    """Walks the tables: an argument is an own one, or the table says what becomes of it, never a TypeError."""
    import importlib

    from aime.documented_names import Becomes, Kept, Moves, Only, Retired
    from aime.documented_tables import TABLES

    homes = ("world_model", "perceiver_io", "generative_prior", "temporal_dynamics", "attention_schema")
    rooms = [*homes, "encoder_decoder", "multi_task_learning", "adversarial", "training", "envs"]
    for name, table in TABLES.items():
        room = next(r for r in rooms if hasattr(importlib.import_module(f"aime.{r}"), name))
        native = own_names(getattr(importlib.import_module(f"aime.{room}"), name))
        for argument, entry in table.entries.items():
            targets = {
                str: lambda entry: [entry],
                Moves: lambda _: [],
                Kept: lambda _: [],
                Only: lambda _: [],
                Retired: lambda _: [],
                Becomes: lambda _: [],
            }[type(entry)](entry)
            assert all(target in native for target in targets), f"{name}({argument}=) leads to {targets}"
        assert set(table.assumed) <= native, name


def own_names(cls: type) -> set[str]:
    """What the undecorated constructor takes."""
    import inspect

    names = set(inspect.signature(cls.__init__.__wrapped__).parameters)  # type: ignore[misc]
    if "names" in names:
        from aime.world_model.config import ALIASES, WorldModelConfig

        names |= {*ALIASES, *WorldModelConfig.__dataclass_fields__}
    return names


def test_a_retired_argument_warns_once_and_says_what_to_use() -> None:
    from aime.attention_schema import AttentionPosterior, AttentionPrior

    SAID.clear()
    with pytest.warns(RetiredArgumentWarning, match=r"motion_kernels=8 has no effect: .*motion_radius") as seen:
        AttentionPrior(8, 8, 4, motion_kernels=8)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AttentionPrior(8, 8, 4, motion_kernels=8)
        AttentionPosterior(64, 8, 8, 4, enforce_diversity=True)
    with pytest.warns(RetiredArgumentWarning, match="enforce_diversity=False has no effect: .*lambda_diversity"):
        AttentionPosterior(64, 8, 8, 4, enforce_diversity=False)


def test_a_wrong_argument_is_an_error_with_the_near_names() -> None:
    from aime.generative_prior import DPGMMPrior
    from aime.perceiver_io import CausalPerceiverIO
    from aime.world_model import DPGMMVariationalRecurrentAutoencoder

    with pytest.raises(TypeError, match="DPGMMPrior has no argument 'max_component'; did you mean max_components"):
        DPGMMPrior(max_component=3, latent_dim=2, hidden_dim=4)
    with pytest.raises(TypeError, match="num_latent_channels is given twice, 64 as .* and 32 as 'hidden_dim'"):
        CausalPerceiverIO((4, 3, 32, 32), num_latent_channels=64, hidden_dim=32)
    with pytest.raises(TypeError, match="unknown world model option 'latnt_dim'; did you mean latent_dim"):
        DPGMMVariationalRecurrentAutoencoder(latnt_dim=3)
    with pytest.raises(TypeError, match="multiple values for argument 'max_components'"):
        DPGMMPrior(3, 2, 4, max_components=3)


def test_a_configuration_of_the_worked_example() -> None:
    from world_model import DPGMMVariationalRecurrentAutoencoder

    model = DPGMMVariationalRecurrentAutoencoder(
        perceiver_config={"codebook_size": 32, "context_dim": 24, "num_latents": 4, "num_latent_channels": 16},
        max_components=15,
        latent_dim=36,
        encoder_config={"base_channels": 8},
        decoder_config={"base_channels": 8},
        hidden_dim=32,
        n_lstm_layers=1,
        use_orthogonal=True,
        attention_config={"num_slots": 5, "slot_dim": 16},
        use_rgb=False,
    )
    config = model.config
    assert (config.num_codes, config.context_dim, config.latent_channels) == (32, 24, 16)
    assert (config.num_slots, config.attention_channels) == (5, 16)
    assert config.encoder_channels == (8, 16, 32) and config.decoder_channels == (32, 16, 8)
    assert type(model.rgb_optimizer).__name__ == "Sum"
    with pytest.raises(TypeError, match="did you mean num_slots"):
        DPGMMVariationalRecurrentAutoencoder(attention_config={"num_slot": 5})
