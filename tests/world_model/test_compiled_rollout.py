"""The rollout in C++ against the same rollout under autograd, and against PyTorch's operations in bfloat16."""

import copy
import gc
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from aime.kernels import dispatch
from aime.kernels.extension import load
from aime.temporal_dynamics import LSTMState
from aime.world_model import DPGMMVariationalRecurrentAutoencoder
from aime.world_model.compiled_rollout import Record, run_backward, run_forward
from aime.world_model.latent_rollout import RolloutNoise, roll_latents
from tests.world_model.test_latent_rollout import rolled_by_autograd, small_model

pytestmark = pytest.mark.skipif(not dispatch.EXTENSION_BUILT, reason="aime.kernels._cpu is not built")

SETS = load().instruction_sets() if dispatch.EXTENSION_BUILT else []
FRAMES, BATCH = 6, 13  # rows in groups of 8, 4 and 1
#: hidden units in multiples of 16; [z; a; h] of an odd number of rows; widths that are no whole panels
SIZES = {"hidden_dim": 32, "prior_hidden_dim": 64, "latent_dim": 5, "context_in_posterior": False}


class Given(NamedTuple):
    """What is rolled out."""

    hidden: Tensor
    latent: Tensor
    raw: Tensor
    cell: Tensor
    actions: Tensor
    noise: RolloutNoise


def model_and_input(
    changes: dict[str, object] | None = None, batch: int = BATCH, frames: int = FRAMES
) -> tuple[DPGMMVariationalRecurrentAutoencoder, Given]:
    model = small_model(**{**SIZES, **(changes or {})})
    with torch.no_grad():  # recurrent weights under which rounding does not grow from frame to frame
        for part in (model.prior.component_net, model.dynamics.lstm):
            for parameter in part.parameters():
                parameter.mul_(0.3)
    config = model.config
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator).requires_grad_()

    layers = config.num_lstm_layers
    state = draw(config.hidden_dim), draw(config.latent_dim)
    recurrent = draw(layers, config.hidden_dim), draw(layers, config.hidden_dim)
    actions = draw(frames, config.action_size)
    return model, Given(*state, *recurrent, actions, RolloutNoise.draw(model, frames, batch, generator))


def rolled(model: DPGMMVariationalRecurrentAutoencoder, given: Given, compiled: bool | None) -> tuple[Tensor, Tensor]:
    hidden, latent, raw, cell, actions, noise = given
    return roll_latents(model, hidden, latent, LSTMState(raw, cell), actions, noise, compiled=compiled)


def weights_of(model: DPGMMVariationalRecurrentAutoencoder) -> tuple[Tensor, ...]:
    """In the order of `roll_latents`."""
    network = tuple(model.prior.component_net.network.parameters())  # linear, LayerNorm, linear
    top = model.dynamics.norm
    return (*network, model.persistence, top.weight, top.bias, *model.dynamics.lstm.all_weights[0])


def upstream(model: DPGMMVariationalRecurrentAutoencoder, given: Given) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape, config = given.actions.shape[:2], model.config
    hiddens = torch.randn(*shape, config.hidden_dim, generator=generator)
    return hiddens, torch.randn(*shape, config.latent_dim, generator=generator)


def by_kernel(
    model: DPGMMVariationalRecurrentAutoencoder, given: Given, narrow: torch.dtype, instructions: str
) -> list[Tensor]:
    """h, z and the gradients of actions, state and weights on one instruction set."""
    noise = (given.noise.sticks, given.noise.choice, given.noise.normal)
    inputs = (given.actions, given.hidden, given.latent, given.raw, given.cell)
    record = run_forward(model, noise, inputs, weights_of(model), narrow, instructions)
    state, weights = run_backward(record, *upstream(model, given))
    return [*record.found[:2], *state, *weights]


def by_gradient(
    model: DPGMMVariationalRecurrentAutoencoder, given: Given, found: tuple[Tensor, Tensor]
) -> list[Tensor]:
    """The same from h and z that remember how they came about."""
    inputs = (given.actions, given.hidden, given.latent, given.raw, given.cell)
    weights = [part.to(found[0].dtype) for part in upstream(model, given)]
    gradients = torch.autograd.grad(found, [*inputs, *weights_of(model)], weights)
    return [*(part.detach() for part in found), *gradients]


def relative(found: list[Tensor], expected: list[Tensor]) -> list[float]:
    """Length of each error over the length of what is expected."""
    return [
        float((ours.double() - reference.double()).norm() / reference.double().norm())
        for ours, reference in zip(found, expected, strict=True)
    ]


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("changes", [{}, {"max_components": 1}, {"latent_dim": 18, "hidden_dim": 80}], ids=str)
def test_values_and_gradients_are_those_of_autograd(changes: dict[str, object], instructions: str) -> None:
    model, given = model_and_input(changes)
    wide = copy.deepcopy(model).double()
    wide.expect_float32 = lambda: None  # type: ignore[method-assign]
    hidden, latent, raw, cell, actions = (tensor.detach().double().requires_grad_() for tensor in given[:5])
    noise = RolloutNoise(given.noise.sticks.double(), given.noise.choice.double(), given.noise.normal.double())
    doubles = Given(hidden, latent, raw, cell, actions, noise)
    found = rolled_by_autograd(wide, doubles[:4], doubles.actions, doubles.noise)
    exact = by_gradient(wide, doubles, found)
    ours = relative(by_kernel(model, given, torch.float32, instructions), exact)
    theirs = relative(by_gradient(model, given, rolled(model, given, compiled=False)), exact)
    assert max(ours) < 1e-5
    assert sum(ours) < 2 * sum(theirs)  # PyTorch's own rounding in float32


@pytest.mark.parametrize("instructions", SETS)
def test_bfloat16_is_as_near_as_that_of_pytorch(instructions: str) -> None:
    model, given = model_and_input()
    exact = by_gradient(model, given, rolled(model, given, compiled=False))
    with torch.autocast("cpu", torch.bfloat16):
        eager = by_gradient(model, given, rolled(model, given, compiled=False))
    ours = relative(by_kernel(model, given, torch.bfloat16, instructions), exact)
    theirs = relative(eager, exact)
    assert max(ours) > 1e-4  # it is bfloat16
    assert sum(ours) < 1.2 * sum(theirs)


def test_autograd_reaches_the_kernel() -> None:
    model, given = model_and_input()
    for narrow, autocast in ((torch.float32, False), (torch.bfloat16, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            found = rolled(model, given, compiled=None)
        assert found[0].grad_fn is not None
        assert "CompiledRollout" in found[0].grad_fn.name()
        for ours, kernel in zip(by_gradient(model, given, found), by_kernel(model, given, narrow, ""), strict=True):
            torch.testing.assert_close(ours, kernel, rtol=0, atol=0)  # and two runs give the same bits


def test_what_is_kept_for_the_gradient_goes_with_the_outputs() -> None:
    model, given = model_and_input()
    gc.collect()
    gc.disable()
    try:
        found = rolled(model, given, compiled=True)
        assert any(type(item) is Record for item in gc.get_objects())
        del found
        assert not any(type(item) is Record for item in gc.get_objects())
    finally:
        gc.enable()


def test_choice_and_sample_are_those_of_pytorch_in_many_rows() -> None:
    model, given = model_and_input({"max_components": 6}, batch=4000, frames=1)
    with torch.no_grad():
        ours, eager = rolled(model, given, compiled=True), rolled(model, given, compiled=False)
    for found, expected in zip(ours, eager, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # another component is another number


@pytest.mark.parametrize("narrow", [torch.float32, torch.bfloat16])
def test_a_row_has_the_same_bits_alone(narrow: torch.dtype) -> None:
    model, given = model_and_input()
    together = by_kernel(model, given, narrow, "")[:7]  # h, z, gradients of actions and state
    gradients = upstream(model, given)
    for row in (0, 8, 12):
        noise = tuple(part[:, row : row + 1] for part in (given.noise.sticks, given.noise.choice, given.noise.normal))
        inputs = [part[row : row + 1] for part in (given.actions, given.hidden, given.latent, given.raw, given.cell)]
        record = run_forward(model, noise, tuple(inputs), weights_of(model), narrow)  # type: ignore[arg-type]
        state, _ = run_backward(record, *(part[row : row + 1] for part in gradients))
        for alone, all_rows in zip((*record.found[:2], *state), together, strict=True):
            torch.testing.assert_close(alone, all_rows[row : row + 1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"num_lstm_layers": 2}, "one layer, found 2"),
        ({"context_in_posterior": True}, "no context vector"),
        ({"hidden_dim": 24}, "hidden_dim: it takes multiples of 16, found 24"),
        ({"prior_hidden_dim": 32}, "sticks' network: it takes multiples of 16, found 8"),
    ],
)
def test_what_it_cannot_take_is_for_pytorch_or_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    model, given = model_and_input(changes)
    grad_fn = rolled(model, given, compiled=None)[0].grad_fn
    assert grad_fn is not None
    assert "CompiledRollout" not in grad_fn.name()
    with pytest.raises(RuntimeError, match=reason):
        rolled(model, given, compiled=True)


def test_other_dtypes_are_refused_with_the_reason() -> None:
    model, given = model_and_input()
    with torch.autocast("cpu", torch.float16), pytest.raises(RuntimeError, match=r"found torch\.float16"):
        rolled(model, given, compiled=True)
    with pytest.raises(RuntimeError, match=r"found torch\.float64"):
        rolled(model.double(), given, compiled=True)


@pytest.mark.parametrize("field", ["hidden", "latent", "raw", "cell", "actions"])
def test_another_shape_is_named(field: str) -> None:
    model, given = model_and_input()
    wrong = given._replace(**{field: getattr(given, field)[..., 1:]})
    with pytest.raises(ValueError, match=field):
        rolled(model, wrong, compiled=True)


def test_noise_of_too_few_frames_is_named() -> None:
    model, given = model_and_input()
    noise = RolloutNoise(given.noise.sticks, given.noise.choice, given.noise.normal[1:])
    with pytest.raises(ValueError, match="normal: expected"):
        rolled(model, given._replace(noise=noise), compiled=True)


def test_the_kernel_refuses_sizes_that_are_no_whole_vectors() -> None:
    sizes = (1, 1, 24, 64, 16, 3, 5, 2)
    with pytest.raises(ValueError, match="hidden: expected a positive multiple of 16, found 24"):
        load().latent_rollout(sizes, False, [0] * 18, [0] * 8, [0] * 13)
