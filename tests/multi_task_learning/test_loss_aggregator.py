"""LossAggregator: the formulas, missing entries, and how a task is added."""

from __future__ import annotations

import pytest
import torch

from aime.multi_task_learning import LossAggregator
from aime.multi_task_learning.losses import LOSSES, TaskLoss, TaskLossValue, register_loss, time_mean


@pytest.fixture
def outputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    per_step = ["reconstruction_losses", "kl_latents", "kumaraswamy_kl_losses", "cluster_entropies", "gram_enc"]
    per_step += ["attention_losses", "attention_diversity_losses"]
    scalars = ["perceiver_total_loss", "attention_dynamics_loss", "context_prediction_loss", "reward_loss"]
    result = {name: torch.rand(5, generator=generator, requires_grad=True) for name in per_step}
    result |= {name: torch.rand((), generator=generator, requires_grad=True) for name in [*scalars, "continue_loss"]}
    return result


def test_formulas(outputs) -> None:
    losses, tasks = LossAggregator().compute_losses(
        outputs, beta=0.7, entropy_weight=0.2, lambda_recon=1.5, lambda_att_dyn=0.3, lambda_gram=0.4
    )
    m = {name: value.mean() for name, value in outputs.items()}
    elbo = (
        1.5 * m["reconstruction_losses"]
        + 0.7 * (m["kl_latents"] + m["kumaraswamy_kl_losses"])
        - 0.2 * m["cluster_entropies"]
        + 0.4 * m["gram_enc"]
        + m["attention_diversity_losses"]
        + m["reward_loss"]
        + m["continue_loss"]
    )
    predictive = 0.7 * m["attention_losses"] + 0.3 * m["attention_dynamics_loss"] + m["context_prediction_loss"]
    assert list(tasks) == ["elbo", "perceiver", "predictive"]
    assert torch.allclose(tasks["elbo"], elbo)
    assert torch.allclose(tasks["perceiver"], m["perceiver_total_loss"])
    assert torch.allclose(tasks["predictive"], predictive)
    assert torch.allclose(losses["total_elbo"], elbo + 0.7 * m["attention_losses"])
    assert torch.allclose(losses["total_loss"], elbo + predictive + m["perceiver_total_loss"])
    assert losses["total_predictive"] is losses["attention_loss"]
    assert losses.keys() == {
        *("recon_loss", "kl_z", "hierarchical_kl", "attention_kl", "cluster_entropy", "gram_enc_loss"),
        *("attention_diversity", "perceiver_loss", "attention_dynamics_loss", "context_prediction_loss"),
        *("reward_loss", "continue_loss", "total_elbo", "total_predictive", "attention_loss", "total_vae_loss"),
        "total_loss",
    }
    assert all(value.dim() == 0 for value in losses.values())


def test_lists_equal_tensors_and_missing_counts_as_zero(outputs) -> None:
    as_lists = {name: list(value) if value.dim() else value for name, value in outputs.items()}
    for left, right in zip(
        LossAggregator().compute_losses(outputs)[0].values(),
        LossAggregator().compute_losses(as_lists)[0].values(),
        strict=True,
    ):
        assert torch.equal(left, right)
    sparse = {"reconstruction_losses": outputs["reconstruction_losses"], "attention_losses": []}
    losses, tasks = LossAggregator().compute_losses(sparse)
    assert torch.equal(losses["total_loss"], outputs["reconstruction_losses"].mean())
    assert tasks["perceiver"] == 0 and tasks["predictive"] == 0


def test_gradients_flow_only_to_the_terms_of_a_task(outputs) -> None:
    _, tasks = LossAggregator().compute_losses(outputs)
    tasks["predictive"].backward()
    reached = {name for name, value in outputs.items() if value.grad is not None}
    assert reached == {
        *("attention_losses", "attention_dynamics_loss", "context_prediction_loss"),
    }


def test_shape_error_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"kl_latents .* \(2, 5\)"):
        LossAggregator().compute_losses({"kl_latents": torch.zeros(2, 5)})
    with pytest.raises(ValueError, match="did you mean predictive"):
        LossAggregator(["elbo", "predictiv"])


def test_a_task_is_one_class_and_one_registration(outputs) -> None:
    class Sparsity(TaskLoss):
        name = "sparsity"

        def __call__(self, outputs, weights):
            value = time_mean(outputs, "cluster_entropies")
            return TaskLossValue(value, {"sparsity": value})

        def applies(self, outputs):
            return "cluster_entropies" in outputs

    try:
        register_loss(Sparsity)
        with pytest.raises(ValueError, match="new task name"):
            register_loss(Sparsity)
        losses, tasks = LossAggregator().compute_losses(outputs)
        assert list(tasks) == ["elbo", "perceiver", "predictive", "sparsity"]
        assert "sparsity" in losses
        assert list(LossAggregator().compute_losses({"gram_enc": torch.ones(2)})[1]) == [
            "elbo",
            "perceiver",
            "predictive",
        ]
    finally:
        LOSSES.pop("sparsity", None)


def test_metrics(outputs) -> None:
    metrics = LossAggregator().get_all_metrics({**outputs, "vq_perplexity": torch.tensor(12.0)})
    assert metrics["vq_perplexity"] == 12
    assert metrics["kl_z_std"] > 0
    assert not any(value.requires_grad for value in metrics.values())
