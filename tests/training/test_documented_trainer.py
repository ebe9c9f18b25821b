"""DMCVBTrainer as the original's documents use it: their dictionary, their datasets, and the pieces of a run."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from aime.data import Episode, EpisodeSpec, EpisodeWriter
from aime.training import DMCVBDataset, DMCVBTrainer
from aime.training.checkpoint import CheckpointDirectory
from tests.world_model.conftest import small_model

DOCUMENTED = {
    "domain_name": "humanoid",
    "sequence_length": 4,
    "frame_stack": 1,
    "img_height": 32,
    "img_width": 32,
    "batch_size": 4,
    "num_workers": 4,
    "use_wandb": False,
    "wandb_project": "aime-tier1-debug",
    "experiment_name": "documented",
    "beta_min": 0.0,
    "beta_max": 1.0,
    "beta_warmup_epochs": 40,
    "beta_eval": 1.0,
    "beta": 1.0,
    "entropy_weight": 0.6,
    "lambda_img": 1.0,
    "lambda_recon": 1.0,
    "lambda_att_dyn": 0.95,
    "lambda_gram": 0.05,
    "n_critic": 1,
    "visualize_every": 4,
    "checkpoint_every": 10,
    "learning_rate": 2e-4,
    "grad_clip": 5.0,
    "latent_dim": 6,
}


def write_walk(path, size: int = 32, actions: int = 2, episodes: int = 6, length: int = 12) -> None:
    """Episodes of a brightness that the first action moves."""
    rng = np.random.default_rng(0)
    spec = EpisodeSpec(image_shape=(3, size, size), action_size=actions, domain="humanoid", task="walk")
    with EpisodeWriter(path, spec, split_seed=1) as writer:
        for _ in range(episodes):
            moves = rng.uniform(-1, 1, (length, actions)).astype(np.float32)
            level = 128 + 60 * np.tanh(np.cumsum(moves[:, 0]))
            frames = np.broadcast_to(level[:, None, None, None], (length, 3, size, size)).astype(np.uint8)
            ones = np.ones(length, np.float32)
            writer.append(Episode(frames, moves, ones, ones))


@pytest.fixture(scope="module")
def episodes(tmp_path_factory):
    path = tmp_path_factory.mktemp("episodes") / "humanoid_walk.h5"
    write_walk(path)
    return path


@pytest.fixture
def trainer(episodes, tmp_path) -> DMCVBTrainer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return DMCVBTrainer(small_model(), str(episodes.parent), DOCUMENTED, "cpu", tmp_path / "run")


def test_the_documented_dictionary_is_taken(episodes, tmp_path) -> None:
    with pytest.warns(UserWarning, match="num_workers .*use_wandb .*beta_eval"):
        trainer = DMCVBTrainer(small_model(), str(episodes.parent), DOCUMENTED, torch.device("cpu"))
    config = trainer.config
    assert trainer.run_directory.name == "documented"
    assert (config.batch_size, config.sequence_length, config.lambda_att_dyn) == (4, 4, 0.95)
    assert config.epochs == 400 and trainer.anneal_beta(0) == 0 and trainer.anneal_beta(40) == 1
    assert trainer.anneal_beta(20) == pytest.approx(0.5)
    with pytest.raises(TypeError, match="did you mean lambda_recon"):
        DMCVBTrainer(small_model(), str(episodes.parent), {"lamda_recon": 1.0})
    with pytest.warns(UserWarning, match=r"latent_dim \(the model was made with latent_dim=6\)"):
        DMCVBTrainer(small_model(), str(episodes.parent), {"latent_dim": 36})


def test_epochs_evaluation_and_a_checkpoint(trainer) -> None:
    before = trainer.evaluate()
    losses = [trainer.train_epoch() for _ in range(4)]
    assert all(math.isfinite(record["total_loss"]) for record in losses)
    after = trainer.evaluate()
    assert after["recon_loss"] < before["recon_loss"] and math.isfinite(after["psnr"])
    assert trainer.best_eval_loss == min(before["total_loss"], after["total_loss"])
    path = trainer.save_checkpoint()
    step = CheckpointDirectory(path.parent).latest()
    assert path.is_dir() and step == 4 * (48 // 16) and (trainer.run_directory / "config.json").is_file()
    saved = CheckpointDirectory(path.parent).load(step).tensors
    name, weight = next(iter(trainer.model.named_parameters()))
    assert torch.equal(saved[f"model/{name}"], weight)


def test_gradients_of_every_task_are_diagnosed_and_nothing_moves(trainer) -> None:
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    found = trainer.run_grad_diag()
    tasks = [task.name for task in trainer.model.loss_aggregator.tasks]
    assert {name for name in found if name.startswith("grad_norm/")} >= {"grad_norm/elbo", "grad_norm/perceiver"}
    assert set(found) <= {f"grad_norm/{task}" for task in tasks} | {
        f"grad_cosine/{a}_{b}" for a in tasks for b in tasks
    }
    assert found["grad_norm/elbo"] > 0 and all(abs(v) <= 1 + 1e-9 for n, v in found.items() if "cosine" in n)
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_results_are_drawn(trainer) -> None:
    from PIL import Image

    path = trainer.visualize_results()
    assert path.parent == trainer.run_directory / "visualizations"
    picture = np.asarray(Image.open(path))
    rows, columns, cell = 4, 4, 2 * (32 + 4)
    assert picture.shape == (rows * cell, columns * cell, 3)
    truth = trainer._held_out[0].observations[0, -1].permute(1, 2, 0).numpy()
    assert np.abs(picture[4 : 4 + 64 : 2, 4 : 4 + 64 : 2].astype(int) - truth).max() <= 1


def test_datasets_in_place_of_a_directory(episodes, tmp_path) -> None:
    train = DMCVBDataset(data_path=str(episodes), sequence_length=4, environment="humanoid_walk")
    held_out = DMCVBDataset(data_path=str(episodes), sequence_length=4, split="val")
    options = {"learning_rate": 2e-4, "batch_size": 8, "sequence_length": 4}
    trainer = DMCVBTrainer(model=small_model(), train_dataset=train, val_dataset=held_out, **options)
    trainer.run_directory = tmp_path / "run"
    result = trainer.train(num_epochs=2, tensorboard=False, show_progress=False)
    assert result.finished and result.step == 2 * (48 // 32) and trainer.config.epochs == 2
    batch = next(iter(trainer.train_loader))
    assert batch["observations"].shape == (8, 4, 3, 32, 32) and batch["actions"].shape == (8, 4, 2)
    other = tmp_path / "other.h5"
    write_walk(other)
    with pytest.raises(ValueError, match="disjoint splits of one file"):
        DMCVBTrainer(small_model(), train_dataset=train, val_dataset=DMCVBDataset(other), sequence_length=4)


def test_the_constructor_of_the_model_tells_the_trainer(episodes) -> None:
    from aime.world_model import DPGMMVariationalRecurrentAutoencoder, WorldModelConfig
    from tests.world_model.conftest import SMALL

    names = {**WorldModelConfig.from_names(**SMALL).to_dict(), "learning_rate": 3e-5, "sequence_length": 5}
    model = DPGMMVariationalRecurrentAutoencoder(**names, grad_clip=7.0, warmup_epochs=10)
    config = DMCVBTrainer(model, episodes, {"num_epochs": 100, "learning_rate": 1e-3}).config
    assert (config.learning_rate, config.sequence_length, config.grad_clip) == (1e-3, 5, 7.0)
    assert config.beta_warmup_fraction == pytest.approx(0.1)
    assert model.optimizer.defaults["lr"] == 3e-5
