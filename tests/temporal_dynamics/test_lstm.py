"""The recurrent state: one answer in three modes, causal, orthogonal where it is said to be."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from aime.temporal_dynamics import LSTMLayer, LSTMState
from aime.temporal_dynamics.lstm import linear_recurrence

# importing geoopt compiles two functions with torch.jit.script, which torch >= 2.11 calls deprecated
IGNORE_GEOOPT = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")


def orthogonality_error(lstm: LSTMLayer) -> float:
    weights = [getattr(lstm.lstm, f"weight_hh_l{layer}").detach() for layer in range(lstm.n_lstm_layers)]
    blocks = torch.cat(weights).unflatten(0, (-1, lstm.hidden_size))  # (4 L, Hd, Hd)
    return float((blocks.mT @ blocks - torch.eye(lstm.hidden_size)).abs().max())


@pytest.fixture(params=[1, 2], ids=["one layer", "two layers"])
def lstm(request: pytest.FixtureRequest) -> LSTMLayer:
    torch.manual_seed(0)
    layer = LSTMLayer(5, 12, request.param)
    with torch.no_grad():  # away from the initial zeros, so that a missing term shows
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def run_steps(lstm: LSTMLayer, x: Tensor) -> tuple[Tensor, list[LSTMState]]:
    state, outputs, states = None, [], []
    for inputs in x.unbind(1):
        output, state = lstm.step(inputs, state)
        outputs.append(output)
        states.append(state)
    return torch.stack(outputs, 1), states


@pytest.mark.parametrize(("batch", "steps"), [(3, 9), (1, 2), (1, 1)])
def test_sequence_and_steps_agree(lstm: LSTMLayer, batch: int, steps: int) -> None:
    x = torch.randn(batch, steps, 5)
    sequence, last = lstm(x)
    stepped, states = run_steps(lstm, x)
    assert torch.allclose(sequence, stepped, atol=1e-6)
    assert torch.allclose(last.hidden, states[-1].hidden, atol=1e-6)
    assert torch.allclose(last.cell, states[-1].cell, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7, 8, 50])
def test_unroll_gives_the_state_after_every_step(lstm: LSTMLayer, steps: int) -> None:
    x = torch.randn(2, steps, 5)
    start = LSTMState(torch.randn(2, lstm.n_lstm_layers, 12), torch.randn(2, lstm.n_lstm_layers, 12))
    output, states = lstm.unroll(x, start)
    assert torch.allclose(output, lstm(x, start)[0], atol=1e-6)
    state: LSTMState = start
    for t in range(steps):
        stepped, state = lstm.step(x[:, t], state)
        assert torch.allclose(states.hidden[:, t], state.hidden, atol=1e-6)
        assert torch.allclose(states.cell[:, t], state.cell, atol=2e-6)  # sums in another order
        assert torch.allclose(output[:, t], stepped, atol=2e-6)
        assert torch.allclose(lstm.output(LSTMState(states.hidden[:, t], states.cell[:, t])), stepped, atol=2e-6)


def test_unroll_has_the_gradients_of_the_fused_call(lstm: LSTMLayer) -> None:
    x, weights = torch.randn(2, 6, 5), torch.randn(2, 6, 12)
    fused = torch.autograd.grad((lstm(x)[0] * weights).sum(), list(lstm.parameters()))
    unrolled = torch.autograd.grad((lstm.unroll(x)[0] * weights).sum(), list(lstm.parameters()))
    for first, second in zip(fused, unrolled, strict=True):
        assert torch.allclose(first, second, atol=1e-5)


def test_later_inputs_change_nothing_earlier(lstm: LSTMLayer) -> None:
    x = torch.randn(2, 8, 5)
    changed = x.clone()
    changed[:, 5] += 1.0
    for mode in (lstm, lstm.unroll):
        before, after = mode(x)[0], mode(changed)[0]
        assert torch.equal(before[:, :5], after[:, :5])
        assert not torch.allclose(before[:, 5], after[:, 5])


def test_continues_where_it_stopped(lstm: LSTMLayer) -> None:
    x = torch.randn(2, 8, 5)
    first, state = lstm(x[:, :3])
    second, _ = lstm(x[:, 3:], state)
    assert torch.allclose(torch.cat((first, second), 1), lstm(x)[0], atol=1e-6)


def test_initial_state_is_learned_and_shared_by_the_batch(lstm: LSTMLayer) -> None:
    state = lstm.initial_state(3)
    assert torch.equal(state.hidden[0], state.hidden[2])
    lstm(torch.randn(3, 4, 5))[0].square().sum().backward()
    for parameter in (lstm.initial_hidden, lstm.initial_cell):
        assert parameter.grad is not None and parameter.grad.any()


def test_starts_with_orthogonal_gates_and_an_open_forget_gate() -> None:
    torch.manual_seed(0)
    lstm = LSTMLayer(5, 12, 2)
    assert orthogonality_error(lstm) < 1e-5
    for layer in range(2):
        bias = getattr(lstm.lstm, f"bias_ih_l{layer}") + getattr(lstm.lstm, f"bias_hh_l{layer}")
        assert bias.tolist() == [0.0] * 12 + [1.0] * 12 + [0.0] * 24
    assert orthogonality_error(LSTMLayer(5, 12, use_orthogonal=False)) > 0.1


@IGNORE_GEOOPT
def test_manifold_stays_orthogonal_while_it_learns() -> None:
    pytest.importorskip("geoopt")
    from aime.temporal_dynamics.manifold import riemannian_adam

    torch.manual_seed(0)
    lstm = LSTMLayer(4, 16, 2, orthogonal="manifold")
    before = getattr(lstm.lstm, "weight_hh_l0").detach().clone()  # noqa: B009 (not an attribute for mypy)
    x, target = torch.randn(8, 5, 4), torch.randn(8, 5, 16)
    optimizer = riemannian_adam(lstm.parameters(), lr=3e-3)
    losses, worst = [], 0.0
    for step in range(1000):
        loss = (lstm(x)[0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 10 == 8:  # just before the projection
            worst = max(worst, orthogonality_error(lstm))
    assert worst < 1e-4 and orthogonality_error(lstm) < 1e-4
    assert losses[-1] < 0.3 * losses[0]
    assert (getattr(lstm.lstm, "weight_hh_l0") - before).norm() > 1.0  # noqa: B009


@IGNORE_GEOOPT
def test_decay_is_that_of_adamw_and_leaves_the_manifold_alone() -> None:
    pytest.importorskip("geoopt")
    from aime.temporal_dynamics.manifold import gate_orthogonal_parameter, riemannian_adam

    torch.manual_seed(0)
    start, blocks = torch.randn(5, 3), torch.cat([torch.linalg.qr(torch.randn(4, 4))[0] for _ in range(4)])
    target = torch.randn(16, 4)

    def trained(weight_decay: float, steps: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
        free, orthogonal = torch.nn.Parameter(start.clone()), gate_orthogonal_parameter(blocks)
        optimizer = riemannian_adam([{"params": [free, orthogonal], "weight_decay": weight_decay}], lr=0.05)
        for _ in range(steps):
            optimizer.zero_grad()
            ((free**3).sum() + (orthogonal * target).sum()).backward()
            optimizer.step()
        assert optimizer.param_groups[0]["weight_decay"] == weight_decay
        return free.detach(), orthogonal.detach()

    free, orthogonal = trained(0.3)
    reference = torch.nn.Parameter(start.clone())
    adamw = torch.optim.AdamW([reference], lr=0.05, weight_decay=0.3)
    for _ in range(12):
        adamw.zero_grad()
        (reference**3).sum().backward()
        adamw.step()
    assert torch.allclose(free, reference.detach(), atol=1e-5)
    assert torch.equal(orthogonal, trained(0.0)[1])  # no trace of the decay
    assert not torch.allclose(free, trained(0.0)[0], atol=1e-3)


@IGNORE_GEOOPT
def test_manifold_and_free_weights_compute_the_same() -> None:
    pytest.importorskip("geoopt")
    torch.manual_seed(0)
    free, manifold = LSTMLayer(4, 6), LSTMLayer(4, 6, orthogonal="manifold")
    manifold.load_state_dict(free.state_dict(), strict=True)
    x = torch.randn(2, 3, 4)
    assert torch.equal(free(x)[0], manifold(x)[0])


@IGNORE_GEOOPT
def test_manifold_operations_act_gate_by_gate() -> None:
    geoopt = pytest.importorskip("geoopt")
    from aime.temporal_dynamics.manifold import GateStiefel

    torch.manual_seed(0)
    gates, block = GateStiefel(), geoopt.CanonicalStiefel()
    x = gates.projx(torch.randn(12, 3, dtype=torch.float64))
    assert gates.check_point_on_manifold(x)
    assert not gates.check_point_on_manifold(x + 0.01)
    with pytest.raises(ValueError, match="12, 4"):
        gates.assert_check_point(torch.zeros(12, 4))
    u = gates.proju(x, torch.randn(12, 3, dtype=torch.float64))
    assert gates.check_vector_on_tangent(x, u)
    moved, carried = gates.retr_transp(x, 0.1 * u, u)
    assert torch.allclose(moved, gates.retr(x, 0.1 * u))
    assert gates.check_point_on_manifold(moved) and gates.check_vector_on_tangent(moved, carried)
    parts = [block.inner(*pair) for pair in zip(x.chunk(4), u.chunk(4), strict=True)]
    assert torch.allclose(gates.inner(x, u), torch.stack(parts).sum())
    assert torch.allclose(gates.component_inner(x, u)[::3, 0], torch.stack(parts))


def test_geoopt_is_not_imported_until_asked_for() -> None:
    code = "import sys, aime.temporal_dynamics as t; t.LSTMLayer(2, 3); sys.exit('geoopt' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_linear_recurrence_is_the_loop() -> None:
    decay, added, y = torch.rand(2, 13, 3), torch.randn(2, 13, 3), torch.randn(2, 3)
    parallel = linear_recurrence(decay, added, y)
    for t in range(13):
        y = decay[:, t] * y + added[:, t]
        assert torch.allclose(parallel[:, t], y, atol=1e-6)


def test_wrong_arguments_are_named(lstm: LSTMLayer) -> None:
    with pytest.raises(ValueError, match=r"x: expected \(B, T, input_size=5\), found \(2, 5\)"):
        lstm(torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"x: expected \(B, input_size=5\), found \(2, 6\)"):
        lstm.step(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="orthogonal: expected one of"):
        LSTMLayer(2, 3, orthogonal="manifolds")
    with pytest.raises(ValueError, match="needs use_orthogonal=True"):
        LSTMLayer(2, 3, use_orthogonal=False, orthogonal="manifold")


def test_a_state_of_many_rows_alike_is_laid_out_for_the_fused_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """The initial state is one row seen B times; cuDNN refuses states that are not contiguous, the CPU takes them."""
    module, taken = LSTMLayer(4, 8, n_lstm_layers=2), []
    fused = torch.lstm

    def recorded(x: torch.Tensor, states: tuple[torch.Tensor, ...], *rest: Any) -> Any:
        taken.extend(state.is_contiguous() for state in states)
        return fused(x, states, *rest)

    monkeypatch.setattr(torch, "lstm", recorded)
    module.unroll(torch.randn(3, 5, 4))
    assert len(taken) == 4
    assert all(taken)
