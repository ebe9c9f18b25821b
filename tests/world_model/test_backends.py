"""A training step does not depend on who computes it: fused kernels and PyTorch's own give the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch, use_backend
from tests.world_model.conftest import sequences, small_model

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"  # on the CPU Triton's kernels are interpreted
CPP_OPS = (
    *("vq_lookup", "stick_log_weights", "mixture_log_prob", "mixture_kl"),
    *("slot_attention", "mixture_logistics_nll"),
)
FUSED = [
    pytest.param(
        ("triton",),
        id="triton",
        marks=[
            pytest.mark.skipif(not dispatch.TRITON_INSTALLED, reason="triton is not installed"),
            *([pytest.mark.cuda] if DEVICE == "cuda" else []),
        ],
    ),
    pytest.param(
        ("cpp", *CPP_OPS),
        id="cpp",
        marks=pytest.mark.skipif(not dispatch.EXTENSION_BUILT or DEVICE != "cpu", reason="aime.kernels._cpu: CPU"),
    ),
]


def losses_and_gradients(likelihood: str, *order: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses of a batch and of two training steps before it, and its gradients; one seed, backends as ordered."""
    options = {"likelihood": likelihood, "likelihood_components": 2, "gram_frames": 2}
    model = small_model(**options).train().to(DEVICE)
    batch = [tensor.to(DEVICE) for tensor in sequences(2).all]
    model.initialise_from_data(batch[0].flatten(0, 1), torch.Generator().manual_seed(0))
    model.configure_optimizer(learning_rate=1e-4)
    generator = torch.Generator(DEVICE).manual_seed(0)
    with np.errstate(all="ignore"), use_backend(*order):  # NumPy warns where a GPU returns Inf
        losses, _ = model.compute_total_loss(*batch, generator=generator)
        losses["total_loss"].backward()
        gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        for step in range(2):
            metrics = model.training_step_sequence(*batch, generator=generator)
            losses |= {f"{name} of step {step}": metrics[name] for name in losses.keys() & metrics.keys()}
    return losses, gradients


@pytest.mark.parametrize("likelihood", ["gaussian", "mixture_of_logistics"])
@pytest.mark.parametrize("order", FUSED)
def test_fused_kernels_train_like_pytorchs_own(order: tuple[str, ...], likelihood: str) -> None:
    expected, expected_gradients = losses_and_gradients(likelihood, "torch")
    losses, gradients = losses_and_gradients(likelihood, *order)
    assert losses.keys() == expected.keys() and len(losses) > 20
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    assert gradients.keys() == expected_gradients.keys()
    largest = max(float(gradient.norm()) for gradient in expected_gradients.values())
    for name, gradient in gradients.items():
        # relative to the parameter; below 1e-6 of the largest gradient only rounding is left
        error = float((gradient - expected_gradients[name]).norm())
        assert error <= 1e-3 * float(expected_gradients[name].norm()) + 1e-6 * largest, name
