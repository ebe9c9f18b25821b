"""The calls of the original's guides to single modules, as written, with smaller sizes where those cost time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

SMALL_TOKENS: dict[str, Any] = {"num_codes": 32, "code_dim": 8, "downsample": 16, "base_channels": 4}


@pytest.fixture
def video() -> Tensor:
    """(B, T, C, H, W) in [-1, 1]."""
    return torch.rand(2, 6, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_tokenizer(video) -> None:
    from perceiver_io import VQPTTokenizer

    torch.manual_seed(0)
    tokenizer = VQPTTokenizer(in_channels=3, use_3d_conv=True, temporal_downsample=False, **SMALL_TOKENS)
    tokens, vq_loss, perplexity = tokenizer.encode(video)
    assert tokens.shape == (2, 6, 4, 4) and not tokens.is_floating_point()
    assert vq_loss.requires_grad and vq_loss.dim() == 0 and 1 <= float(perplexity) <= 32
    reconstructed = tokenizer.decode(tokens)
    assert reconstructed.shape == video.shape
    torch.testing.assert_close(reconstructed, tokenizer.decode(tokenizer.get_codes_from_indices(tokens)))
    halved = VQPTTokenizer(temporal_downsample=True, **SMALL_TOKENS)
    assert halved.encode(video[:, :5])[0].shape == (2, 3, 4, 4)


def test_the_predictor(video) -> None:
    from perceiver_io import PerceiverTokenPredictor, VQPTTokenizer

    torch.manual_seed(0)
    predictor = PerceiverTokenPredictor(
        tokenizer=VQPTTokenizer(**SMALL_TOKENS),
        num_latents=4,
        num_latent_channels=16,
        num_self_attention_layers=1,
        sequence_length=4,
    )
    outputs = predictor.forward(video, num_context_frames=4)
    assert outputs["reconstructed"].shape == video.shape
    assert outputs["predicted_tokens"].shape == outputs["token_ids"].shape == (2, 2, 4, 4)
    # The first predicted frame has true frames alone before it: the most probable tokens of the logits.
    assert torch.equal(outputs["logits"][:, 0].argmax(-1), outputs["predicted_tokens"][:, 0].flatten(1))
    other = video.clone()
    other[:, 4:] = -1  # what is to be predicted is not seen
    again = predictor(other, num_context_frames=4)
    assert torch.equal(again["predicted_tokens"], outputs["predicted_tokens"])
    generated = predictor.generate_autoregressive(video[:, :2], num_frames_to_generate=9)
    assert generated.shape == (2, 11, 3, 64, 64)
    with pytest.raises(ValueError, match=r"num_context_frames: expected 1\.\.5, found 6"):
        predictor(video, num_context_frames=6)


def test_the_perceiver_predicts_tokens(video) -> None:
    from perceiver_io import CausalPerceiverIO

    perceiver = CausalPerceiverIO(
        in_channels=3, codebook_size=16, context_dim=24, downsample=16, base_channels=4, num_latents=4, hidden_dim=16
    )
    assert perceiver.extract_context(video).shape == (2, 6, 24)
    future_tokens = perceiver.predict_future(video, num_steps=10)
    assert future_tokens.shape == (2, 10, 4, 4) and int(future_tokens.max()) < 16


def test_the_prior_is_sampled() -> None:
    from generative_prior import DPGMMPrior
    from generative_prior.distributions import GammaPosterior

    torch.manual_seed(0)
    dpgmm = DPGMMPrior(latent_dim=36, max_components=15, hidden_dim=32)
    z_prior, pi = dpgmm.sample(batch_size=8, seq_len=16)
    assert z_prior.shape == (8, 16, 36) and pi.shape == (8, 16, 15)
    torch.testing.assert_close(pi.sum(-1), torch.ones(8, 16))
    h_t = torch.randn(4, 32)
    assert dpgmm.sample(dpgmm(h_t), 0.0).shape == (4, 36)
    with pytest.raises(TypeError, match="expected prior parameters or batch_size"):
        dpgmm.sample()
    gamma_post = GammaPosterior(hidden_dim=32, device=torch.device("cpu"))
    concentration, rate = gamma_post(h_t)
    assert concentration.shape == rate.shape == (4,)
    assert gamma_post.sample(h_t, n_samples=10).shape == (4, 10)
    kl = gamma_post.kl_divergence(h_t, prior_concentration=1.0, prior_rate=1.0)
    draws = gamma_post.sample(h_t, n_samples=20000)
    q, p = (torch.distributions.Gamma(a, b) for a, b in ((concentration, rate), (torch.ones(4), torch.ones(4))))
    sampled = (q.log_prob(draws.T) - p.log_prob(draws.T)).mean()
    torch.testing.assert_close(kl, sampled, atol=0.02, rtol=0)


def test_losses_are_computed_from_outputs_and_observations() -> None:
    from multi_task_learning import RGB, LossAggregator

    weight = torch.nn.Parameter(torch.ones(2))
    model_outputs = {"reconstruction_losses": [weight[0] ** 2, weight[0] * 3], "perceiver_total_loss": weight[1] ** 2}
    losses_dict, task_losses = LossAggregator().compute_losses(
        outputs=model_outputs, observations=torch.zeros(1, 2, 3, 64, 64), beta=1.0, lambda_recon=1.0
    )
    assert float(losses_dict["recon_loss"].detach()) == 2.0 and len(task_losses) == 3
    rgb = RGB()
    rgb.task_num, rgb.device, rgb.rep_grad = 3, "cpu", False
    rgb.get_share_params = lambda: iter([weight])
    batch_weights = rgb.backward(task_losses)
    assert batch_weights is not None and weight.grad is not None and bool((weight.grad > 0).all())
