"""Writes the small files of other formats beside it, each with the library that defines the format.

    python tests/data/formats/make.py [NAME ...]    # all, or those of WRITERS that are named

Needs numpy, h5py and, by what is written: tensorflow and tensorflow-datasets, minari, dm_control, av, or
lerobot[dataset] (0.6.1 wrote the files here, on Python 3.12, in an environment of its own: it wants older packages).

Every value tells where it came from: frame t is filled with 10 * episode + t, action t is (t, episode), reward t is
t + 0.5. The scripts of V-D4RL, ExORL and robomimic write by plain numpy.savez_compressed and h5py, as this one does in
their layout, without what is not read (ExORL's states are dm_control's own). Frames in videos are 9 times as bright,
since codecs lose a few levels.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HERE = Path(__file__).parent
LENGTHS = (7, 5, 6)  # steps; an episode has one frame more
SIDE = 16
LEROBOT_SIDE = 64  # of LeRobot's videos, whose AV1 encoder crashes at 16
VIDEO_SCALE = 9  # of the frames in lossy videos: levels of one differ by more than what is lost


def frames(episode: int) -> Any:
    """(N + 1, H, W, 3)."""
    t = 10 * episode + np.arange(LENGTHS[episode] + 1)
    return np.broadcast_to(t[:, None, None, None], (len(t), SIDE, SIDE, 3)).astype(np.uint8)


def actions(episode: int) -> Any:
    """(N, 2)."""
    t = np.arange(LENGTHS[episode])
    return np.stack([t, np.full(len(t), episode)], axis=1).astype(np.float32)


def rewards(episode: int) -> Any:
    """(N,)."""
    return (np.arange(LENGTHS[episode]) + 0.5).astype(np.float32)


def rlds_steps(episode: int) -> list[dict[str, Any]]:
    """N + 1 steps, the last of which has a frame alone; episode 1 ends by termination."""
    length = LENGTHS[episode]
    return [
        {
            "observation": {"pixels": frames(episode)[t]},
            "action": actions(episode)[t] if t < length else np.full(2, 99, np.float32),
            "reward": rewards(episode)[t] if t < length else np.float32(99),
            "is_first": t == 0,
            "is_last": t == length,
            "is_terminal": t == length and episode == 1,
        }
        for t in range(length + 1)
    ]


def write_tfds(kind: str, pixels: Any) -> None:
    """A directory written by TFDS, under the path that DMC-VB has."""
    import tensorflow_datasets as tfds

    class DmcVb(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
        name = f"dmc_vb_{kind}"
        pkg_dir_path = HERE
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            scalar = tfds.features.Scalar
            step = {
                "observation": tfds.features.FeaturesDict({"pixels": pixels}),
                "action": tfds.features.Tensor(shape=(2,), dtype=np.float32),
                "reward": scalar(np.float32),
                "is_first": scalar(np.bool_),
                "is_last": scalar(np.bool_),
                "is_terminal": scalar(np.bool_),
            }
            features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(step)})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Any:
            for episode in range(len(LENGTHS)):
                yield episode, {"steps": rlds_steps(episode)}

    target = HERE / f"dmc_vb_{kind}" / "walker_walk" / "expert" / "none"
    with tempfile.TemporaryDirectory() as place:
        builder = DmcVb(data_dir=place)
        builder.download_and_prepare()
        shutil.copytree(builder.data_dir, target)


def write_all_tfds() -> None:
    import tensorflow_datasets as tfds

    write_tfds("png", tfds.features.Image(shape=(SIDE, SIDE, 3), encoding_format="png"))
    zipped = tfds.features.Tensor(shape=(SIDE, SIDE, 3), dtype=np.uint8, encoding="zlib")
    write_tfds("zlib", zipped)
    write_tfds("integers", tfds.features.Tensor(shape=(SIDE, SIDE, 3), dtype=np.uint8))


def write_steps(kind: str) -> None:
    """One record for each step, one file for each episode, arrays as bytes."""
    import tensorflow as tf

    def of_bytes(value: bytes) -> Any:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    def of_int(value: bool) -> Any:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value)]))

    pack = zlib.compress if kind == "zlib" else lambda data: data
    target = HERE / f"steps_{kind}" / "humanoid_walk" / "medium" / "none"
    target.mkdir(parents=True)
    for episode in range(len(LENGTHS)):
        with tf.io.TFRecordWriter(str(target / f"distracting_control-{episode}.tfrecord-00000-of-00001")) as writer:
            for step in rlds_steps(episode):
                feature = {
                    "steps/observation/pixels": of_bytes(pack(step["observation"]["pixels"].tobytes())),
                    "steps/action": of_bytes(pack(step["action"].astype(np.float64).tobytes())),
                    "steps/reward": tf.train.Feature(float_list=tf.train.FloatList(value=[step["reward"]])),
                    **{f"steps/{name}": of_int(step[name]) for name in ("is_first", "is_last", "is_terminal")},
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())


def rows(episode: int) -> dict[str, Any]:
    """V-D4RL: row t has what led to frame t."""
    length = LENGTHS[episode]
    return {
        "action": np.concatenate([np.full((1, 2), 99, np.float32), actions(episode)]),
        "reward": np.concatenate([np.full(1, 99, np.float32), rewards(episode)]),
        "discount": np.array([1.0] * length + [float(episode != 1)], np.float32),
    }


def write_v_d4rl() -> None:
    directory = HERE / "v_d4rl" / "cheetah_run" / "64px"
    directory.mkdir(parents=True)
    for episode in range(len(LENGTHS)):
        terminal = np.arange(LENGTHS[episode] + 1) == (LENGTHS[episode] if episode == 1 else -1)
        np.savez_compressed(
            directory / f"ep_{episode}.npz", image=frames(episode), is_terminal=terminal, **rows(episode)
        )
    parts = [rows(episode) for episode in range(len(LENGTHS))]
    with h5py.File(HERE / "v_d4rl" / "cheetah_run" / "84px.hdf5", "w") as file:
        pictures = np.concatenate([frames(episode) for episode in range(len(LENGTHS))]).transpose(0, 3, 1, 2)
        file.create_dataset("observation", data=pictures, compression="gzip")
        for key in parts[0]:
            file[key] = np.concatenate([part[key] for part in parts])
        types = [[0, *[1] * (length - 1), 2] for length in LENGTHS]
        file["step_type"] = np.concatenate(types)


def write_robomimic() -> None:
    with h5py.File(HERE / "robomimic.hdf5", "w") as file:
        data = file.create_group("data")
        data.attrs["total"] = sum(LENGTHS)
        for episode in range(len(LENGTHS)):
            demo = data.create_group(f"demo_{episode}")
            demo.attrs["num_samples"] = LENGTHS[episode]
            demo["actions"], demo["rewards"] = actions(episode).astype(np.float64), rewards(episode)
            demo["dones"] = np.arange(LENGTHS[episode]) == LENGTHS[episode] - 1
            demo.create_dataset("obs/agentview_image", data=frames(episode)[:-1], compression="gzip")
            demo["obs/robot0_joint_pos"] = np.zeros((LENGTHS[episode], 7))


def write_minari(name: str = "minari", side: int | None = None, scale: int = 1) -> None:
    """Written by Minari into its own directory tree; frames of 32 x 32 and more it stores as JPEG pictures."""
    larger = SIDE if side is None else side
    with tempfile.TemporaryDirectory() as place:
        os.environ["MINARI_DATASETS_PATH"] = place
        import gymnasium as gym
        import minari
        from minari.data_collector.episode_buffer import EpisodeBuffer

        buffers = [
            EpisodeBuffer(
                id=episode,
                observations=list(scale * frames(episode).repeat(larger // SIDE, 1).repeat(larger // SIDE, 2)),
                actions=list(actions(episode)),
                rewards=list(rewards(episode).astype(float)),
                terminations=[episode == 1 and t == LENGTHS[episode] - 1 for t in range(LENGTHS[episode])],
                truncations=[episode != 1 and t == LENGTHS[episode] - 1 for t in range(LENGTHS[episode])],
                infos=None,
            )
            for episode in range(len(LENGTHS))
        ]
        minari.create_dataset_from_buffers(
            dataset_id="scripted/count-v0",
            buffer=buffers,
            observation_space=gym.spaces.Box(0, 255, (larger, larger, 3), np.uint8),
            action_space=gym.spaces.Box(-100, 100, (2,), np.float32),
        )
        shutil.copytree(Path(place) / "scripted" / "count-v0", HERE / name)


def write_exorl() -> None:
    """States of dm_control's walker under random actions; row t has what led to state t."""
    from dm_control import suite

    environment = suite.load("walker", "walk", task_kwargs={"random": 0})
    directory = HERE / "exorl" / "walker" / "proto" / "buffer"
    directory.mkdir(parents=True)
    random = np.random.default_rng(0)
    for episode, length in enumerate(LENGTHS):
        first = environment.reset()
        rows = {key: [] for key in ("observation", "action", "reward", "discount", "physics")}
        for t in range(length + 1):
            action = np.full(6, 99.0) if t == 0 else random.uniform(-1, 1, 6)
            step = first if t == 0 else environment.step(action)
            rows["observation"].append(np.concatenate([np.ravel(value) for value in step.observation.values()]))
            rows["action"].append(action)
            rows["reward"].append([99.0 if t == 0 else rewards(episode)[t - 1]])
            rows["discount"].append([float(t < length or episode != 1)])
            rows["physics"].append(environment.physics.get_state())
        arrays = {key: np.array(values, np.float64 if key == "physics" else np.float32) for key, values in rows.items()}
        np.savez_compressed(directory / f"episode_{episode:06d}_{length}.npz", **arrays)


def write_video(path: Path, pictures: Any, *, codec: str = "libx264", rate: int = 10) -> None:
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, options={"crf": "1", "g": "4"})
        stream.width = stream.height = SIDE
        stream.pix_fmt = "yuv420p" if codec == "libx264" else "bgr0"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        container.mux(stream.encode())


def write_videos() -> None:
    """One folder with a table beside each video, and one with a table for all, of lossless videos."""
    header = "time,action_0,action_1,reward,terminated\n"
    for episode, length in enumerate(LENGTHS):
        lines = [f"{t / 10},{t},{episode},{t + 0.5},{int(episode == 1 and t == length - 1)}" for t in range(length)]
        write_video(HERE / "videos" / "walker_walk" / f"clip_{episode}.mp4", VIDEO_SCALE * frames(episode))
        (HERE / "videos" / "walker_walk" / f"clip_{episode}.csv").write_text(header + "\n".join(lines) + "\n")
        write_video(HERE / "videos_one_table" / f"clip_{episode}.mkv", frames(episode)[:-1], codec="ffv1")
    rows = [
        f"clip_{episode},{t},{episode},{t + 0.5},{int(episode == 1 and t == length - 1)}"
        for episode, length in enumerate(LENGTHS)
        for t in range(length)
    ]
    text = "video,action.x,action.y,reward,terminated\n" + "\n".join(rows) + "\n"
    (HERE / "videos_one_table" / "actions.csv").write_text(text)


def write_lerobot() -> None:
    """Episodes 0 and 1 in one file, 2 in another, once in videos, once as pictures in the tables."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    for kind, side, scale in (("video", LEROBOT_SIDE, VIDEO_SCALE), ("image", SIDE, 1)):
        root, key = HERE / f"lerobot_{kind}", "observation.images.top"
        features: dict[str, dict[str, Any]] = {
            "action": {"dtype": "float32", "shape": (2,), "names": ["step", "episode"]},
            "observation.state": {"dtype": "float32", "shape": (2,), "names": None},
            key: {"dtype": kind, "shape": (side, side, 3), "names": ["height", "width", "channels"]},
            "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
            "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        }
        data_set = LeRobotDataset.create("count/count", 10, features, root=root, use_videos=kind == "video")
        for episode, length in enumerate(LENGTHS):
            if episode == 2:  # what is recorded in another session goes into other files
                data_set.finalize()
                data_set = LeRobotDataset.resume("count/count", root=root)
            for t in range(length):
                row = {"task": "count", "action": actions(episode)[t], "observation.state": np.float32([0, 1])}
                row |= {"next.reward": rewards(episode)[t : t + 1], "next.done": np.array([t == length - 1])}
                data_set.add_frame(row | {key: np.full((side, side, 3), scale * frames(episode)[t, 0, 0, 0])})
            data_set.save_episode()
        data_set.finalize()
        shutil.rmtree(root / "images", ignore_errors=True)  # where it keeps frames until they are encoded


#: name -> (the directories and files that it writes, how)
WRITERS = {
    "tfds": (("dmc_vb_png", "dmc_vb_zlib", "dmc_vb_integers"), write_all_tfds),
    "v_d4rl": (("v_d4rl",), write_v_d4rl),
    "robomimic": ((), write_robomimic),
    "minari": (("minari",), write_minari),
    "minari_pictures": (("minari_pictures",), lambda: write_minari("minari_pictures", 2 * SIDE, VIDEO_SCALE)),
    "steps": (("steps_zlib", "steps_raw"), lambda: [write_steps(kind) for kind in ("zlib", "raw")]),
    "exorl": (("exorl",), write_exorl),
    "videos": (("videos", "videos_one_table"), write_videos),
    "lerobot": (("lerobot_video", "lerobot_image"), write_lerobot),
}


def main(names: list[str]) -> None:
    for name in names or WRITERS:
        directories, write = WRITERS[name]
        for directory in directories:
            shutil.rmtree(HERE / directory, ignore_errors=True)
        write()


if __name__ == "__main__":
    main(sys.argv[1:])
