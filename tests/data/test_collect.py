"""`aime collect` on the real environment: what is stored replays exactly."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from aime.data import HDF5Source, open_source
from aime.data.collect import Collect
from aime.data.hdf5_writer import EpisodeWriter
from aime.envs import ParallelEnvironment
from tests.data.scripted import SPEC, scripted_episode


@pytest.fixture(scope="module", params=["gl", "raycast"])
def collected(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HDF5Source:
    path = tmp_path_factory.mktemp("collect") / "cartpole.h5"
    collect = Collect(episodes=5, steps=12, size=32, num_envs=2, threads=2, seed=4, renderer=request.param, out=path)
    assert collect.run() == 0
    source = open_source(path)
    assert isinstance(source, HDF5Source)
    return source


def test_the_spec_says_how_the_episodes_were_made(collected: HDF5Source) -> None:
    spec = collected.spec
    assert (spec.domain, spec.task, spec.image_shape, spec.action_size) == ("cartpole", "swingup", (3, 32, 32), 1)
    assert spec.qpos_names == ("slider", "hinge_1")
    assert spec.qpos_kinds == ("slide", "hinge")
    assert [joint.limited for joint in spec.joints] == [True, False]  # the rail ends, the pole can turn round
    assert (spec.action_repeat, spec.camera, spec.policy) == (2, 0, "smooth")
    assert spec.control_timestep == pytest.approx(0.02)
    assert (spec.action_minimum, spec.action_maximum) == ((-1.0,), (1.0,))
    assert set(spec.versions) == {"aime", "mujoco", "dm_control", "numpy", "h5py"}
    assert spec.renderer_details
    if spec.renderer == "gl":
        assert (spec.quality, spec.samples) == ("high", None)
    else:
        assert (spec.renderer, spec.quality) == ("raycast", "")
        assert spec.samples in (1, 2, 4, 8)
    assert collected.lengths.tolist() == [12] * 5
    assert sorted(np.concatenate(list((collected.splits or {}).values())).tolist()) == list(range(5))


def test_an_episode_replays_bit_for_bit_from_what_is_stored(collected: HDF5Source) -> None:
    spec, row = collected.spec, collected.rows[3]  # the second episode of environment 1
    assert (int(row["seed"]), int(row["reset_index"])) == (5, 1)
    stored, window = collected.physics(3), collected.window(3, 0, 12)
    with ParallelEnvironment(
        spec.domain,
        spec.task,
        num_envs=1,
        action_repeat=spec.action_repeat,
        seed=int(row["seed"]),
        pixels=spec.image_shape[1:],
        camera=spec.camera,
        renderer="gl" if spec.renderer == "gl" else "raycast",
        quality="high",
        samples=spec.samples,
        segmentation=True,
    ) as environment:
        for _ in range(int(row["reset_index"]) + 1):
            step = environment.reset()
        for t in range(12):
            np.testing.assert_array_equal(np.concatenate([step.qpos[0], step.qvel[0]]), stored[t])
            assert step.pixels is not None
            np.testing.assert_array_equal(step.pixels[0].transpose(2, 0, 1), window.observations[t])
            assert step.body_mask is not None
            assert window.body_masks is not None
            assert window.body_ids is not None
            np.testing.assert_array_equal(step.body_mask[0], window.body_masks[t])
            assert step.segmentation is not None
            geom = step.segmentation[0]
            owner = environment.suite_environment.physics.model.geom_bodyid[geom]  # 1 and 2: every body has a geom
            np.testing.assert_array_equal(window.body_ids[t], np.where(geom >= 0, owner, 0))
            step = environment.step(window.actions[t][None])
            assert np.float32(step.reward[0]) == window.rewards[t]
            assert np.float32(step.discount[0]) == window.continues[t]


def test_masks_show_the_body(collected: HDF5Source) -> None:
    window = collected.window(0, 0, 12)
    assert window.body_masks is not None
    share = window.body_masks.mean(axis=(1, 2))
    assert ((share > 0.005) & (share < 0.1)).all()  # the cart and its pole: one to a few per cent of the picture
    assert collected.spec.bodies == ("cart", "pole_1")
    assert window.body_ids is not None
    np.testing.assert_array_equal(window.body_ids > 0, window.body_masks)
    assert set(np.unique(window.body_ids)) == {0, 1, 2}
    body = window.observations.transpose(0, 2, 3, 1)[window.body_masks]  # (pixels, 3)
    assert (body[:, 0] > body[:, 2]).mean() > 0.8  # cart and pole are orange, the scene is blue


def test_mistakes_are_found_before_anything_is_made(tmp_path: Path) -> None:
    out = tmp_path / "x.h5"
    with pytest.raises(ValueError, match="policy: expected one of uniform, smooth"):
        Collect(policy="expert", out=out).run()
    with pytest.raises(ValueError, match="episodes: expected a whole number from 1 to 1000000000, found 0"):
        Collect(episodes=0, out=out).run()
    for name, value, message in (
        ("domain", "../../x", r"domain: expected a name of letters.*found '\.\./\.\./x'"),
        ("task", "a\x1b[31m", r"task: expected a name of letters.*found 'a\\x1b\[31m'"),
        ("action_repeat", 0, "action_repeat: expected a whole number from 1 to 1000, found 0"),
        ("size", 10**6, "size: expected a whole number from 1 to 4096, found 1000000"),
        ("split_seed", -1, "split_seed: expected a whole number from 0 to 4294967295, found -1"),
        ("out", Path(), "expected the name of a file to write, found a directory"),
        ("out", tmp_path, "expected the name of a file to write, found a directory"),
    ):
        with pytest.raises(ValueError, match=message):
            Collect(**{"out": out, name: value}).run()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="did you mean 'cartpole'"):
        Collect(domain="cartpol", out=out).run()
    out.touch()
    with pytest.raises(FileExistsError, match="exists already"):
        Collect(out=out, episodes=1, steps=2).run()
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_a_second_collection_into_one_file_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.h5"
    with EpisodeWriter(out, SPEC, body_masks=True) as writer:
        writer.append(scripted_episode(0, 9))
        for overwrite in (False, True):
            with pytest.raises(ValueError, match=rf"x\.h5: expected it to be free .* process {os.getpid()} "):
                Collect(out=out, episodes=1, steps=2, overwrite=overwrite).run()
        writer.append(scripted_episode(1, 8))
    assert open_source(out).lengths.tolist() == [9, 8]


def test_an_interrupt_keeps_the_finished_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    append = EpisodeWriter.append

    def interrupted(self: EpisodeWriter, episode: object) -> None:
        if len(self) == 2:
            raise KeyboardInterrupt
        append(self, episode)  # type: ignore[arg-type]

    monkeypatch.setattr(EpisodeWriter, "append", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Collect(episodes=4, steps=3, size=16, num_envs=2, out=tmp_path / "x.h5").run()
    assert "interrupted: 2 whole episodes are in" in capsys.readouterr().out
    assert open_source(tmp_path / "x.h5.partial").lengths.tolist() == [3, 3]
