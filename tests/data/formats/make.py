"""Writes the small files of other formats beside it, each with the library that defines the format.

    python tests/data/formats/make.py     # needs tensorflow, tensorflow-datasets, minari, h5py, numpy

Every value tells where it came from: frame t is filled with 10 * episode + t, action t is (t, episode), reward t is
t + 0.5. V-D4RL and robomimic have no library that writes them: theirs follow the published layout, with numpy and h5py.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zlib
from pathlib import Path
from typing import Any

import h5py
import numpy as np

HERE = Path(__file__).parent
LENGTHS = (7, 5, 6)  # steps; an episode has one frame more
SIDE = 16


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


def write_minari() -> None:
    """Written by Minari into its own directory tree."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["MINARI_DATASETS_PATH"] = place
        import gymnasium as gym
        import minari
        from minari.data_collector.episode_buffer import EpisodeBuffer

        buffers = [
            EpisodeBuffer(
                id=episode,
                observations=list(frames(episode)),
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
            observation_space=gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8),
            action_space=gym.spaces.Box(-100, 100, (2,), np.float32),
        )
        shutil.copytree(Path(place) / "scripted" / "count-v0", HERE / "minari")


def main() -> None:
    for path in HERE.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    write_all_tfds()
    write_v_d4rl()
    write_robomimic()
    write_minari()
    for kind in ("zlib", "raw"):
        write_steps(kind)


if __name__ == "__main__":
    main()
