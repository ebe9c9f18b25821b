"""DMCVBDataset: the documented map-style dataset, over `aime.data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from aime.data import EpisodeSource, WindowDataset, open_source, splits_for
from aime.data.dmc_vb import find_task
from aime.documented_tables import accepts_documented_names
from aime.ranges import SEED, Range, check_arguments

SPLIT_NAMES = {"train": "train", "validation": "validation", "val": "validation", "eval": "validation", "test": "test"}
Item = dict[str, Any]


def find_episodes(
    data_dir: str | Path, domain_name: str | None = None, task_name: str | None = None, policy_level: str | None = None
) -> Path:
    """The episode file of a task: `data_dir` itself when it is a file, else a file in it.

    The first of `<domain>_<task>_<policy level>.h5`, `<domain>_<task>.h5` (or with - for _, or .hdf5); the only HDF5
    file when no task is named. Where there is none, a directory `<domain>_<task>/<policy level>` of DMC-VB's TFRecord
    files, in it or below.

    Raises:
        FileNotFoundError: none is there; what is there gets listed.
    """
    path = Path(data_dir)
    if path.is_file():
        return path
    files = sorted(entry for entry in path.glob("*") if entry.suffix in (".h5", ".hdf5")) if path.is_dir() else []
    stems = []
    if domain_name and task_name:
        names = [[domain_name, task_name]]
        if policy_level:
            names.insert(0, [domain_name, task_name, policy_level])
        stems = [join.join(parts) for parts in names for join in ("_", "-")]
        for stem in stems:
            for file in files:
                if file.stem == stem:
                    return file
    elif len(files) == 1:
        return files[0]
    if records := find_task(path, domain_name, task_name, policy_level):
        return records
    wanted = f"an HDF5 file called {' or '.join(stems)}" if stems else "one HDF5 file"
    raise FileNotFoundError(f"{path}: expected {wanted}, found {', '.join(file.name for file in files) or 'none'}")


@accepts_documented_names()
class DMCVBDataset(Dataset[Item]):
    """Windows of one split of a task's episodes, as dictionaries.

    Args:
        data_dir: an episode file, or a directory with one (see `find_episodes`). Aliases: root, data_path.
        domain_name: dm_control domain. Alias: domain.
        task_name: dm_control task. Alias: task.
        policy_level: which recording of the task, where there are several.
        split: "train", "validation" (also "val", "eval") or "test"; disjoint sets of episodes.
        sequence_length: T, frames in a window. Alias: video_length.
        frame_stack: F, each observation is this many successive frames, the newest last; the model stacks frames itself
            and wants 1.
        img_height, img_width: resize the frames (area average when shrinking); None keeps the stored size. Aliases:
            image_height, image_width, and image_size for both.
        normalize_images: float32 in [-1, 1] instead of uint8.
        add_state: add the physics state where the file has it.
        add_rewards: add the rewards.
        transform: called with every item.
        stride: steps between the starts of two windows of an episode.
        seed: of the splits of a file that stores none.
        environment: "domain-task" or "domain_task", instead of the two names.

    Items:
        observations (T, F * C, H, W); actions (T, A), where actions[t] was taken after observations[t]; rewards (T,);
        done (T,) bool, also as dones; state (T, nq + nv); episode and start of the window.

    Raises:
        FileNotFoundError, aime.data.DataError: no such file, or not an episode file.
        TypeError: unknown argument (near names are listed).
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        domain_name: str | None = None,
        task_name: str | None = None,
        policy_level: str = "expert",
        split: str = "train",
        sequence_length: Annotated[int, Range(1, 65536)] = 10,
        frame_stack: Annotated[int, Range(1, 64)] = 1,
        img_height: Annotated[int, Range(1, 4096)] | None = None,
        img_width: Annotated[int, Range(1, 4096)] | None = None,
        normalize_images: bool = True,
        add_state: bool = False,
        add_rewards: bool = True,
        transform: Callable[[Item], Item] | None = None,
        stride: Annotated[int, Range(1)] = 1,
        seed: Annotated[int, SEED] = 0,
        environment: str | None = None,
    ) -> None:
        if environment is not None:
            domain_name, _, task_name = environment.replace("-", "_").partition("_")
        if data_dir is None:
            raise TypeError("expected data_dir (or root, or data_path), found none")
        if split not in SPLIT_NAMES:
            raise ValueError(f"split: expected one of {', '.join(SPLIT_NAMES)}, found {split!r}")
        sizes = {"sequence_length": sequence_length, "frame_stack": frame_stack, "stride": stride, "seed": seed}
        check_arguments(DMCVBDataset.__init__, {**sizes, "img_height": img_height, "img_width": img_width})
        self.path = find_episodes(data_dir, domain_name, task_name, policy_level)
        self.source: EpisodeSource = open_source(self.path, body_masks=False, physics=add_state)
        self.sequence_length, self.frame_stack, self.normalize_images = sequence_length, frame_stack, normalize_images
        channels, height, width = self.source.spec.image_shape
        self.image_shape = (channels, img_height or height, img_width or width)
        self.add_rewards, self.transform = add_rewards, transform
        self.windows = WindowDataset(
            self.source,
            sequence_length + frame_stack - 1,
            episodes=splits_for(self.source, seed)[SPLIT_NAMES[split]],
            stride=stride,
        )

    @property
    def action_dim(self) -> int:
        """A, size of an action."""
        return int(self.source.spec.action_size)

    @property
    def min_episode_length(self) -> int:
        """Steps of the shortest episode of the split."""
        return int(self.source.lengths[self.windows.episodes].min())

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Item:
        window = self.windows[index]
        first = self.frame_stack - 1  # earlier frames are only there to be stacked
        item: Item = {
            "observations": self._observations(torch.from_numpy(np.ascontiguousarray(window.observations))),
            "actions": torch.from_numpy(window.actions[first:].copy()),
            "done": torch.from_numpy(window.continues[first:] == 0),
            "episode": window.episode,
            "start": window.start + first,
        }
        item["dones"] = item["done"]
        if self.add_rewards:
            item["rewards"] = torch.from_numpy(window.rewards[first:].copy())
        if window.physics is not None:
            item["state"] = torch.from_numpy(window.physics[first:].copy())
        return item if self.transform is None else self.transform(item)

    def _observations(self, frames: Tensor) -> Tensor:
        _, height, width = self.image_shape
        if frames.shape[-2:] != (height, width):
            shrinks = height <= frames.shape[-2] and width <= frames.shape[-1]
            resized = functional.interpolate(frames.float(), (height, width), mode="area" if shrinks else "bilinear")
            frames = resized.round().clamp(0, 255).to(torch.uint8)
        length = self.sequence_length
        stacked = torch.cat([frames[shift : shift + length] for shift in range(self.frame_stack)], dim=1)
        return stacked.float() / 127.5 - 1 if self.normalize_images else stacked  # (T, F * C, H, W)
