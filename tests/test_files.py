"""Files and tensor files: atomic, exclusive, with the umask's mode, and errors that name them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
import torch

from aime.files import (
    DamagedFileError,
    check_written,
    describe_os_error,
    read_json,
    record_written,
    remove,
    require_writable,
    write_json,
)
from aime.tensor_files import check_tensors, first_non_finite, read_tensors, write_tensors


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_get_the_mode_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_json(tmp_path / "values.json", {"a": 1})
        write_tensors(tmp_path / "tensors.safetensors", {"a": torch.ones(3)})
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert modes == {0o666 & ~umask}


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1} and [entry.name for entry in tmp_path.iterdir()] == ["values.json"]


def test_a_link_in_place_of_a_file_is_replaced_not_followed(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "values.json"
    precious.write_text("mine")
    link.symlink_to(precious)
    write_json(link, {"a": 1})
    assert precious.read_text() == "mine" and not link.is_symlink() and read_json(link) == {"a": 1}
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "precious").touch()
    (tmp_path / "link").symlink_to(folder)
    remove(tmp_path / "link")
    assert (folder / "precious").exists() and not (tmp_path / "link").exists()


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'{"a": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_what_is_no_json_object_is_named(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "values.json"
    path.write_bytes(text)
    with pytest.raises(DamagedFileError, match=r"values\.json: expected a JSON object, found "):
        read_json(path)


def test_a_pipe_does_not_hang_the_reader(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "values.json")
    with pytest.raises(DamagedFileError, match="expected a file, found a pipe"):
        read_json(tmp_path / "values.json")
    with pytest.raises(DamagedFileError, match="expected a file, found a pipe"):
        read_tensors(tmp_path / "values.json")


def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file") as below_a_file:
        require_writable(tmp_path / "file" / "below")
    assert "file" in describe_os_error(below_a_file.value)
    with pytest.raises(OSError, match="proc"):
        require_writable(Path("/proc/nowhere"))
    require_writable(tmp_path / "new" / "deep")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_a_full_disk_is_named_with_its_file(tmp_path: Path) -> None:
    message = describe_os_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "weights")))
    assert message.startswith(f"{tmp_path / 'weights'}: no space left on device (the disk at /")
    assert message.endswith("MB left)")
    assert "\x1b" not in describe_os_error(OSError(errno.EIO, "bad", "\x1b[31m"))


@pytest.mark.parametrize("how", ["bit", "cut", "gone", "index"])
def test_changed_files_of_a_directory_are_found(tmp_path: Path, how: str) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    check_written(tmp_path)  # nothing to compare with
    record_written(tmp_path)
    check_written(tmp_path)
    damage = {
        "bit": lambda: (tmp_path / "a").write_bytes(b"0123456788"),
        "cut": lambda: (tmp_path / "a").write_bytes(b"01234"),
        "gone": (tmp_path / "a").unlink,
        "index": lambda: (tmp_path / "checksums.json").write_text('{"../a": {}}'),
    }
    damage[how]()
    with pytest.raises(DamagedFileError, match=str(tmp_path)):
        check_written(tmp_path)


def test_tensors_are_compared_by_name_shape_and_dtype() -> None:
    expected = {"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.int64)}
    check_tensors("FILE", {"b": torch.ones((), dtype=torch.int64), "a": torch.ones(2, 3)}, expected)
    for found, message in (
        ({"a": torch.zeros(2, 3)}, "FILE: expected exactly the model's 2 tensors, found no b"),
        ({**expected, "c": torch.zeros(1)}, "found c besides"),
        ({**expected, "a": torch.zeros(3, 2)}, r"FILE: a: expected float32 \(2, 3\), found float32 \(3, 2\)"),
        ({**expected, "b": torch.zeros(())}, r"FILE: b: expected int64 \(\), found float32 \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tensors("FILE", found, expected)


def test_the_first_tensor_that_is_not_finite_is_found() -> None:
    tensors = {"count": torch.ones(2, dtype=torch.int64), "empty": torch.zeros(0), "a": torch.tensor([1e38, -1e38])}
    assert first_non_finite(tensors) is None
    tensors["half"] = torch.tensor([1.0, float("inf")], dtype=torch.bfloat16)
    assert first_non_finite(tensors) == "half"
    assert first_non_finite(tensors, infinity_counts=False) is None
    tensors["b"] = torch.tensor([0.0, float("nan")])
    assert first_non_finite(tensors, infinity_counts=False) == "b"
