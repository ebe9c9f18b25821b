"""`aime convert`: states that are drawn, frames of another size, conversions that end half-way."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from aime import cli
from aime.data import DataError, EpisodeSource, HDF5Source, layout, open_source, read_splits
from aime.data.convert import convert
from aime.data.exorl import ROWS, StateRenderer
from aime.data.hdf5_writer import partial_of
from aime.data.resized import ResizedSource
from tests.data.formats.make import LENGTHS, rewards

FORMATS = Path(__file__).parent / "formats"
EXORL = FORMATS / "exorl" / "walker" / "proto" / "buffer"


def _equal(one: EpisodeSource, other: EpisodeSource) -> None:
    assert one.spec.to_json() == other.spec.to_json()
    assert one.lengths.tolist() == other.lengths.tolist()
    for episode, length in enumerate(one.lengths.tolist()):
        left, right = one.window(episode, 0, length), other.window(episode, 0, length)
        for key in ("observations", "actions", "rewards", "continues", "body_masks", "body_ids", "physics"):
            np.testing.assert_array_equal(getattr(left, key), getattr(right, key), err_msg=f"{episode} {key}")


@pytest.fixture(scope="module")
def exorl() -> EpisodeSource:
    pytest.importorskip("mujoco")
    return open_source(EXORL)


def test_states_are_drawn_as_their_environment_draws_them(exorl: EpisodeSource) -> None:
    """Each frame is the ray caster's picture of the model, whose data was put into the state by MuJoCo itself."""
    import mujoco
    from dm_control import suite

    from aime.envs import RayCaster

    model = suite.load("walker", "walk").physics.model.ptr
    data, caster = mujoco.MjData(model), RayCaster(model, (64, 64), camera=0)
    assert (exorl.spec.domain, exorl.spec.task, exorl.spec.renderer) == ("walker", "", "raycast")
    assert exorl.spec.qpos_size == exorl.spec.qvel_size == 9
    for episode, length in enumerate(LENGTHS):
        with np.load(EXORL / f"episode_{episode:06d}_{length}.npz") as arrays:
            states, actions = arrays["physics"], arrays["action"]
        window = exorl.window(episode, 0, length)
        np.testing.assert_array_equal(window.actions, actions[1:])  # row t + 1 has what followed state t
        np.testing.assert_array_equal(window.rewards, rewards(episode))
        assert window.continues.tolist() == [1.0] * (length - 1) + [float(episode != 1)]
        np.testing.assert_array_equal(exorl.physics(episode), states[:-1, :18])  # type: ignore[attr-defined]
        assert window.body_masks is not None and window.body_ids is not None
        for t in range(length):
            data.qpos[:], data.qvel[:] = states[t, :9], states[t, 9:18]
            mujoco.mj_forward(model, data)
            seen = caster.render(data)
            np.testing.assert_array_equal(window.observations[t].transpose(1, 2, 0), seen.pixels)
            body = np.where(seen.segmentation >= 0, model.geom_bodyid[seen.segmentation], 0)
            np.testing.assert_array_equal(window.body_masks[t], body > 0)
            np.testing.assert_array_equal(window.body_ids[t] > 0, body > 0)


def test_what_is_random_in_a_model_stays_the_same_between_frames() -> None:
    """The target of reacher is no part of its state."""
    pytest.importorskip("mujoco")
    renderer = StateRenderer("reacher", "easy", size=24, camera=0)
    frames, _ = renderer.draw(np.zeros((ROWS + 3, sum(renderer.sizes))))
    assert (frames == frames[0]).all() and len(np.unique(frames[0])) > 8


def test_drawn_states_become_a_file_from_which_they_can_be_drawn_again(exorl: EpisodeSource, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    assert cli.main(["convert", str(EXORL), str(out), "--size", "24"]) == 0
    written = HDF5Source(out)
    assert written.spec.image_shape == (3, 24, 24)
    for episode in range(len(LENGTHS)):  # float64, bit for bit
        np.testing.assert_array_equal(written.physics(episode), exorl.physics(episode))  # type: ignore[attr-defined]
    _equal(exorl.drawn(size=24, camera=0), written)  # type: ignore[attr-defined]
    other = exorl.drawn(size=24, camera=1).window(0, 0, 1)  # type: ignore[attr-defined]
    assert (other.observations != written.window(0, 0, 1).observations).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"physics": lambda x: x[:, :-1]}, r"episode 0, physics: expected numbers \(8, 18\): qpos, qvel.*walker"),
        ({"physics": lambda x: np.full_like(x, np.nan)}, "episode 0, physics: expected finite values.*row 0"),
        ({"reward": lambda x: x[:-1]}, "episode 0, reward: expected"),
        ({"action": lambda x: np.full_like(x, np.inf)}, "episode 0, actions: expected finite"),
    ],
)
def test_wrong_states_are_named(
    change: dict[str, Callable[[Any], Any]], message: str, exorl: EpisodeSource, tmp_path: Path
) -> None:
    file = tmp_path / "walker" / "buffer" / "episode_000000_7.npz"
    file.parent.mkdir(parents=True)
    with np.load(EXORL / file.name) as arrays:
        values = {key: change.get(key, lambda x: x)(arrays[key]) for key in arrays.files}
    np.savez(file, **values)
    with pytest.raises(DataError, match=rf"episode_000000_7\.npz: {message}"):
        open_source(file.parent)
    jaco = tmp_path / "jaco"
    shutil.move(file.parents[1], jaco)
    with pytest.raises(DataError, match=r"expected a path whose parts name the domain.*cheetah.*found none"):
        open_source(jaco / "buffer")


def test_resizing_keeps_the_middle_square_and_every_number(tmp_path: Path) -> None:
    source = open_source(FORMATS / "dmc_vb_png")
    length = int(source.lengths[0])
    before, after = source.window(0, 0, length), ResizedSource(source, 8).window(0, 0, length)
    np.testing.assert_array_equal(after.observations, before.observations[:, :, ::2, ::2])  # frames of one grey each
    np.testing.assert_array_equal(after.actions, before.actions)

    class Wide:
        """A frame whose left and right ends are white."""

        spec, lengths = source.spec, source.lengths

        def window(self, episode: int, start: int, length: int) -> Any:
            frames = np.full((length, 3, 16, 24), 255, np.uint8)
            frames[..., 4:20] = np.arange(16)[:, None] * 10
            masks = np.broadcast_to(np.arange(24) == 5, (length, 16, 24))
            return dataclasses.replace(before, observations=frames, body_masks=np.ascontiguousarray(masks))

    wide = ResizedSource(Wide(), 8).window(0, 0, length)
    assert wide.observations.shape == (length, 3, 8, 8) and wide.observations.max() < 160
    column = Image.fromarray((np.arange(16)[:, None] * 10).astype(np.uint8).repeat(16, 1))
    expected = np.asarray(column.resize((8, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(wide.observations[0, 0], expected)
    assert wide.body_masks is not None and wide.body_masks.dtype == np.bool_
    assert wide.body_masks[0].sum(axis=0).tolist() == [8, 0, 0, 0, 0, 0, 0, 0]
    assert cli.main(["convert", str(FORMATS / "dmc_vb_png"), str(tmp_path / "out.h5"), "--size", "8"]) == 0
    assert open_source(tmp_path / "out.h5").spec.image_shape == (3, 8, 8)


def test_a_camera_is_of_states_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["convert", str(FORMATS / "dmc_vb_png"), str(tmp_path / "out.h5"), "--camera", "1"]
    assert cli.main(command) == 2
    assert "camera: expected it with episodes of states alone" in capsys.readouterr().err


class EndsHalfWay:
    """A source that ends the process, or raises, where its third episode is read."""

    def __init__(self, end: Callable[[], None]) -> None:
        self.inner, self.end, self.reads = open_source(FORMATS / "dmc_vb_png"), end, list[int]()
        self.spec, self.lengths = self.inner.spec, self.inner.lengths

    def window(self, episode: int, start: int, length: int) -> Any:
        self.reads.append(episode)
        if episode == 2:
            self.end()
        return self.inner.window(episode, start, length)


def _killed(out: Path) -> None:
    """A conversion to `out` that is killed by the system while it reads the third of three episodes."""
    child = os.fork()
    if not child:
        try:
            convert(EndsHalfWay(lambda: os.kill(os.getpid(), signal.SIGKILL)), out)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


@pytest.fixture
def whole(tmp_path: Path) -> EpisodeSource:
    convert(open_source(FORMATS / "dmc_vb_png"), tmp_path / "whole.h5")
    return open_source(tmp_path / "whole.h5")


def test_a_killed_conversion_loses_nothing_and_goes_on(
    whole: EpisodeSource, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.h5"
    _killed(out)
    assert not out.exists()
    assert open_source(partial_of(out)).lengths.tolist() == whole.lengths[:2].tolist()
    command = ["convert", str(FORMATS / "dmc_vb_png"), str(out)]
    assert cli.main(command) == 1  # what is there is not thrown away by accident
    assert "exists already" in capsys.readouterr().err
    counted = EndsHalfWay(lambda: None)
    convert(counted, out, resume=True)
    assert counted.reads == [1, 2]  # the last one that was written is compared, and the others are not read again
    _equal(whole, open_source(out))
    assert not partial_of(out).exists()
    for name, episodes in read_splits(whole).items():
        np.testing.assert_array_equal(read_splits(out)[name], episodes)


def test_episodes_of_an_earlier_compression_are_joined(
    whole: EpisodeSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.h5"
    monkeypatch.setattr(layout, "COMPRESSION", 1)
    _killed(out)
    monkeypatch.undo()
    convert(open_source(FORMATS / "dmc_vb_png"), out, resume=True)
    _equal(whole, open_source(out))


def test_a_killed_conversion_begins_anew_when_asked(whole: EpisodeSource, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    _killed(out)
    assert cli.main(["convert", str(FORMATS / "dmc_vb_png"), str(out), "--overwrite"]) == 0
    _equal(whole, open_source(out))
    assert not partial_of(out).exists()


def test_resuming_without_anything_begins(whole: EpisodeSource, tmp_path: Path) -> None:
    assert cli.main(["convert", str(FORMATS / "dmc_vb_png"), str(tmp_path / "out.h5"), "--resume"]) == 0
    _equal(whole, open_source(tmp_path / "out.h5"))


@pytest.mark.parametrize("other", ["another spec", "other values"])
def test_what_another_source_left_is_not_continued(other: str, tmp_path: Path) -> None:
    out = tmp_path / "out.h5"
    _killed(out)
    kept = sorted(file.read_bytes() for file in partial_of(out).glob("*.h5"))
    source = EndsHalfWay(lambda: None)
    if other == "another spec":
        source.spec = dataclasses.replace(source.spec, domain="cheetah", task="run")
        reason = "spec: expected that of the episodes to be written, found another"
    else:
        source.inner.window(1, 0, int(source.lengths[1])).rewards[0] += 1  # of a view
        reason = "episode 1, rewards: expected what .* holds, found other values"
    with pytest.raises(DataError, match=reason):
        convert(source, out, resume=True)
    assert sorted(file.read_bytes() for file in partial_of(out).glob("*.h5")) == kept
