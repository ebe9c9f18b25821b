"""Episodes on disk to windows of (observation, action, reward, continue): readers, writer, splits, samplers."""

from aime.data.augmentation import Augmentation
from aime.data.cache import FrameCache, cached
from aime.data.errors import DataError
from aime.data.formats import open_source, read_splits
from aime.data.group_hdf5 import GroupHDF5Source
from aime.data.hdf5 import HDF5Source
from aime.data.hdf5_writer import Episode, EpisodeWriter
from aime.data.prefetch import PrefetchLoader
from aime.data.sampler import WindowDataset, WindowSampler, epoch_batches
from aime.data.source import EpisodeSource
from aime.data.spec import EpisodeSpec, JointSpec
from aime.data.splits import split_episodes, splits_for, write_splits
from aime.data.window import Batch, Window, collate

__all__ = [
    "Augmentation",
    "Batch",
    "DataError",
    "Episode",
    "EpisodeSource",
    "EpisodeSpec",
    "EpisodeWriter",
    "FrameCache",
    "GroupHDF5Source",
    "HDF5Source",
    "JointSpec",
    "PrefetchLoader",
    "Window",
    "WindowDataset",
    "WindowSampler",
    "cached",
    "collate",
    "epoch_batches",
    "open_source",
    "read_splits",
    "split_episodes",
    "splits_for",
    "write_splits",
]
