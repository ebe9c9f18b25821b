"""Steps with compiled networks are the steps as they are, and leave nothing on the model."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from aime.ranges import OptionError
from aime.ranks import Ranks
from aime.training import TrainConfig
from aime.training.compiling import CompiledNetworks, make_compiled
from aime.training.resuming import FIXED
from aime.training.session import Session, start_session
from aime.world_model import DPGMMVariationalRecurrentAutoencoder
from tests.training.test_step_graph import CPU, session_of, stepped
from tests.training.toy import ToySource, make_model


def model_of(session: Session) -> DPGMMVariationalRecurrentAutoencoder:
    assert isinstance(session.model, DPGMMVariationalRecurrentAutoencoder)
    return session.model


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # which dynamo asks for of every tensor
def test_compiled_steps_are_the_steps() -> None:
    """With rehearsals beside them. AdamW moves a weight whose gradient is rounding alone by whole steps: all at once.

    Without inductor, whose compiling takes minutes; bench/compiled_step.py compares the losses of steps with it.
    """
    plain, compiled = session_of(CPU), session_of(CPU)
    world = model_of(compiled)
    compiled.compiled = CompiledNetworks(world.compilable_methods, "aot_eager")
    start = torch.cat([parameter.detach().clone().flatten() for parameter in world.parameters()])
    expected, found = stepped(plain, 4), stepped(compiled, 4)
    assert found.keys() == expected.keys()
    for name in ("total_loss", "recon_loss", "kl_z", "grad_norm", "rehearsal_loss"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-6), name
    left, right = (
        torch.cat([parameter.detach().flatten() for parameter in session.model.parameters()])
        for session in (compiled, plain)
    )
    assert (left - right).norm() <= 1e-2 * (right - start).norm()


def test_nothing_of_it_stays_on_the_model() -> None:
    model = model_of(session_of(CPU))
    methods = model.compilable_methods
    networks = CompiledNetworks(methods, "eager")
    with networks.in_place():
        assert all(name in vars(module) for module, name in methods)
    assert not any(name in vars(module) for module, name in methods)
    pickle.dumps(model.encoder)


def test_a_compiler_that_fails_is_one_error_with_the_remedy() -> None:
    def failing(*_: object) -> None:
        raise OSError("no compiler here")

    session = session_of(CPU)
    session.compiled = CompiledNetworks(model_of(session).compilable_methods, failing)
    with pytest.raises(RuntimeError, match="compile: .*no compiler here.*--train.compile false"):
        stepped(session, 1)


def test_it_is_off_and_refused_with_the_reason_where_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda method, backend: (backend, method))
    source, config = ToySource(), TrainConfig(steps=2, batch_size=2, sequence_length=4)
    assert start_session(make_model(), source, config, CPU).compiled is None
    asked, world = replace(config, compile=True), session_of(CPU).model
    with pytest.raises(OptionError, match="compile: .*ToyModel does not say what of it to compile.*found true"):
        start_session(make_model(), source, asked, CPU)
    with pytest.raises(OptionError, match="compile: .*not captured .cuda_graph off.*cuda_graph is auto"):
        make_compiled(world, asked, torch.device("cuda"), None)
    assert make_compiled(world, replace(asked, cuda_graph="off"), torch.device("cuda"), None) is not None
    with pytest.raises(OptionError, match="compile: .*a run of one process, and this one has 2"):
        make_compiled(world, asked, CPU, Ranks(0, 2))
    assert "compile" not in FIXED, "a resumed run may switch it"
