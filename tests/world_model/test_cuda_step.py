"""The world model on a GPU against the CPU: the fused rollout, and a training step with rehearsal."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch, use_backend
from aime.temporal_dynamics import LSTMState
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from aime.world_model.latent_rollout import RolloutNoise, roll_latents
from aime.world_model.rehearsal import RememberedSequences

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BATCH, FRAMES = 3, 5


def laptop(device: str) -> DPGMMVariationalRecurrentAutoencoder:
    torch.manual_seed(0)
    return DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.preset("pillars", action_size=2)).train().to(device)


def rolled(device: str) -> list[Tensor]:
    """Hidden states, latents, and the gradients of the start, on the CPU; the noise is drawn there."""
    model = laptop(device)
    config, generator = model.config, torch.Generator().manual_seed(1)
    layers = config.num_lstm_layers
    shapes = [(config.hidden_dim,), (config.latent_dim,), (layers, config.hidden_dim), (layers, config.hidden_dim)]
    start = [torch.randn(BATCH, *shape, generator=generator).to(device).requires_grad_() for shape in shapes]
    actions = torch.randn(BATCH, FRAMES, config.action_size, generator=generator).to(device)
    drawn = RolloutNoise.draw(laptop("cpu"), FRAMES, BATCH, generator)
    noise = RolloutNoise(**{name: value.to(device) for name, value in vars(drawn).items()})
    hidden, latent, raw, cell = start
    outputs = roll_latents(model, hidden, latent, LSTMState(raw, cell), actions, noise)
    gradients = torch.autograd.grad(sum(output.square().sum() for output in outputs), start)
    return [tensor.detach().cpu() for tensor in (*outputs, *gradients)]


def test_rollout_is_that_of_the_cpu() -> None:
    for found, expected in zip(rolled("cuda"), rolled("cpu"), strict=True):
        assert (found - expected).norm() <= 1e-2 * expected.norm()


def step(device: str, backend: str) -> dict[str, float]:
    """Metrics of the first step and of a rehearsal behind it; noise of another device is another noise."""
    model = laptop(device)
    model.configure_optimizer(learning_rate=1e-4)
    config, generator = model.config, torch.Generator().manual_seed(2)
    size = config.image_size
    frames = torch.randint(0, 256, (8, 4, 3, size, size), generator=generator, dtype=torch.uint8)
    numbers = [torch.randn(8, 4, 2, generator=generator), torch.rand(8, 4, generator=generator), torch.ones(8, 4)]
    mean = torch.randn(64, 7, config.latent_dim, generator=generator)
    moved = torch.randn(64, 7, 2, generator=generator)
    memory = RememberedSequences(*(t.to(device) for t in (mean, torch.full_like(mean, -2.0), moved)))
    noise = torch.Generator(device).manual_seed(3)
    with use_backend(backend):
        metrics = model.training_step_sequence(*(t.to(device) for t in (frames, *numbers)), generator=noise)
        metrics = metrics | model.rehearse(memory, 2, generator=noise)
    return {name: float(value) for name, value in metrics.items()}


@pytest.mark.parametrize(
    "backend",
    [
        "torch",
        pytest.param(
            "triton", marks=pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed")
        ),
    ],
)
def test_a_training_step_with_rehearsal_is_near_that_of_the_cpu(backend: str) -> None:
    found, expected = step("cuda", backend), step("cpu", "torch")
    assert found.keys() == expected.keys()
    assert found["finite"] == found["rehearsal_finite"] == 1.0
    for name in ("total_loss", "recon_loss", "perceiver_loss", "rehearsal_loss"):
        assert found[name] == pytest.approx(expected[name], rel=0.15, abs=0.05), name


def test_codebook_and_pixels_are_initialised_from_a_generator_of_the_device() -> None:
    """What a run on a GPU does first."""
    frames = torch.randint(0, 256, (40, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    model = laptop("cuda")
    model.initialise_from_data(frames, torch.Generator("cuda").manual_seed(0))
    expected = laptop("cpu")
    expected.initialise_from_data(frames, torch.Generator().manual_seed(0))
    assert torch.allclose(model.mean_image.cpu(), expected.mean_image, atol=1e-5)
    assert torch.isfinite(model.perceiver.tokenizer.quantizer.codebook).all()
