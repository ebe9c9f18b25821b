"""RGB: the Gram form against the definition written densely in float64, and the properties that follow from it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from aime.multi_task_learning import RGB, Sum, make_balancer


class DenseRGB:
    """The definition, step by step, on [T, P] matrices in float64. Slow and obvious."""

    def __init__(self, *, mu=0.9, lambd=1.0, alpha_steps=3, lr_inner=0.2, update_interval=1, align_threshold=0.999):
        self.mu, self.lambd, self.alpha_steps, self.lr_inner = mu, lambd, alpha_steps, lr_inner
        self.update_interval, self.align_threshold = update_interval, align_threshold
        self.d: Tensor | None = None
        self.alpha: Tensor | None = None
        self.step_count = 0

    def __call__(self, gradients: Tensor, rescale: str) -> Tensor:
        norms = gradients.norm(dim=1)
        gbar = gradients / norms[:, None]
        task_num = len(gbar)
        y = gbar.mean(0)
        y = y / y.norm()
        if self.d is None:
            self.d = y
        else:
            self.d = self.mu * self.d + (1 - self.mu) * y
            self.d = self.d / self.d.norm()
        self.step_count += 1
        rotated = gbar
        if self.step_count % self.update_interval == 0 and task_num > 1:
            p = gbar @ self.d
            w = self.d - p[:, None] * gbar
            w = w / w.norm(dim=1, keepdim=True)
            rotates = p <= self.align_threshold
            start = torch.zeros(task_num, dtype=gbar.dtype) if self.alpha is None else self.alpha
            alpha = torch.where(rotates, start.clamp(0, math.pi / 2 - 1e-6), 0.0)
            for _ in range(self.alpha_steps):
                alpha = alpha.detach().requires_grad_()
                r = alpha.cos()[:, None] * gbar + alpha.sin()[:, None] * w
                pairs = sum(1 - r[i] @ r[j] for i in range(task_num) for j in range(i + 1, task_num))
                objective = pairs / (task_num * (task_num - 1))
                objective = objective + self.lambd / (4 * task_num) * ((r - gbar) ** 2).sum()
                (slope,) = torch.autograd.grad(objective, alpha)
                alpha = torch.where(rotates, (alpha - self.lr_inner * slope).clamp(0, math.pi / 2 - 1e-6), 0.0)
            alpha = alpha.detach()
            rotated = alpha.cos()[:, None] * gbar + alpha.sin()[:, None] * w
            self.alpha = alpha
        if rescale == "sum_norm":
            return norms @ rotated
        return rotated.mean(0) * (norms.mean() if rescale == "mean_norm" else 1.0)


def parameters_of(sizes: list[tuple[int, ...]], seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in sizes]


def linear_losses(parameters: list[nn.Parameter], gradients: list[list[Tensor | None]]) -> dict[str, Tensor]:
    """Losses whose gradients are exactly the given ones; None is a parameter that the task does not reach."""
    return {
        f"task{index}": sum((p * g).sum() for p, g in zip(parameters, row, strict=True) if g is not None)
        for index, row in enumerate(gradients)
    }


def random_gradients(parameters, tasks, generator, reach=None) -> list[list[Tensor | None]]:
    return [
        [
            torch.randn(p.shape, generator=generator) * 10.0 ** (task - 1)
            if reach is None or reach[task][index]
            else None
            for index, p in enumerate(parameters)
        ]
        for task in range(tasks)
    ]


def dense(parameters, gradients) -> Tensor:
    rows = [
        torch.cat(
            [(torch.zeros(p.shape) if g is None else g).reshape(-1) for p, g in zip(parameters, row, strict=True)]
        )
        for row in gradients
    ]
    return torch.stack(rows).double()


def flat_grad(parameters) -> Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parameters]).double()


REACH = [[1, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 1, 0, 1, 1]]


@pytest.mark.parametrize("rescale", ["unit", "mean_norm", "sum_norm"])
@pytest.mark.parametrize("options", [{}, {"alpha_steps": 1, "lr_inner": 0.1, "update_interval": 2}, {"lr_inner": 5.0}])
@pytest.mark.parametrize("reach", [None, REACH])
def test_gram_form_equals_dense_form(rescale, options, reach) -> None:
    parameters = parameters_of([(7, 3), (40, 500), (11,), (2, 3, 5), (1,)])
    balancer = RGB(rescale=rescale, **options)
    reference = DenseRGB(**options)
    generator = torch.Generator().manual_seed(1)
    common = [torch.randn(p.shape, generator=generator) for p in parameters]
    for step in range(8):
        gradients = random_gradients(parameters, 3, generator, reach)
        for row in gradients[: step % 3]:  # correlated and opposed tasks too
            for index, grad in enumerate(row):
                if grad is not None:
                    row[index] = grad + (-3.0) ** step * common[index]
        balanced = balancer.backward(linear_losses(parameters, gradients), parameters)
        expected = reference(dense(parameters, gradients), rescale)
        found = flat_grad(parameters)
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        assert (balancer.ema_direction.double() - reference.d).norm() <= 1e-5
        assert balanced.grad_norm.item() == pytest.approx(expected.norm().item(), rel=1e-5)
        assert balanced.finite


def test_angles_reach_the_dense_angles_and_rotation_brings_tasks_together() -> None:
    parameters = parameters_of([(60, 60)])
    balancer, reference = RGB(alpha_steps=10, rescale="unit"), DenseRGB(alpha_steps=10)
    generator = torch.Generator().manual_seed(3)
    gradients = random_gradients(parameters, 3, generator)
    for _ in range(5):
        balancer.backward(linear_losses(parameters, gradients), parameters)
        reference(dense(parameters, gradients), "unit")
    assert torch.allclose(balancer.alpha_state, reference.alpha, atol=1e-5)
    assert (balancer.alpha_state > 0.05).all()
    # The mean of three orthogonal unit vectors has norm 3 ** -0.5; rotated toward each other it is longer.
    assert flat_grad(parameters).norm() > 3**-0.5 + 0.05


def test_conflicting_tasks_lose_less_progress_than_under_the_sum() -> None:
    """A large gradient that opposes a small one: the sum ascends on the small task, RGB descends on both."""
    parameters = parameters_of([(2,)])
    gradients = [[torch.tensor([1.0, 0.2])], [torch.tensor([-100.0, 60.0])]]
    Sum().backward(linear_losses(parameters, gradients), parameters)
    assert parameters[0].grad @ gradients[0][0] < 0
    balancer = RGB(alpha_steps=20)
    for _ in range(10):
        balancer.backward(linear_losses(parameters, gradients), parameters)
    assert parameters[0].grad @ gradients[0][0] > 0
    assert parameters[0].grad @ gradients[1][0] > 0


def test_exactly_opposed_task_rotates() -> None:
    parameters = parameters_of([(3,)])
    balancer = RGB(rescale="unit")
    x, y = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 0.0])
    for _ in range(3):
        balancer.backward(linear_losses(parameters, [[x], [x], [x]]), parameters)
    balancer.mu = 0.999999  # hold d at x, so that -x is exactly opposed to it
    step = balancer.backward(linear_losses(parameters, [[-x], [x], [y]]), parameters)
    assert balancer.alpha_state[0] > 1e-3
    assert balancer.alpha_state[1] == 0  # aligned
    assert step.finite and torch.isfinite(parameters[0].grad).all()


def test_two_cancelling_tasks_stay_finite() -> None:
    parameters = parameters_of([(4,)])
    balancer = RGB()
    g = torch.tensor([1.0, 2.0, 3.0, 4.0])
    for _ in range(3):
        step = balancer.backward(linear_losses(parameters, [[g], [-g]]), parameters)
        assert step.finite and step.grad_norm < 1e-5
        assert torch.isfinite(parameters[0].grad).all()


@pytest.mark.parametrize("kind", ["zero gradient", "no graph", "reaches nothing"])
def test_a_task_without_gradient_changes_nothing(kind) -> None:
    parameters, others = parameters_of([(5, 4), (6,)]), parameters_of([(5, 4), (6,)])
    elsewhere = nn.Parameter(torch.ones(3))
    generator = torch.Generator().manual_seed(5)
    with_idle, without = RGB(), RGB()
    for _ in range(4):
        gradients = random_gradients(parameters, 2, generator)
        idle = {
            "zero gradient": sum((p * 0).sum() for p in parameters),
            "no graph": torch.tensor(3.0),
            "reaches nothing": elsewhere.sum(),
        }[kind]
        losses = linear_losses(parameters, gradients)
        with_idle.backward({"idle": idle, **losses}, parameters)
        without.backward(linear_losses(others, gradients), others)
        assert torch.allclose(flat_grad(parameters), flat_grad(others), rtol=1e-6, atol=1e-7)
    assert elsewhere.grad is None


def test_one_task_keeps_its_gradient() -> None:
    parameters = parameters_of([(5, 4)])
    gradients = random_gradients(parameters, 1, torch.Generator().manual_seed(6))
    balancer = RGB()
    for _ in range(2):
        balancer.backward(linear_losses(parameters, gradients), parameters)
        assert torch.allclose(parameters[0].grad, gradients[0][0], rtol=1e-6)


def test_unreached_parameters_get_no_gradient_and_reach_may_grow() -> None:
    parameters = parameters_of([(3,), (4,), (5,)])
    balancer, reference = RGB(), DenseRGB()
    generator = torch.Generator().manual_seed(7)
    for step, reach in enumerate([[[1, 0, 0], [1, 0, 0]], [[1, 1, 0], [1, 0, 0]], [[1, 0, 0], [0, 1, 0]]]):
        gradients = random_gradients(parameters, 2, generator, reach)
        balancer.backward(linear_losses(parameters, gradients), parameters)
        expected = reference(dense(parameters, gradients), "mean_norm")
        assert (flat_grad(parameters) - expected).norm() <= 1e-5 * expected.norm()
        assert parameters[2].grad is None
        assert (parameters[1].grad is None) == (step == 0)


def test_clipping_equals_torch_clipping() -> None:
    parameters, others = parameters_of([(50, 3), (9,)]), parameters_of([(50, 3), (9,)])
    gradients = random_gradients(parameters, 3, torch.Generator().manual_seed(8))
    step = RGB().backward(linear_losses(parameters, gradients), parameters, max_norm=0.5)
    RGB().backward(linear_losses(others, gradients), others)
    norm = nn.utils.clip_grad_norm_(others, 0.5)
    assert step.grad_norm.item() == pytest.approx(norm.item(), rel=1e-5)
    assert torch.allclose(flat_grad(parameters), flat_grad(others), rtol=1e-5)
    assert flat_grad(parameters).norm() <= 0.5


def test_loss_scale_cancels() -> None:
    parameters, others = parameters_of([(50, 3)]), parameters_of([(50, 3)])
    gradients = random_gradients(parameters, 3, torch.Generator().manual_seed(9))
    scaled = {name: loss * 1024 for name, loss in linear_losses(parameters, gradients).items()}
    step = RGB().backward(scaled, parameters, loss_scale=1024.0)
    plain = RGB().backward(linear_losses(others, gradients), others)
    assert torch.allclose(flat_grad(parameters), flat_grad(others), rtol=1e-6)
    assert torch.allclose(step.task_norms, plain.task_norms, rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_step_is_flagged_and_leaves_the_state_alone(bad) -> None:
    parameters = parameters_of([(6, 5), (3,)])
    generator = torch.Generator().manual_seed(10)
    balancer = RGB(update_interval=2)
    for _ in range(3):
        balancer.backward(linear_losses(parameters, random_gradients(parameters, 2, generator)), parameters)
    before = balancer.state_dict()
    gradients = random_gradients(parameters, 2, generator)
    gradients[1][0][2, 2] = bad
    step = balancer.backward(linear_losses(parameters, gradients), parameters)
    assert not step.finite
    after = balancer.state_dict()
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    assert balancer.backward(linear_losses(parameters, random_gradients(parameters, 2, generator)), parameters).finite


@pytest.mark.parametrize("adaptive", [False, True])
def test_state_dict_continues_exactly(adaptive) -> None:
    parameters, others = parameters_of([(20, 30), (7,), (4,)]), parameters_of([(20, 30), (7,), (4,)])
    generator = torch.Generator().manual_seed(11)
    reach = [[1, 1, 0], [1, 0, 1]]
    options = {"update_interval": 2, "use_adaptive_steps": adaptive}
    balancer = RGB(**options)
    for _ in range(3):
        balancer.backward(linear_losses(parameters, random_gradients(parameters, 2, generator, reach)), parameters)
    resumed = RGB(**options)
    resumed.load_state_dict(balancer.state_dict())
    assert resumed.state_dict().keys() == balancer.state_dict().keys()
    for _ in range(4):
        gradients = random_gradients(parameters, 2, generator, reach)
        balancer.backward(linear_losses(parameters, gradients), parameters)
        resumed.backward(linear_losses(others, gradients), others)
        assert torch.equal(flat_grad(parameters), flat_grad(others))
    with pytest.raises(ValueError, match="expected keys"):
        RGB().load_state_dict({"alpha": torch.zeros(2)})


def test_channels_last_weights_get_channels_last_gradients() -> None:
    """Fused AdamW walks parameter and gradient by address; a permuted gradient would move the wrong weights."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Flatten(), nn.LazyLinear(5))
    x = torch.randn(2, 3, 8, 8)
    plain(x)
    last = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    for model in (plain, last):
        balancer = RGB()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
        for step in range(3):
            y = model(x)
            balancer.backward({"a": y.square().mean(), "b": (y - step).abs().mean()}, model.parameters())
            assert all(p.grad.stride() == p.stride() for p in model.parameters())
            optimizer.step()
        if model is plain:
            direction = balancer.ema_direction
    for left, right in zip(plain.parameters(), last.parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-5)
    assert torch.allclose(balancer.ema_direction, direction, atol=1e-4)
    balancer.matrix.set_direction(direction)
    assert torch.equal(balancer.ema_direction, direction)


def test_only_the_given_parameters_are_touched() -> None:
    generator, critic = nn.Linear(4, 4), nn.Linear(4, 1)
    x = torch.ones(2, 4)
    loss = critic(generator(x)).mean()
    RGB().backward({"fake": loss, "norm": generator(x).square().mean()}, generator.parameters())
    assert all(p.grad is not None for p in generator.parameters())
    assert all(p.grad is None for p in critic.parameters())


def test_shared_representation() -> None:
    """With one encoder and heads: the encoder's gradient is the representation's balanced gradient pulled back."""
    torch.manual_seed(0)
    encoder, heads = nn.Linear(6, 5), nn.ModuleList([nn.Linear(5, 1), nn.Linear(5, 2)])
    parameters = [*encoder.parameters(), *heads.parameters()]
    source = encoder(torch.randn(8, 6))
    leaf = source.detach().requires_grad_()
    losses = {"a": heads[0](leaf).square().mean(), "b": 30 * heads[1](leaf).square().mean()}
    balancer = RGB(rep_grad=True, rescale="unit")
    rows = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0].reshape(-1) for loss in losses.values()])
    head_grads = torch.autograd.grad(sum(losses.values()), list(heads.parameters()), retain_graph=True)
    balancer.backward(losses, parameters, representation=(source, leaf))
    expected = DenseRGB()(rows.double(), "unit").float().view_as(leaf)
    assert torch.allclose(leaf.grad, expected, atol=1e-6)
    clone = nn.Linear(6, 5)
    clone.load_state_dict(encoder.state_dict())
    for p, grad in zip(heads.parameters(), head_grads, strict=True):
        assert torch.allclose(p.grad, grad, atol=1e-6)
    # d(source)/d(bias) is the identity for every sample.
    assert torch.allclose(encoder.bias.grad, expected.sum(0), atol=1e-6)


def test_errors_name_what_was_found() -> None:
    parameter = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match=r"expected 2 losses .* found 1"):
        RGB(task_num=2).backward([parameter.sum()], [parameter])
    with pytest.raises(ValueError, match=r"scalar losses, found task_0 of shape \(2,\)"):
        RGB().backward([parameter * 2], [parameter])
    with pytest.raises(ValueError, match="get_share_params"):
        RGB().backward([parameter.sum()])
    with pytest.raises(ValueError, match="rep_grad"):
        RGB(rep_grad=True).backward([parameter.sum()], [parameter])
    with pytest.raises(ValueError, match="mean_norm"):
        RGB(rescale="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean rgb"):
        make_balancer("rbg")


@pytest.mark.parametrize(
    "dtypes", [(torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32), (torch.float32, torch.float64)]
)
@pytest.mark.parametrize("balancer", [RGB, Sum])
def test_every_parameter_gets_a_gradient_of_its_own_dtype(balancer, dtypes) -> None:
    """The same as in float64 up to the rounding of the coarser dtype: 8 bits of bfloat16 are 2^-8 of a value."""
    shapes = [(5, 3), (7,)]
    exact, generator = parameters_of(shapes), torch.Generator().manual_seed(3)
    exact = [nn.Parameter(parameter.detach().double()) for parameter in exact]
    coarse = [nn.Parameter(parameter.detach().to(dtype)) for parameter, dtype in zip(exact, dtypes, strict=True)]
    left, right = balancer(), balancer()
    for _ in range(2):
        gradients = random_gradients(exact, 2, generator)
        left.backward(linear_losses(exact, [[g.double() for g in row] for row in gradients]), exact)
        right.backward(linear_losses(coarse, gradients), coarse)
        for parameter, like in zip(coarse, exact, strict=True):
            assert parameter.grad.dtype == parameter.dtype
            assert torch.allclose(
                parameter.grad.double(), like.grad, rtol=2**-6, atol=2**-6 * float(like.grad.abs().max())
            )


@pytest.mark.parametrize(
    ("entry", "value", "message"),
    [
        ("alpha_state", torch.zeros(3, 1), "alpha_state: expected a tensor"),
        ("prev_losses", torch.zeros(5), r"prev_losses: .* \(2,\), found torch.float32 of shape \(5,\)"),
        ("prev_losses", torch.tensor([math.nan, 0]), "prev_losses: expected finite"),
        ("step_count", torch.zeros(()), "step_count: expected a tensor of int64"),
        ("step_count", 3, "step_count: .* found int"),
        ("ema_direction", torch.zeros(9), r"ema_direction: .* \(19,\)"),
        ("reach", torch.tensor([0, 4]), "reach: expected sets of 2 tasks"),
        ("alpha_state", torch.zeros(1000), "alpha_state: expected angles of 2 tasks, found 1000"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(entry, value, message) -> None:
    parameters, generator = parameters_of([(4, 3), (7,)]), torch.Generator().manual_seed(1)
    balancer = RGB(get_share_params=lambda: parameters)
    balancer.backward(linear_losses(parameters, random_gradients(parameters, 2, generator)))
    before = balancer.state_dict()
    with pytest.raises(ValueError, match=message):
        balancer.load_state_dict({**before, entry: value})
    after = balancer.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mu": 1.0}, "mu: .* from 0|mu: .* below 1"),
        ({"lambd": math.nan}, "lambd: .* found nan"),
        ({"lr_inner": math.inf}, "lr_inner: .* found inf"),
        ({"update_interval": 0}, "update_interval: .* found 0"),
        ({"update_interval": "2"}, "update_interval: .* found '2'"),
        ({"alpha_steps": 1.5}, "alpha_steps: .* whole number"),
        ({"alpha_min": 5, "alpha_max": 2}, r"alpha_max: expected at least alpha_min \(5\), found 2"),
        ({"updat_interval": 2}, "found 'updat_interval'; did you mean update_interval"),
    ],
)
def test_options_outside_their_range_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        make_balancer("rgb", **options)


def test_get_share_params_and_sequence_of_losses() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    balancer = make_balancer("sum", get_share_params=lambda: iter([parameter]), task_name=["a", "b"])
    step = balancer.backward([parameter.sum(), parameter.square().sum()])
    assert step.task_names == ("a", "b")
    assert torch.allclose(parameter.grad, torch.tensor([3.0, 5.0]))
    assert step.cosines[0, 1].item() == pytest.approx(6 / math.sqrt(2 * 20), rel=1e-6)
