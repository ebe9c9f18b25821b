"""When a model passes what a baseline ends with: by definition, and as a run of a few steps."""

import dataclasses

import pytest
import torch

from aime.evaluation.protocol import EvaluationConfig
from aime.training import TrainConfig
from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
from bench.time_to_quality import Look, first_pass, measure, print_table
from tests.evaluation.ring_world import RingWorld
from tests.evaluation.test_cli import SMALL

PROTOCOL = EvaluationConfig(horizons=(1, 5), context=4, samples=2, starts=1, episodes=2, films=1)


def test_the_first_look_that_reaches_the_figure_counts() -> None:
    looks = [Look(10.0, 1, {1: 12.0, 5: 9.0}), Look(20.0, 2, {1: 15.0, 5: 9.5}), Look(30.0, 3, {1: 14.0, 5: 9.9})]
    assert first_pass(looks, Look(30.0, 9, {1: 14.5, 5: 10.0})) == {1: 20.0, 5: None}


def test_a_run_of_a_few_steps(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = DPGMMVariationalRecurrentAutoencoder(WorldModelConfig.from_names(**SMALL))
    config = TrainConfig(steps=4, batch_size=2, sequence_length=6, validate_every=0, validation_batches=1)
    source = RingWorld(episodes=10, length=24)
    looks, finished = measure(model, source, config, 2, PROTOCOL, "rssm_tuned")
    assert [look.frames for look in looks] == [2 * 12, 4 * 12]
    assert 0 < looks[0].cpu_seconds < looks[1].cpu_seconds <= finished.cpu_seconds
    assert all(set(look.psnr) == {1, 5} for look in (*looks, finished))
    print_table(looks, finished, first_pass(looks, finished), "rssm_tuned")
    printed = capsys.readouterr().out
    assert "1 ahead: " in printed and "rssm_tuned" in printed
    with pytest.raises(ValueError, match=r"at least one step a look \(5\), found 4 steps"):
        measure(model, source, dataclasses.replace(config, steps=4), 5, PROTOCOL)
