"""torchjd's methods on the Gram matrix give what they give on the Jacobian."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from aime.multi_task_learning import make_balancer
from aime.multi_task_learning.torchjd_balancers import TORCHJD_BALANCERS
from aime.ranges import OptionError, UnknownOptionError

AGGREGATORS = {
    "upgrad": "UPGrad",
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "aligned_mtl": "AlignedMTL",
    "imtl_g": "IMTLG",
    "config": "ConFIG",
}


def jacobian(tasks: int) -> Tensor:
    """(T, P) gradients of which the first two oppose each other."""
    rows = torch.randn(tasks, 20, generator=torch.Generator().manual_seed(tasks), dtype=torch.float64)
    rows[1] = rows[1] - 1.5 * rows[0]
    rows[-1] *= 30.0
    return rows


@pytest.mark.parametrize("tasks", [2, 4])
@pytest.mark.parametrize("name", AGGREGATORS)
def test_the_gram_form_equals_the_jacobian_form(name: str, tasks: int) -> None:
    aggregation = pytest.importorskip("torchjd.aggregation")
    rows = jacobian(tasks)
    torch.manual_seed(0)  # PCGrad draws its order
    expected = getattr(aggregation, AGGREGATORS[name])()(rows)
    parameters = [
        nn.Parameter(torch.ones(4, 2, dtype=torch.float64)),
        nn.Parameter(torch.ones(12, dtype=torch.float64)),
    ]
    losses = {
        f"task{i}": (row[:8].view(4, 2) * parameters[0]).sum() + row[8:] @ parameters[1] for i, row in enumerate(rows)
    }
    torch.manual_seed(0)
    step = make_balancer(name).backward(losses, parameters)
    found = torch.cat([parameter.grad.reshape(-1) for parameter in parameters])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(step.weights[:tasks] @ rows, expected, rtol=1e-6, atol=1e-8)


def test_upgrad_worsens_no_task() -> None:
    pytest.importorskip("torchjd")
    rows = jacobian(4)
    weight = nn.Parameter(torch.zeros(20, dtype=torch.float64))
    make_balancer("upgrad", reg_eps=1e-12).backward(list(rows @ weight), [weight])
    assert bool((rows @ rows.sum(0) < 0).any())  # the sum does
    assert bool((rows @ weight.grad >= -1e-6 * rows.norm(dim=1) * weight.grad.norm()).all())


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_gradient_that_is_zero_or_not_finite_breaks_nothing(name: str) -> None:
    pytest.importorskip("torchjd")
    weight = nn.Parameter(torch.ones(3))
    step = make_balancer(name).backward([weight.sum(), torch.zeros(()), weight[0] * 2], [weight])
    assert torch.isfinite(weight.grad).all() and bool(step.finite)
    step = make_balancer(name).backward([weight.sum(), weight[0] * float("nan")], [weight])
    assert not bool(step.finite)


def test_without_torchjd_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd", None)
    for name in TORCHJD_BALANCERS:
        with pytest.raises(OptionError, match=r"pip install 'aime\[torchjd\]'"):
            make_balancer(name)


def test_options_are_known_before_torchjd_is_asked() -> None:
    with pytest.raises(UnknownOptionError, match="balancer mgda: expected options among epsilon, max_iters.*max_iter"):
        make_balancer("mgda", max_iter=3)
    with pytest.raises(OptionError, match="epsilon: expected"):
        make_balancer("mgda", epsilon=-1.0)
