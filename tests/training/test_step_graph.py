"""Steps as graphs, on a tape of operators that stands in for a CUDA graph (tests/tape.py); the same on a GPU below."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from aime.multi_task_learning.balancer import GradientBalancer
from aime.ranges import OptionError
from aime.training import TrainConfig
from aime.training import loop as training_loop
from aime.training.session import Session, start_session
from aime.training.step_graph import CudaCapture, StepGraph
from aime.training.stepping import CapturedSteps, make_capturable, obstacle
from aime.training.training_state import capture, restore
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from tests.tape import Tape
from tests.training.toy import ToySource, make_model

CPU = torch.device("cpu")


def graph_of(function: Any, **options: Any) -> tuple[StepGraph[Any], Tape]:
    tape = Tape()
    return StepGraph(function, tape, CPU, **options), tape


def test_a_replay_reads_new_tensors_and_new_numbers_and_moves_the_state() -> None:
    state, calls = torch.zeros(3), []

    def step(x: Tensor, rate: Tensor) -> Tensor:
        calls.append(1)
        state.add_(x * rate)
        return state.sum()

    graph, tape = graph_of(step)
    expected = torch.zeros(3)
    for k in range(7):
        x, rate = torch.full((3,), float(k)), 0.5 + k
        expected += x * rate
        assert float(graph({"x": x, "rate": rate})) == float(expected.sum()), k
    assert torch.equal(state, expected)
    assert (len(calls), tape.recordings, tape.replays) == (4, 1, 4)  # three that warm up, one that is recorded


def test_state_that_a_step_rebinds_stays_behind_on_the_tape() -> None:
    """What the tape is for: a graph would write to the old memory for ever too."""
    held = {"state": torch.zeros(())}

    def step(x: Tensor) -> Tensor:
        held["state"] = held["state"] + x
        return held["state"].clone()

    graph, _ = graph_of(step, warm_ups=1)
    found = [float(graph({"x": torch.ones(())})) for _ in range(4)]
    assert found == [1.0, 2.0, 2.0, 2.0]


def test_shapes_absent_inputs_and_constants_have_graphs_of_their_own_up_to_a_limit() -> None:
    def step(x: Tensor, y: Tensor | None, power: int) -> Tensor:
        return (x if y is None else x + y).pow(power).sum()

    graph, tape = graph_of(step, warm_ups=1, most=3)
    kinds = [(2, False, 1), (3, False, 1), (2, True, 1), (2, False, 2), (4, True, 3)]
    for round_ in range(3):
        for size, both, power in kinds:
            x = torch.full((size,), 2.0 + round_)
            value = graph({"x": x, "y": x if both else None}, power=power)
            assert float(value) == size * ((2.0 + round_) * (2 if both else 1)) ** power
    assert tape.recordings == 3


def test_dropout_and_an_optimizer_replay_to_the_bit() -> None:
    def trained(replayed: bool) -> tuple[list[Tensor], list[float]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
        make_capturable([optimizer])

        def step(x: Tensor) -> Tensor:
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
            return loss.detach()

        graph, _ = graph_of(step)
        call = (lambda x: graph({"x": x})) if replayed else step
        batches = torch.randn(8, 16, 4, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        losses = []
        for k, x in enumerate(batches):
            optimizer.param_groups[0]["lr"].fill_(1e-2 / (1 + k))
            losses.append(float(call(x)))
        return [value.clone() for value in model.state_dict().values()], losses

    plain, replayed = trained(False), trained(True)
    assert plain[1] == replayed[1]
    assert all(torch.equal(left, right) for left, right in zip(plain[0], replayed[0], strict=True))


# ---------------------------------------------------------------------- the training step

MODEL: dict[str, Any] = {
    "action_size": 2, "image_size": 32, "encoder_channels": (8, 8), "decoder_channels": (8, 8), "downsample": 8,
    "hidden_dim": 16, "prior_hidden_dim": 16, "attention_resolution": 4, "latent_channels": 16, "num_codes": 8,
    "mlp_hidden_dim": 16,
}  # fmt: skip
TRAINING: dict[str, Any] = {
    "steps": 40, "batch_size": 2, "sequence_length": 6, "rehearsal_batch": 4, "rehearsal_length": 12, "rehearsals": 1,
    "validation_batches": 1, "rehearsal_seen": 9, "initial_frames": 8, "precision": "float32",
}  # fmt: skip


def toy_source() -> ToySource:
    source = ToySource(episodes=8, length=16)
    source.spec = replace(source.spec, image_shape=(3, 32, 32))
    source.frames = source.frames.repeat(4, -1).repeat(4, -2)
    return source


def session_of(device: torch.device, model: dict[str, Any] | None = None, **training: Any) -> Session:
    torch.manual_seed(0)
    world = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.preset("pillars", **(MODEL | (model or {}))))
    config = TrainConfig.preset("laptop", **(TRAINING | {"cuda_graph": "off"} | training))
    session = start_session(world, toy_source(), config, device)
    if session.rehearsals is not None:  # they follow the step, as on a GPU, where steps are captured
        session.rehearsals.generator = session.generator
    session.model.initialise_from_data(session.data.initial_frames(8, 1), generator=session.generator)
    session.model.train()
    make_capturable(session.optimizers)
    return session


def captured(session: Session, tape: Any) -> Session:
    session.captured = CapturedSteps(session.model, session.config, session.generator, None, tape)
    return session


def stepped(session: Session, steps: int, poisoned: int | None = None) -> dict[str, float]:
    """Take steps as the loop does, one of them on rewards that are not finite; the means of the metrics."""
    with session.data.loader:
        for k in range(steps):
            batch = next(session.data.loader)
            if k == poisoned:
                batch = replace(batch, rewards=batch.rewards * float("nan"))
            training_loop.step_once(session, batch)
    return session.means.read()


def assert_alike(left: Session, right: Session) -> None:
    """Weights, moments, balancer, averages, memory and random states, to the bit."""
    found, expected = (capture(s.model, s.data.loader, s.counters, s.guard, s.generator, s.kept) for s in (left, right))
    assert found.tensors.keys() == expected.tensors.keys()
    for name, value in expected.tensors.items():
        assert torch.equal(found.tensors[name], value), name
    assert found.values["counters"]["step"] == expected.values["counters"]["step"]


VARIANTS: dict[str, dict[str, Any]] = {
    "laptop": {},
    "with critics": {"critic_steps": 1, "adversarial": True},
    "with teacher and mixture of logistics": {
        "gram_frames": 2, "likelihood": "mixture_of_logistics", "likelihood_components": 2
    },
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_captured_steps_are_the_steps_to_the_bit(variant: str) -> None:
    """Rates and beta move, a step is skipped for NaN, rehearsals come in several lengths; nothing differs."""
    plain = session_of(CPU, VARIANTS[variant])
    replayed, tape = session_of(CPU, VARIANTS[variant]), Tape()
    tape.generator = replayed.generator
    captured(replayed, tape)
    expected, found = stepped(plain, 8, poisoned=5), stepped(replayed, 8, poisoned=5)
    assert expected == found
    assert int(plain.guard.total) == int(replayed.guard.total) == 1
    assert_alike(replayed, plain)
    assert tape.recordings >= 2, "the step, and a rehearsal of a length that came twice"
    assert tape.replays > tape.recordings


def test_a_resumed_run_of_captured_steps_is_an_uninterrupted_plain_one() -> None:
    plain, before, after = session_of(CPU), session_of(CPU), session_of(CPU)
    stepped(plain, 8)
    stepped(captured(before, Tape(before.generator)), 5)
    state = capture(before.model, before.data.loader, before.counters, before.guard, before.generator, before.kept)
    state = copy.deepcopy(state)
    after.counters = restore(state, after.model, after.data.loader, after.guard, after.generator, after.kept)
    stepped(captured(after, Tape(after.generator)), 3)
    assert_alike(after, plain)


def test_rates_in_tensors_take_the_steps_of_rates_in_numbers() -> None:
    """Up to the rounding of a rate to float32, and of a gradient near Adam's epsilon, whose step is of any size."""
    sessions = session_of(CPU), session_of(CPU)
    for group in (group for optimizer in sessions[1].optimizers for group in optimizer.param_groups):
        group["lr"] = float(group["lr"])
    for session in sessions:
        stepped(session, 1)
    for left, right in zip(*(session.model.parameters() for session in sessions), strict=True):
        assert torch.allclose(left, right, rtol=1e-6, atol=1e-6)


def test_graphs_are_asked_for_left_open_or_refused_with_the_reason() -> None:
    source, config = ToySource(), TrainConfig(steps=2, batch_size=2, sequence_length=4)
    assert start_session(make_model(), source, config, CPU).captured is None
    with pytest.raises(OptionError, match="cuda_graph: expected auto or off, since CUDA graphs need a CUDA device"):
        start_session(make_model(), source, replace(config, cuda_graph="on"), CPU)
    imagined = torch.device("cuda")
    toy, world = make_model(), session_of(CPU).model
    toy.configure_optimizer(1e-3, 0.0, "rgb")
    assert obstacle(world, imagined, None) is None
    assert "ToyModel does not say that its steps are alike" in str(obstacle(toy, imagined, None))

    class OnTheHost(GradientBalancer):
        def weigh(self, gram: Tensor, losses: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
            raise NotImplementedError

    world._balancer = OnTheHost()
    assert "computes on the host" in str(obstacle(world, imagined, None))


# ---------------------------------------------------------------------- on a GPU

needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def on_cuda(test: Any) -> Any:
    for mark in needs_cuda:
        test = mark(test)
    return test


@on_cuda
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_graphs_take_the_steps(variant: str) -> None:
    """Atomics may add in another order: near, not to the bit. Random numbers are the same ones."""
    device = torch.device("cuda")
    plain, graphed = session_of(device, VARIANTS[variant]), session_of(device, VARIANTS[variant])
    captured(graphed, CudaCapture(graphed.generator))
    expected, found = stepped(plain, 10, poisoned=7), stepped(graphed, 10, poisoned=7)
    assert int(plain.guard.total) == int(graphed.guard.total) == 1
    assert torch.equal(plain.generator.get_state(), graphed.generator.get_state())
    for name in ("total_loss", "recon_loss", "kl_z", "grad_norm", "rehearsal_loss"):
        assert found[name] == pytest.approx(expected[name], rel=2e-2, abs=1e-3), name
    # all parameters together: where a gradient is rounding alone, AdamW makes whole steps of it, in either direction
    left, right = (
        torch.cat([parameter.detach().reshape(-1) for parameter in session.model.parameters()])
        for session in (graphed, plain)
    )
    assert (left - right).norm() <= 2e-2 * right.norm()


@on_cuda
def test_a_run_on_a_gpu_captures_by_itself_and_never_waits() -> None:
    session = session_of(torch.device("cuda"), cuda_graph="auto", rehearsal_seen=12)
    assert session.captured is not None
    with session.data.loader:
        for _ in range(8):
            training_loop.step_once(session, next(session.data.loader))
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                training_loop.step_once(session, next(session.data.loader))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert session.means.read()["total_loss"] > 0


@on_cuda
def test_a_step_that_no_graph_can_hold_is_an_error_with_the_remedy() -> None:
    device = torch.device("cuda")
    graph: StepGraph[Tensor] = StepGraph(
        lambda x: x * float(x.sum()), CudaCapture(torch.Generator(device)), device, warm_ups=1
    )
    graph({"x": torch.ones(3, device=device)})
    with pytest.raises(RuntimeError, match="could not be captured as a CUDA graph .* cuda_graph off"):
        graph({"x": torch.ones(3, device=device)})
