"""TensorBoard and W&B get metrics and films, and drawing them changes nothing of the run."""

from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from aime.data import Batch, EpisodeSpec
from aime.ranges import OptionError
from aime.training import TrainConfig, train
from aime.training.pictures import draw, encode_gif, under_map
from tests.training.toy import ToySource, make_model
from tests.world_model.conftest import sequences, small_model

OPTIONS = {"batch_size": 4, "sequence_length": 4, "steps": 2, "log_every": 1, "validate_every": 1}


class Squares(ToySource):
    """Episodes of 32 x 32 frames."""

    def __init__(self) -> None:
        super().__init__(episodes=6, length=12)
        self.spec = EpisodeSpec(image_shape=(3, 32, 32), action_size=2, domain="toy", task="square")
        self.frames = np.kron(self.frames, np.ones((4, 4), np.uint8))


def batch_of(frames: int) -> Batch:
    made = sequences(frames)
    return Batch(made.observations, made.actions, made.rewards, made.continues)


def test_films_show_truth_reconstruction_rollout_and_map() -> None:
    model, batch = small_model().train(), batch_of(6)
    state = torch.get_rng_state()
    pictures = draw(model, batch, 2)
    assert torch.equal(torch.get_rng_state(), state) and model.training
    assert {name: tuple(film.shape) for name, film in pictures.films.items()} == {
        "rollout": (2, 6, 3, 64, 192),
        "attention": (2, 6, 3, 64, 128),
    }
    rollout = pictures.films["rollout"][..., ::2, ::2]
    truth = batch.observations
    assert torch.equal(rollout[..., :32], truth) and torch.equal(rollout[:, :3, ..., 64:], truth[:, :3])
    assert not torch.equal(rollout[:, 3:, ..., 64:], truth[:, 3:])
    assert torch.equal(draw(model, batch, 2).films["rollout"], pictures.films["rollout"])


def test_a_map_leaves_its_brightest_place_as_it_is() -> None:
    maps = torch.zeros(1, 1, 4, 4)
    maps[0, 0, 0, 0] = 0.5
    seen = under_map(torch.ones(1, 1, 3, 16, 16), maps)
    assert float(seen[0, 0, 0, 0, 0]) == 1.0 and float(seen[0, 0, 0, -1, -1]) == pytest.approx(-0.5)


def test_a_gif_holds_every_frame() -> None:
    image = pytest.importorskip("PIL.Image")
    film = torch.zeros(5, 3, 8, 8, dtype=torch.uint8)
    for time in range(5):
        film[time, :, time] = 255
    with image.open(io.BytesIO(encode_gif(film))) as opened:
        assert opened.n_frames == 5
        opened.seek(3)
        assert np.asarray(opened.convert("RGB"))[3].min() == 255
    with pytest.raises(ValueError, match="expected 1 or 3 channels, found 2"):
        encode_gif(film[:, :2])


def test_tensorboard_gets_films_at_validation(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(small_model(), Squares(), TrainConfig(**OPTIONS), tmp_path / "run", show_progress=False)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"images": 0})
    events.Reload()
    tags = events.Tags()
    assert {f"validation/{name}/{index}" for name in ("rollout", "attention") for index in (0, 1)} <= set(
        tags["images"]
    )
    shown = events.Images("validation/rollout/0")
    assert [image.step for image in shown] == [1, 2] and shown[0].encoded_image_string.startswith(b"GIF8")
    assert "validation/total_loss" in tags["scalars"] and "train/total_loss" in tags["scalars"]


def test_a_model_without_pictures_trains_with_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    options = TrainConfig(**OPTIONS | {"steps": 1})
    assert train(make_model(), ToySource(), options, tmp_path / "run", show_progress=False).finished


def test_wandb_writes_offline_and_keeps_its_id_on_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = tmp_path / "run"
    quiet = {"show_progress": False, "tensorboard": False}
    config = TrainConfig(**OPTIONS, wandb_project="aime-tests", validation_films=1)
    train(small_model(), Squares(), config, run, **quiet)
    identity = (run / "wandb" / "aime_run_id").read_text()
    files = [path for path in run.glob("wandb/offline-run-*/run-*.wandb") if path.stat().st_size]
    assert len(files) == 1 and identity in files[0].name
    assert list(run.glob("wandb/offline-run-*/files/media/videos/validation/rollout*.gif"))
    train(small_model(), Squares(), TrainConfig(**(config.to_dict() | {"steps": 3})), run, resume=True, **quiet)
    assert (run / "wandb" / "aime_run_id").read_text() == identity


def test_without_wandb_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = TrainConfig(**OPTIONS, wandb_project="aime-tests")
    with pytest.raises(OptionError, match=r"pip install 'aime\[tracking\]'"):
        train(make_model(), ToySource(), config, tmp_path / "run", tensorboard=False, show_progress=False)
