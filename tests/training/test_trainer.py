"""DMCVBTrainer over the functional core."""

from __future__ import annotations

import pytest

from aime.training import DMCVBTrainer, TrainConfig
from tests.training.toy import ToySource, make_model

VALUES = {"batch_size": 4, "sequence_length": 6, "log_every": 5, "validate_every": 0, "checkpoint_every": 0}


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    """The toy's episodes as a file."""
    from aime.data import Episode, EpisodeWriter

    source = ToySource(8, 18)
    path = tmp_path_factory.mktemp("episodes") / "toy_square.h5"
    with EpisodeWriter(path, source.spec) as writer:
        for episode in range(8):
            window = source.window(episode, 0, 18)
            writer.append(Episode(window.observations, window.actions, window.rewards, window.continues))
    return path


def test_trains_from_a_dictionary_and_evaluates(tmp_path, episodes) -> None:
    values = {**VALUES, "domain_name": "toy", "task_name": "square", "num_epochs": 20, "learning_rate": 3e-3}
    trainer = DMCVBTrainer(make_model(), episodes.parent, values, run_directory=tmp_path / "run")
    trainer.model.eval()
    before = trainer.evaluate()["total_loss"]
    assert not trainer.model.training  # the mode it was found in
    result = trainer.train(tensorboard=False, show_progress=False)
    assert result.finished and result.weights == tmp_path / "run" / "weights"
    after = trainer.evaluate()["total_loss"]
    assert after < before
    assert after == pytest.approx(result.metrics["validation/total_loss"], rel=1e-5)
    assert trainer.best_eval_loss == result.metrics["validation/total_loss"]


def test_epochs_may_be_given_to_train(tmp_path, episodes) -> None:
    trainer = DMCVBTrainer(make_model(), episodes, TrainConfig(**VALUES, seconds=1e9), run_directory=tmp_path / "run")
    # 6 training episodes of 18 frames, 24 frames a step: 4 steps an epoch.
    assert trainer.train(2, tensorboard=False, show_progress=False).step == 8


def test_beta_warm_up_in_epochs(episodes) -> None:
    values = {**VALUES, "n_epochs": 100, "beta_warmup_epochs": 40, "beta_min": 0.0}
    trainer = DMCVBTrainer(make_model(), episodes, values)
    assert trainer.anneal_beta(0) == 0 and trainer.anneal_beta(20) == pytest.approx(0.5)
    assert trainer.anneal_beta(40) == trainer.anneal_beta(70) == 1


def test_options_without_effect_are_named(episodes) -> None:
    with pytest.warns(UserWarning, match=r"num_workers \(one background thread.*use_wandb"):
        DMCVBTrainer(make_model(), episodes, {**VALUES, "steps": 3, "num_workers": 4, "use_wandb": False})
    with pytest.raises(TypeError, match="did you mean sequence_length"):
        DMCVBTrainer(make_model(), episodes, {**VALUES, "steps": 3, "sequence_lenght": 4})
