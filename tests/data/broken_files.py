"""A seeded generator of damaged episode files, and what the reader makes of each.

    python -m tests.data.broken_files            # generate all, examine all, print figures
    python -m tests.data.broken_files --seed 7   # other places of the random damage

Each file must either be read in full with the values that were written, or be refused with one DataError that names it.
Files are examined in forked processes with a limit on time and memory, so that a hang or a crash is an outcome too.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from aime.data import EpisodeWriter
from tests.data.examination import REFUSED, RIGHT, Broken, examine
from tests.data.scripted import SPEC, scripted_episode

LENGTHS = (20, 33, 16, 5)
Change = Callable[[h5py.File], None]


def generate(directory: Path, seed: int = 0, base: Path | None = None) -> list[Broken]:
    """Write the damaged files (some 400) into an empty directory; ``base`` replaces the file that is damaged."""
    rng = random.Random(seed)
    if base is None:
        base = directory / "base.h5"
        with EpisodeWriter(base, SPEC, body_masks=True, split_seed=3) as writer:
            for number, length in enumerate(LENGTHS):
                writer.append(scripted_episode(number, length))
            shutil.copytree(writer.partial, directory / "segments.h5.partial")
    files = [*_bytes_damaged(directory, "file", base, rng, 110)]
    for name, change in _changes():
        path = directory / f"changed_{len(files):03}.h5"
        shutil.copy(base, path)
        with h5py.File(path, "r+", libver="latest") as file:
            change(file)
        files.append(Broken(name, path))
    groups = _write_groups(directory / "groups_base.h5")
    files += _bytes_damaged(directory, "groups", groups, rng, 60, verified=False)
    for name, change in _group_changes():
        path = directory / f"groups_changed_{len(files):03}.h5"
        shutil.copy(groups, path)
        with h5py.File(path, "r+") as file:
            change(file)
        files.append(Broken(name, path))
    killed = _write_unclosed(directory / "killed.h5.partial")
    files += _bytes_damaged(directory, "unclosed", killed, rng, 40, suffix=".h5.partial")
    if (directory / "segments.h5.partial").is_dir():
        files += _damaged_segments(directory, rng)
    return files


def _bytes_damaged(
    directory: Path,
    name: str,
    base: Path,
    rng: random.Random,
    count: int,
    *,
    verified: bool = True,
    suffix: str = ".h5",
) -> Iterator[Broken]:
    """Flipped bits, cut ends and overwritten stretches, the first of them in the headers."""
    data = base.read_bytes()
    for i in range(count):
        damaged = bytearray(data)
        kind = ("bit", "bit", "bit", "bit", "cut", "zeros", "noise", "head")[i % 8]
        at = rng.randrange(8, len(data)) if i % 2 else rng.randrange(8, min(len(data), 4096))
        length = rng.randrange(1, 600)
        if kind == "bit":
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == "head":
            damaged[rng.randrange(8, 48)] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del damaged[at:]
        else:
            damaged[at : at + length] = bytes(length) if kind == "zeros" else rng.randbytes(length)
            del damaged[len(data) :]
        path = directory / f"{name}_{i:03}{suffix}"
        path.write_bytes(damaged)
        yield Broken(f"{name}: {kind} at byte {at}", path, verified)


def _replace(name: str, make: Callable[[h5py.File, Any], Any]) -> Change:
    """Replace a dataset by what ``make`` gives of its values (an array, a link, or None for nothing)."""

    def change(file: h5py.File) -> None:
        values = file[name][()]
        del file[name]
        new = make(file, values)
        if new is not None:
            file[name] = new

    return change


def _with_attribute(name: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value

    return change


def _with_spec(field: str, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        spec = json.loads(file.attrs["spec"])
        spec[field] = value
        file.attrs["spec"] = json.dumps(spec)

    return change


def _with_row(episode: int, **values: int) -> Change:
    def change(file: h5py.File) -> None:
        rows = file["episodes"][:]
        for name, value in values.items():
            rows[name][episode] = value
        file["episodes"][:] = rows

    return change


def _with_value(name: str, index: Any, value: Any) -> Change:
    def change(file: h5py.File) -> None:
        file[name][index] = value

    return change


def _external(file: h5py.File, values: Any) -> None:
    other = Path(file.filename).with_suffix(".raw")
    other.write_bytes(values.tobytes())
    name = "observations"
    file.create_dataset(name, values.shape, values.dtype, external=[(str(other), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File, values: Any) -> None:
    other = Path(file.filename).with_suffix(".other.h5")
    with h5py.File(other, "w") as target:
        target["values"] = values
    layout = h5py.VirtualLayout(values.shape, values.dtype)
    layout[:] = h5py.VirtualSource(other, "values", values.shape)
    file.create_virtual_dataset("observations", layout)


def _huge(name: str, *, chunk: int) -> Change:
    def change(file: h5py.File) -> None:
        dtype, shape = file[name].dtype, file[name].shape[1:]
        del file[name]
        file.create_dataset(name, (10**12, *shape), dtype, maxshape=(None, *shape), chunks=(chunk, *shape))

    return change


def _bomb(file: h5py.File) -> None:
    """A chunk that claims two gigabytes in two megabytes, of zeros."""
    del file["rewards"]
    file.create_dataset("rewards", (10**9,), "f4", chunks=(5 * 10**8,), compression=1)
    file["rewards"].id.write_direct_chunk((0,), bytes(1000))


def _changes() -> Iterator[tuple[str, Change]]:
    for name in ("format", "schema_version", "spec", "complete"):
        for value in (None, -1, 2.5, np.zeros(3), h5py.Empty("f8"), np.bytes_(b"\xff\xfe"), "x" * 50_000, "["):
            yield f"attribute {name} = {str(value)[:20]!r}", _with_attribute(name, value)
    yield "spec nested deep", _with_attribute("spec", "[" * 40_000)
    wrong: dict[str, tuple[Any, ...]] = {
        "image_shape": (None, [3, 12], [3, -1, 10], [3, 10**9, 10**9], [3.5, 12, 10], "abc", [3, 10, 12], [True] * 3),
        "action_size": (None, 0, -2, 3, 2.0, "2", 10**12, [2]),
        "domain": (None, "../../x", "a/b", ".hidden", "\x1b[31mred", "a\nb", "a\x00", 7, "x" * 500),
        "task": (None, "..", "\u202etxt", "-rf", ["a"]),
        "action_repeat": (None, 0, -1, 1.5, "2"),
        "control_timestep": (0, -1.0, float("nan"), float("inf"), "fast"),
        "camera": (None, -5, "side"),
        "samples": (0, -4, "many"),
        "renderer": (None, "\x1b]0;title\x07", 3),
        "versions": (None, [], {"aime": 3}, {"\x1b": "1"}),
        "action_minimum": (None, [0.0], [float("nan"), 0.0], [300.0, 300.0], ["a", "b"], 5),
        "joints": (None, [{"name": "a"}], [3], [{"name": "a", "kind": "screw"}], "abc", []),
        "bodies": (None, [], ["a"], [3, 4], ["a"] * 300),
        "policy_parameters": (None, [], ["a"], [1, 2]),
    }
    for field, values in wrong.items():
        for value in values:
            yield f"spec.{field} = {str(value)[:30]!r}", _with_spec(field, value)
    arrays = ("observations", "actions", "rewards", "continues", "physics", "body_masks", "body_ids")
    for name in (*arrays, "episodes", "policy_parameters", "splits/train"):
        optional = name in ("physics", "body_masks")
        if not optional:
            yield f"{name} missing", _replace(name, lambda file, values: None)
        yield f"{name} short", _replace(name, lambda file, values: values[:1])
        yield f"{name} of one value", _replace(name, lambda file, values: np.float64(3))
        yield f"{name} of text", _replace(name, lambda file, values: np.array([b"a", b"b"]))
        yield f"{name} of objects", _replace(name, lambda file, values: np.array(["a", "b"], h5py.string_dtype()))
        yield f"{name} with an axis more", _replace(name, lambda file, values: values[:, None])
        yield f"{name} empty", _replace(name, lambda file, values: h5py.Empty("f4"))
        yield f"{name} a soft link", _replace(name, lambda file, values: h5py.SoftLink("/actions"))
        yield f"{name} a link nowhere", _replace(name, lambda file, values: h5py.SoftLink("/nowhere"))
        yield f"{name} elsewhere", _replace(name, lambda file, values: h5py.ExternalLink("base.h5", "/actions"))
        if name != "splits/train":
            yield f"{name} huge", _huge(name, chunk=16)
            yield f"{name} never written", _never_written(name)
    for name in arrays:
        yield f"{name} as float16", _replace(name, lambda file, values: values.astype(np.float16))
        yield f"{name} a group", lambda file, name=name: _as_group(file, name)  # type: ignore[misc]
    yield "observations in external storage", _replace("observations", _external)
    yield "observations virtual", _replace("observations", _virtual)
    yield "rewards in a chunk of two gigabytes", _bomb
    large = 2**63
    for episode, row in (
        (0, {"offset": -3}),
        (1, {"offset": -100_000}),
        (1, {"offset": large - 50, "length": 100}),
        (1, {"offset": 100, "length": large - 1}),
        (1, {"offset": -large, "length": large - 1}),
        (1, {"offset": 0}),
        (3, {"offset": 16}),
        (2, {"length": 0}),
        (2, {"length": -1}),
        (2, {"length": -large}),
        (3, {"length": 6}),
        (0, {"length": 40}),
        (0, {"reset_index": -1}),
    ):
        yield f"row {episode}: {row}", _with_row(episode, **row)
    for name, index, value in (
        *((name, 3, bad) for name in ("rewards", "continues") for bad in (np.nan, np.inf, -np.inf)),
        *(("actions", (3, 1), bad) for bad in (np.nan, np.inf, 101.0, -2.001)),
        *(("physics", (40, 2), bad) for bad in (np.nan, np.inf, 1e300)),
        *(("continues", 4, bad) for bad in (5.0, -0.25, 1.001)),
        ("body_ids", (3, 2, 2), 3),
        ("policy_parameters", (1, 0), np.nan),
        ("splits/train", 0, 99),
        ("splits/train", 0, -1),
    ):
        yield f"{name}[{index}] = {value}", _with_value(name, index, value)
    yield "splits overlap", lambda file: _with_value("splits/test", 0, file["splits/train"][0])(file)
    yield "splits incomplete", _replace("splits/test", lambda file, values: None)


def _never_written(name: str) -> Change:
    def change(file: h5py.File) -> None:
        old = file[name]
        shape, dtype, chunks = old.shape, old.dtype, old.chunks
        del file[name]
        file.create_dataset(name, shape, dtype, maxshape=(None, *shape[1:]), chunks=chunks)

    return change


def _as_group(file: h5py.File, name: str) -> None:
    del file[name]
    file.create_group(name)


def _write_groups(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs["domain"] = "walker"
        for number, length in enumerate(LENGTHS):
            t = np.arange(length)
            group = file.create_group(f"episode_{number:03}")
            frames = np.broadcast_to(t[:, None, None, None], (length, 8, 6, 3)).astype(np.uint8)
            group.create_dataset("observations", data=frames, compression="gzip")
            group["actions"] = np.stack([t, t], axis=1).astype(np.float32)
            group["rewards"], group["dones"] = t * 0.1, t == length - 1
    return path


def _group_changes() -> Iterator[tuple[str, Change]]:
    for name in ("observations", "actions", "rewards"):
        place = f"episode_001/{name}"
        yield f"group: {name} missing", _replace(place, lambda file, values: None)
        yield f"group: {name} of text", _replace(place, lambda file, values: np.array([b"a"] * len(values)))
        yield f"group: {name} of one value", _replace(place, lambda file, values: 3.0)
        yield f"group: {name} empty", _replace(place, lambda file, values: h5py.Empty("f4"))
        yield f"group: {name} without entries", _replace(place, lambda file, values: values[:0])
        yield f"group: {name} a link", _replace(place, lambda file, values: h5py.SoftLink("/episode_000/" + "rewards"))
        yield f"group: {name} elsewhere", _replace(place, lambda file, values: h5py.ExternalLink("base.h5", "/actions"))
        yield f"group: {name} huge", _huge(place, chunk=16)
        yield f"group: {name} never written", _never_written_group(place)
    yield "group: actions infinite", _with_value("episode_001/actions", (2, 1), np.inf)
    yield "group: rewards NaN", _with_value("episode_001/rewards", 2, np.nan)
    yield "group: episode a dataset", lambda file: _as_dataset(file, "episode_001")
    yield "group: two of one number", lambda file: file.copy("episode_001", "episode_1")
    for value in ("../x", "\x1b[31m", 3, np.zeros(2), np.bytes_(b"\xff")):
        yield f"group: domain {str(value)!r}", _with_attribute("domain", value)


def _never_written_group(name: str) -> Change:
    def change(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        file.create_dataset(name, shape, dtype, chunks=(16, *shape[1:]))

    return change


def _as_dataset(file: h5py.File, name: str) -> None:
    del file[name]
    file[name] = 3


def _write_unclosed(path: Path) -> Path:
    """What a killed writer of an earlier version left: single-writer-multiple-reader mode, never closed."""
    from aime.data.layout import create_layout

    live = path.with_name("live.h5")
    with h5py.File(live, "w", libver="latest") as file:
        create_layout(file, SPEC, body_masks=True)
        file.swmr_mode = True
        offset = 0
        for number, length in enumerate(LENGTHS):
            episode = scripted_episode(number, length)
            for name in ("observations", "actions", "rewards", "continues", "physics", "body_masks", "body_ids"):
                array = getattr(episode, name)
                file[name].resize(offset + length, axis=0)
                file[name][offset:] = np.packbits(array, axis=-1) if name == "body_masks" else array
            for name, row in (
                ("episodes", (offset, length, 1000 + number, number)),
                ("policy_parameters", (number, 0.5)),
            ):
                file[name].resize(number + 1, axis=0)
                file[name][number] = row
            offset = -(-(offset + length) // 16) * 16
        file.flush()
        shutil.copy(live, path)
    return path


def _damaged_segments(directory: Path, rng: random.Random) -> Iterator[Broken]:
    for i in range(40):
        copy = directory / f"segments_{i:03}.h5.partial"
        shutil.copytree(directory / "segments.h5.partial", copy)
        segment = copy / f"episode_{i % 4:06}.h5"
        kind = ("bit", "bit", "bit", "bit", "cut", "empty", "gone", "link", "twice", "spec")[i % 10]
        data = bytearray(segment.read_bytes())
        if kind == "bit":
            data[rng.randrange(8, len(data))] ^= 1 << rng.randrange(8)
            segment.write_bytes(data)
        elif kind == "cut":
            segment.write_bytes(data[: rng.randrange(len(data))])
        elif kind == "empty":
            shutil.rmtree(copy)
            copy.mkdir()
        elif kind == "gone":
            (copy / "episode_000001.h5").unlink()
        elif kind == "link":
            segment.unlink()
            segment.symlink_to(directory / "base.h5")
        elif kind == "twice":
            shutil.copy(directory / "base.h5", segment)
        else:
            with h5py.File(segment, "r+", libver="latest") as file:
                _with_spec("task", "another")(file)
        yield Broken(f"segments: {kind}", copy)


def main() -> int:
    """Generate and examine; print each file whose outcome is wrong, and the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1, help="examine every n-th file only")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        files = generate(directory, arguments.seed)[:: arguments.every]
        bases = [directory / base for base in ("base.h5", "groups_base.h5")]
        outcomes = examine(files, bases)
    figures = collections.Counter(o if o in (RIGHT, REFUSED) else o.split(":")[0] for o in outcomes)
    for file, outcome in zip(files, outcomes, strict=True):
        if outcome not in (RIGHT, REFUSED):
            print(f"{file.name} ({file.path.name}): {outcome}")
    print(f"{len(files)} damaged files: " + ", ".join(f"{count} {what}" for what, count in figures.most_common()))
    return 0 if set(figures) <= {RIGHT, REFUSED} else 1


if __name__ == "__main__":
    sys.exit(main())
