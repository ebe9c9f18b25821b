"""A run on several processes is the run of one: steps, resumed runs, and how it ends when one of them dies.

python -m tests.training.test_distributed    # how far the steps of two ranks are from those of one, by balancer
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aime.command import guarded
from aime.data import WindowSampler
from aime.multi_task_learning import BALANCERS, make_balancer
from aime.ranges import OptionError
from aime.ranks import RankLostError, Ranks
from aime.training import TrainConfig, loop, train
from aime.training.distributed import check_world, joined
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from tests.training import ranks as processes
from tests.training.toy import ToySource

CPU = torch.device("cpu")


def can_be_made(balancer: str) -> bool:
    """Whether what it needs is installed."""
    try:
        make_balancer(balancer)
    except OptionError:
        return False
    return True


HERE = [name for name in BALANCERS if can_be_made(name)]
ALL = [
    pytest.param(name, marks=pytest.mark.skipif(name not in HERE, reason="needs the extra torchjd"))
    for name in BALANCERS
]
STEPS = 2
OPTIONS = {
    "batch_size": 8, "sequence_length": 5, "rehearsal_batch": 4, "rehearsal_length": 8, "validation_batches": 1,
    "validate_every": 4, "checkpoint_every": 2, "log_every": 1, "learning_rate": 1e-4, "warmup_fraction": 0.0,
    "final_learning_rate": 1.0, "beta_warmup_fraction": 0.0, "initial_frames": 64,
}  # fmt: skip
QUIET = {"tensorboard": False, "show_progress": False}


def source() -> ToySource:
    """Episodes of 32 x 32 frames."""
    made = ToySource(episodes=8, length=16)
    made.spec = type(made.spec)(image_shape=(3, 32, 32), action_size=2, domain="toy", task="square")
    made.frames = made.frames.repeat(4, -1).repeat(4, -2)
    return made


def world_model() -> DPGMMVariationalRecurrentAutoencoder:
    """The pillars preset made small, with what looks at the first sequences of a batch alone, and a teacher."""
    torch.manual_seed(0)
    return DPGMMVariationalRecurrentAutoencoder(
        WorldModelConfig.preset(
            "pillars", action_size=2, image_size=32, encoder_channels=(8, 8), decoder_channels=(8, 8), downsample=8,
            hidden_dim=16, prior_hidden_dim=16, attention_resolution=4, latent_channels=16, num_codes=8,
            mlp_hidden_dim=16, perceiver_share=0.5, attention_share=0.5, gram_frames=2,
        )
    )  # fmt: skip


def steps_of(balancer: str, ranks: Ranks | None) -> list[dict[str, dict[str, np.ndarray]]]:
    """Metrics, balanced gradients and codebook of a few steps."""
    model, generator = world_model(), torch.Generator().manual_seed(3)
    model.configure_optimizer(1e-3, 1e-5, balancer)
    model.initialise_from_data(torch.from_numpy(source().frames[0]), generator=generator)
    model.perceiver.tokenizer.quantizer.counts[:3] = 0.0  # codes to be revived
    rank, size = (0, 1) if ranks is None else (ranks.rank, ranks.size)
    sampler = WindowSampler(source(), 8, 5, seed=1, rank=rank, world_size=size)
    found = []
    for k in range(STEPS):
        batch = sampler.batch(k)
        metrics = model.training_step_sequence(
            batch.observations, batch.actions, batch.rewards, batch.continues,
            generator=generator, entropy_weight=0.1, ranks=ranks,
        )  # fmt: skip
        means = {name: value if ranks is None else ranks.mean(value) for name, value in metrics.items()}
        gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        codebook = dict(model.perceiver.tokenizer.quantizer.named_buffers())
        kinds = {"metrics": means, "gradients": gradients, "codebook": codebook}
        found.append({kind: {n: v.numpy().copy() for n, v in values.items()} for kind, values in kinds.items()})
    return found


def representation_step(balancer: str, ranks: Ranks | None) -> dict[str, np.ndarray]:
    """Gradients of a step that is balanced at a representation, of 8 samples in all."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(8, 6, generator=generator)
    encoder, heads = torch.randn(6, 4, generator=generator), torch.randn(3, 4, generator=generator)
    encoder.requires_grad_()
    heads.requires_grad_()
    rows = inputs if ranks is None else ranks.own(inputs)
    encoded = rows @ encoder  # (B, 4)
    leaf = encoded.detach().requires_grad_()
    losses = {f"task_{i}": ((leaf @ heads[i]) - i).square().mean() for i in range(3)}
    step = make_balancer(balancer, rep_grad=True).backward(
        losses, [encoder, heads], representation=(encoded, leaf), max_norm=1.0, ranks=ranks
    )
    found = {"encoder": encoder.grad, "heads": heads.grad, "gram": step.gram, "norm": step.grad_norm}
    return {name: value.numpy() for name, value in found.items()}


def random_step(ranks: Ranks, draw: int) -> np.ndarray:
    """The gradient of a method that draws at random, after each rank has drawn something of its own."""
    torch.manual_seed(2 * draw + ranks.rank)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5]))
    losses = [weight[0] * 3, weight[1] - 4 * weight[0], weight[2] - weight[1] - weight[0]]  # opposed, all of them
    make_balancer("pcgrad").backward(losses, [weight], ranks=ranks)
    assert weight.grad is not None
    return weight.grad.numpy()


def run(path: Path, steps: int, ranks: Ranks | None, **options: Any) -> Any:
    """Train for so many steps."""
    settings = {name: options.pop(name) for name in ("shard", "gradients_every") if name in options}
    config = TrainConfig.preset("laptop", steps=steps, **OPTIONS, **settings)
    return train(world_model(), source(), config, path, ranks=ranks, **{**QUIET, **options})


def on_two(rank: int, directory: Path) -> dict[str, Any]:
    """Everything that two ranks are asked for, in one start."""
    with joined(CPU, 60) as ranks:
        assert ranks is not None and (ranks.rank, ranks.size) == (rank, 2)
        found: dict[str, Any] = {name: steps_of(name, ranks) for name in HERE}
        found["representation"] = {name: representation_step(name, ranks) for name in HERE}
        found["random"] = [random_step(ranks, draw) for draw in range(8)] if "pcgrad" in HERE else []
        whole = torch.arange(12).reshape(6, 2)
        found["own"], found["gathered"] = ranks.own(whole).tolist(), ranks.gather(ranks.own(whole)).tolist()
        run(directory / "two", 2, ranks)
        step_once = loop.step_once

        def stopped(session: Any, batch: Any) -> None:
            step_once(session, batch)
            if rank == 1 and session.counters.step == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        loop.step_once = stopped
        result = run(directory / "stopped", 4, ranks)
        found["stopped"] = (result.step, result.stopped_by, result.metrics)
    return found


def on_four(rank: int, directory: Path) -> None:
    """Continue the run of two ranks."""
    with joined(CPU, 60) as ranks:
        run(directory, 4, ranks, resume=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def two(directory: Path) -> list[dict[str, Any]]:
    return processes.run(on_two, 2, directory)


@pytest.mark.parametrize("balancer", ALL)
def test_a_step_of_two_ranks_is_the_step_of_one(two: list[dict[str, Any]], balancer: str) -> None:
    for k, expected in enumerate(steps_of(balancer, None)):
        for rank in range(2):
            found = two[rank][balancer][k]
            for kind, values in expected.items():
                assert found[kind].keys() == values.keys()
                for name, value in values.items():
                    np.testing.assert_allclose(
                        found[kind][name], value, rtol=1e-5, atol=1e-5, err_msg=f"step {k}, rank {rank}: {kind}, {name}"
                    )


@pytest.mark.parametrize("balancer", ALL)
def test_so_is_one_that_is_balanced_at_a_representation(two: list[dict[str, Any]], balancer: str) -> None:
    for name, value in representation_step(balancer, None).items():
        for rank in range(2):
            found = two[rank]["representation"][balancer][name]
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-6, err_msg=f"rank {rank}: {name}")


@pytest.mark.skipif("pcgrad" not in HERE, reason="needs the extra torchjd")
def test_a_method_that_draws_at_random_is_the_same_on_all_ranks(two: list[dict[str, Any]]) -> None:
    np.testing.assert_array_equal(two[0]["random"], two[1]["random"])


def test_rows_of_the_ranks_are_those_of_the_global_batch(two: list[dict[str, Any]]) -> None:
    whole = torch.arange(12).reshape(6, 2)
    for rank in range(2):
        assert two[rank]["own"] == whole[rank::2].tolist() and two[rank]["gathered"] == whole.tolist()


def test_a_signal_to_one_rank_stops_all_after_the_same_step(two: list[dict[str, Any]], directory: Path) -> None:
    first, second = (found["stopped"] for found in two)
    assert first[:2] == second[:2] == (1, "SIGTERM")
    assert (directory / "stopped" / "checkpoints" / "step_00000001").is_dir()
    assert first[2]["total_loss"] == second[2]["total_loss"]  # the mean over both


def lines_of(path: Path) -> dict[int, dict[str, float]]:
    return {entry["step"]: entry for entry in map(json.loads, (path / "metrics.jsonl").read_text().splitlines())}


def test_a_checkpoint_of_two_ranks_resumes_on_one_and_on_four(two: list[dict[str, Any]], directory: Path) -> None:
    """Rehearsals, averages and validation among it."""
    run(directory / "one", 4, None)
    expected = lines_of(directory / "one")
    assert sorted(expected) == [1, 2, 3, 4] and "rehearsal_loss" in expected[4]
    processes.run(on_four, 4, directory / "two")
    on_four_ranks = lines_of(directory / "two")
    for later in (directory / "two" / "checkpoints").glob("step_00000004"):
        later.rename(directory / "aside")
    run(directory / "two", 4, None, resume=True)
    for found in (on_four_ranks, lines_of(directory / "two")):
        assert sorted(found) == [1, 2, 3, 4]
        for step, line in expected.items():
            rehearsed = ("rehearsal_loss",) if step > 1 else ()  # beside the first step nothing is remembered yet
            assert ("rehearsal_loss" in found[step]) == ("rehearsal_loss" in line) == bool(rehearsed)
            for name in ("total_loss", "grad_norm", *rehearsed, "perceiver_perplexity", "frames"):
                # AdamW turns gradients of 1e-8 into steps of the rate, 1e-4; orthogonal steps level all directions
                # of a gradient, those of rounding too
                assert found[step].get(name) == pytest.approx(line.get(name), rel=1e-2), (step, name)
        assert found[4]["validation/total_loss"] == pytest.approx(expected[4]["validation/total_loss"], rel=1e-3)


def dies(rank: int, directory: Path) -> None:
    """As a command: rank 1 is killed in its second step; or, in another directory, meets an error of its own."""
    step_once = loop.step_once

    def step(session: Any, batch: Any) -> None:
        if rank == 1 and session.counters.step == 1:
            if directory.name == "killed":
                os._exit(9)
            raise ValueError("the disk of rank 1 is gone")
        step_once(session, batch)

    def command() -> int:
        with joined(CPU, 60) as ranks:
            run(directory, 3, ranks)
        return 0

    loop.step_once = step
    sys.stderr = (directory.parent / f"{directory.name}_{rank}").open("w")
    (directory.parent / f"{directory.name}_status_{rank}").write_text(str(guarded(command)))
    sys.stderr.flush()


@pytest.mark.parametrize(("end", "message"), [("killed", "ended or did not answer"), ("failed", "disk of rank 1")])
def test_a_dead_rank_ends_the_job_with_one_message(tmp_path: Path, end: str, message: str) -> None:
    started, _ = processes.start(dies, 2, tmp_path / end)
    for process in started:
        process.join(processes.PATIENCE)
    said = [(tmp_path / f"{end}_{rank}").read_text() for rank in range(2)]
    assert "".join(said).count("error:") == 1 and message in "".join(said), said
    assert (tmp_path / f"{end}_status_0").read_text() == "1"


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match="expected a multiple of the 3 processes .* found 8"):
        check_world(TrainConfig(batch_size=8, steps=1), Ranks(0, 3))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(OptionError, match="RANK, MASTER_ADDR, MASTER_PORT"), joined(CPU, 1):
        pass
    assert issubclass(RankLostError, RuntimeError)


def on_two_steps(rank: int) -> dict[str, Any]:
    """Steps and representation steps of two ranks, for every balancer that can be made here."""
    with joined(CPU, 60) as ranks:
        return {name: (steps_of(name, ranks), representation_step(name, ranks)) for name in HERE}


def differences() -> None:
    """Print how far numbers of two ranks are at most from those of one process, |a - b| / max(1, |b|), by balancer."""
    two = processes.run(on_two_steps, 2)
    print("balancer gradients metrics codebook representation")
    for name in HERE:
        one, alone = steps_of(name, None), representation_step(name, None)
        largest = dict.fromkeys(("gradients", "metrics", "codebook", "representation"), 0.0)
        for found, represented in (two[rank][name] for rank in range(2)):
            pairs = [("representation", represented[key], alone[key]) for key in alone]
            for k, kinds in enumerate(one):
                pairs += [(kind, found[k][kind][key], v) for kind, values in kinds.items() for key, v in values.items()]
            for kind, left, right in pairs:
                distance = np.abs(left - right) / np.maximum(1.0, np.abs(right))
                largest[kind] = max(largest[kind], float(distance.max(initial=0.0)))
        print(name, *(f"{value:.1e}" for value in largest.values()))


if __name__ == "__main__":
    differences()
