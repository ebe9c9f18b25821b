"""The predicted map: a distribution, causal, the same step by step, exact where the motion is known."""

import pytest
import torch
from torch import Tensor

from aime.attention_schema import AttentionPrior, ConvGRUCell, center_of_mass

SIDE = 7


@pytest.fixture
def prior() -> AttentionPrior:
    torch.manual_seed(0)
    prior = AttentionPrior(SIDE, 6, 4, state_channels=8, condition_width=12)
    with torch.no_grad():  # away from the initial "stay", so that a missing term shows
        for parameter in prior.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return prior


def inputs(batch: int, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    maps = (3 * torch.randn(batch, steps, SIDE * SIDE)).softmax(-1).reshape(batch, steps, SIDE, SIDE)
    return maps, torch.randn(batch, steps, 6), torch.randn(batch, steps, 4)


def force_motion(prior: AttentionPrior, dx: int, dy: int) -> None:
    """Every cell sends all of its mass by (dx, dy), nothing is proposed elsewhere."""
    move = int((prior.offsets == torch.tensor([dx, dy], dtype=torch.float32)).all(-1).nonzero())
    with torch.no_grad():
        for layer in (prior.motion, prior.condition_motion, prior.condition_mixture):
            layer.weight.zero_()
            assert layer.bias is not None
            layer.bias.zero_()
        assert prior.motion.bias is not None
        prior.motion.bias[move] = 60.0
        prior.condition_mixture.bias.fill_(-60.0)


@pytest.mark.parametrize(("batch", "steps"), [(3, 5), (1, 2), (1, 1)])
def test_predictions_are_distributions_with_finite_logs(prior: AttentionPrior, batch: int, steps: int) -> None:
    maps, hidden, latents = inputs(batch, steps)
    maps[:, 0] = torch.nn.functional.one_hot(torch.tensor(3), SIDE * SIDE).reshape(SIDE, SIDE)  # empty cells
    output = prior(maps, 30 * hidden, 30 * latents)
    assert output.maps.shape == (batch, steps, SIDE, SIDE) and output.movement.shape == (batch, steps, 2)
    assert torch.allclose(output.maps.sum((-2, -1)), torch.ones(batch, steps), atol=1e-5)
    assert output.log_maps.isfinite().all()
    assert torch.allclose(output.log_maps.exp(), output.maps, atol=1e-6)
    output.log_maps.sum().backward()
    for name, parameter in prior.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_sequence_and_steps_agree(prior: AttentionPrior) -> None:
    maps, hidden, latents = inputs(3, 6)
    sequence, state = prior(maps, hidden, latents), None
    for t in range(6):
        step = prior.step(maps[:, t], hidden[:, t], latents[:, t], state)
        state = step.state
        assert torch.allclose(step.maps, sequence.maps[:, t], atol=1e-6)
        assert torch.allclose(step.log_maps, sequence.log_maps[:, t], atol=1e-5)
        assert torch.allclose(step.movement, sequence.movement[:, t], atol=1e-5)
        assert torch.allclose(step.states, sequence.states[:, t], atol=1e-6)
    assert state is not None and torch.allclose(state, sequence.state, atol=1e-6)


def test_later_inputs_change_nothing_earlier(prior: AttentionPrior) -> None:
    arguments = inputs(2, 6)
    before = prior(*arguments).maps
    for which in range(3):
        changed = [argument.clone() for argument in arguments]
        changed[which][:, 4] = changed[which][:, 4].flip(-1)
        after = prior(*changed).maps
        assert torch.equal(before[:, :4], after[:, :4])
        assert not torch.allclose(before[:, 4], after[:, 4], atol=1e-4)


def test_state_is_carried(prior: AttentionPrior) -> None:
    maps, hidden, latents = inputs(2, 6)
    first = prior(maps[:, :3], hidden[:, :3], latents[:, :3])
    second = prior(maps[:, 3:], hidden[:, 3:], latents[:, 3:], first.state)
    whole = prior(maps, hidden, latents)
    assert torch.allclose(torch.cat((first.maps, second.maps), 1), whole.maps, atol=1e-6)
    forgotten = prior(maps[:, 3:], hidden[:, 3:], latents[:, 3:])
    assert not torch.allclose(forgotten.maps, second.maps, atol=1e-4)


@pytest.mark.parametrize(("dx", "dy"), [(0, 0), (2, 0), (-1, 2)])
def test_known_motion_is_exact(prior: AttentionPrior, dx: int, dy: int) -> None:
    force_motion(prior, dx, dy)
    before = torch.zeros(1, 1, SIDE, SIDE)
    before[..., 2:4, 3] = 0.5
    output = prior(before, torch.randn(1, 1, 6), torch.randn(1, 1, 4))
    moved = before.roll((dy, dx), (-2, -1))
    assert torch.allclose(output.maps, moved * (1 - 1e-3) + 1e-3 / SIDE**2, atol=1e-6)
    assert torch.allclose(output.movement[0, 0], torch.tensor([float(dx), float(dy)]), atol=1e-5)


def test_mass_at_the_border_stays_inside_and_movement_is_that_of_the_centre(prior: AttentionPrior) -> None:
    force_motion(prior, 2, -2)
    with torch.no_grad():
        prior.motion.bias.mul_(0.05)  # type: ignore[union-attr]
    before, hidden, latents = inputs(4, 2)
    output = prior(before, hidden, latents)
    assert torch.allclose(output.maps.sum((-2, -1)), torch.ones(4, 2), atol=1e-5)
    transported = (output.maps - 1e-3 / SIDE**2) / (1 - 1e-3)
    travelled = center_of_mass(transported) - center_of_mass(before)
    assert torch.allclose(output.movement, travelled, atol=1e-4)


def test_starts_near_no_motion() -> None:
    torch.manual_seed(0)
    prior = AttentionPrior(SIDE, 6, 4, state_channels=8)
    before = torch.zeros(1, 1, SIDE, SIDE)
    before[..., 3, 3] = 1.0
    output = prior(before, torch.randn(1, 1, 6), torch.randn(1, 1, 4))
    assert output.maps.argmax() == before.argmax()
    assert output.movement.abs().max() < 0.1


def test_cell_is_the_same_with_the_input_part_outside() -> None:
    torch.manual_seed(0)
    cell = ConvGRUCell(2, 4, kernel_size=3, input_kernel_size=5)
    x, hidden = torch.randn(3, 2, 6, 6), torch.randn(3, 4, 6, 6)
    assert torch.equal(cell(x, hidden), cell.advance(cell.input_conv(x), hidden))
    with torch.no_grad():  # update gate open: the state is kept
        cell.input_conv.bias[4:8] = 50.0  # type: ignore[index]
    assert torch.allclose(cell(x, hidden), hidden, atol=1e-6)


def test_state_dict_is_complete_and_strict(prior: AttentionPrior) -> None:
    other = AttentionPrior(SIDE, 6, 4, state_channels=8, condition_width=12)
    other.load_state_dict(prior.state_dict(), strict=True)
    arguments = inputs(1, 2)
    assert torch.equal(prior(*arguments).maps, other(*arguments).maps)


def test_wrong_shapes_are_named(prior: AttentionPrior) -> None:
    maps, hidden, latents = inputs(2, 3)
    with pytest.raises(ValueError, match=r"previous_maps: expected .*R1=7"):
        prior(maps[..., 1:], hidden, latents)
    with pytest.raises(ValueError, match=r"hidden: expected .*T=3, Hd=6"):
        prior(maps, hidden[:, 1:], latents)
    with pytest.raises(ValueError, match=r"latents: expected .*D=4"):
        prior(maps, hidden, latents[..., 1:])
