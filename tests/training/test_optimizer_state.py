"""State of the world model's optimizers: what a step leaves fits, and continues, a second optimizer of its kind."""

import pytest
import torch

from aime.training.optimizer_state import check_optimizer, optimizer_tensors, optimizer_values, restore_optimizer
from aime.world_model import DPGMMVariationalRecurrentAutoencoder
from tests.world_model.conftest import sequences, small_model


def stepped(orthogonal: str, steps: int) -> DPGMMVariationalRecurrentAutoencoder:
    torch.manual_seed(0)
    model = small_model(orthogonal=orthogonal, hidden_dim=32, prior_hidden_dim=32).train()
    model.configure_optimizer(learning_rate=1e-3)
    for seed in range(steps):
        model.training_step_sequence(*sequences(5).all, generator=torch.Generator().manual_seed(seed))
    return model


@pytest.mark.parametrize("orthogonal", ["init", "manifold"])
def test_large_matrices_of_the_recurrence_keep_what_their_optimizer_keeps(orthogonal: str) -> None:
    if orthogonal == "manifold":
        pytest.importorskip("geoopt")
    model, other = stepped(orthogonal, 2), stepped(orthogonal, 0)
    parameters = dict(model.named_parameters())
    names = {parameter: name for name, parameter in parameters.items()}
    tensors = {name: value.clone() for name, value in optimizer_tensors(model.optimizer, names).items()}
    kept = {name.rpartition("/")[2] for name in tensors if name.startswith("dynamics.lstm.weight_hh_l0/")}
    assert ("momentum_buffer" in kept) == (orthogonal == "init")
    plain = optimizer_values(model.optimizer, names)
    theirs = dict(other.named_parameters())
    check_optimizer("here", other.optimizer, theirs, tensors, plain)
    restore_optimizer(other.optimizer, theirs, tensors, plain)
    found = optimizer_tensors(other.optimizer, {parameter: name for name, parameter in theirs.items()})
    assert found.keys() == tensors.keys()
    assert all(torch.equal(value, tensors[name]) for name, value in found.items())
