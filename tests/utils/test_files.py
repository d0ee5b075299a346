"""A file or folder appears whole under its name, or what stood there stays."""

import errno
import hashlib
import json
import math
import os
import stat

import pytest

from latentddpm.utils.files import (
    CHUNK,
    FileEntry,
    atomic_folder,
    atomic_path,
    file_digest,
    write_json,
)


class Stop(Exception):
    """What goes wrong in the middle of writing."""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fail_at(call, function):
    """`function`, but its call number `call` (from 1) finds the disk full."""
    calls = []

    def wrapped(*args):
        calls.append(args)
        return full_disk() if len(calls) == call else function(*args)

    return wrapped


# --- atomic_path ---------------------------------------------------------------------------


def test_a_file_takes_its_name_at_the_end(tmp_path):
    path = tmp_path / "new" / "folder" / "words.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("hello")
        assert not path.exists(), "the final name exists before the block has ended"
        assert temporary.parent == path.parent, "written on another disk, which cannot rename"
        assert temporary.suffix == ".txt", "the suffix, by which writers choose, is lost"
    assert path.read_text() == "hello", "the file does not hold what was written"
    assert names(path.parent) == ["words.txt"], f"left behind: {names(path.parent)}"
    mode = stat.S_IMODE(path.stat().st_mode)
    assert mode == 0o644, f"mode {mode:o}, expected a file that others can read"


def test_an_error_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("old")

    def write():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise Stop

    with pytest.raises(Stop):
        write()
    assert path.read_text() == "old", "an interrupted writer changed the file"
    assert names(tmp_path) == ["words.txt"], f"left behind: {names(tmp_path)}"


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_a_full_disk_names_the_file(tmp_path, writer):
    """What `write` raises knows no name, what HDF5 raises no number."""
    path = tmp_path / "words.txt"
    for error in (OSError(errno.ENOSPC, "No space left"), OSError("errno = 28, no space")):
        with pytest.raises(OSError, match="o space") as caught, writer(path):
            raise error
        assert str(path) in str(caught.value), f"expected {path} in {caught.value}"
        assert ".tmp-" not in str(caught.value), f"expected no temporary name in {caught.value}"


@pytest.mark.parametrize("writer", [atomic_path, atomic_folder])
def test_a_place_that_is_no_folder_is_named(tmp_path, writer):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OSError, match="exists") as caught, writer(tmp_path / "file" / "new"):
        pass
    assert str(tmp_path / "file") in str(caught.value), f"expected the folder in {caught.value}"


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path, monkeypatch, step):
    path = tmp_path / "words.txt"
    path.write_text("old")
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(OSError, match="No space"):
        write_json(path, {"new": 1})
    assert path.read_text() == "old", f"a failing {step} changed the file"
    assert names(tmp_path) == ["words.txt"], f"left behind: {names(tmp_path)}"


def test_the_bytes_are_flushed_before_the_rename(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (order.append("fsync"), fsync(handle)))
    monkeypatch.setattr(os, "replace", lambda *names: (order.append("replace"), replace(*names)))
    write_json(tmp_path / "a.json", 1)
    expected = ["fsync", "replace", "fsync"]
    assert order == expected, f"{order}: expected file flushed, renamed, folder flushed"


# --- atomic_folder -------------------------------------------------------------------------


def test_a_folder_replaces_the_old_one_at_the_end(tmp_path):
    path = tmp_path / "model"
    for content in ("one", "two"):
        with atomic_folder(path) as staged:
            (staged / "deep").mkdir()
            (staged / "deep" / content).write_text(content)
        assert names(path / "deep") == [content], f"holds {names(path / 'deep')}, not {content}"
    assert names(tmp_path) == ["model"], f"left behind: {names(tmp_path)}"
    mode = stat.S_IMODE(path.stat().st_mode)
    assert mode == 0o755, f"mode {mode:o}, expected a folder that others can enter"


def test_an_error_leaves_the_folder_that_was_there(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")

    def write():
        with atomic_folder(path) as staged:
            (staged / "half").write_text("half")
            raise Stop

    with pytest.raises(Stop):
        write()
    assert names(path) == ["old"], f"an interrupted writer left {names(path)}"
    assert names(tmp_path) == ["model"], f"left behind: {names(tmp_path)}"


@pytest.mark.parametrize(("step", "call"), [("fsync", 1), ("replace", 1), ("replace", 2)])
def test_a_full_disk_leaves_the_folder_that_was_there(tmp_path, monkeypatch, step, call):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    monkeypatch.setattr(os, step, fail_at(call, getattr(os, step)))

    def write():
        with atomic_folder(path) as staged:
            (staged / "new").write_text("new")

    with pytest.raises(OSError, match="No space"):
        write()
    assert names(path) == ["old"], f"call {call} of {step} failed and left {names(path)}"
    assert names(tmp_path) == ["model"], f"left behind: {names(tmp_path)}"


# --- JSON and digests ----------------------------------------------------------------------


def test_json_keeps_every_script(tmp_path):
    value = {"prompt": "café 猫 🍎", "seed": 3}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text("utf-8")
    assert json.loads(text) == value, "JSON came back as another value"
    assert "猫" in text, "JSON is written in escapes that nobody can read"


@pytest.mark.parametrize("size", [0, 1, CHUNK, CHUNK + 1])
def test_the_digest_is_of_all_bytes(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "data").write_bytes(data)
    expected = hashlib.sha256(data).hexdigest()
    assert file_digest(tmp_path / "data") == expected, f"wrong digest of {size} bytes"


def test_an_entry_knows_its_file_again(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"some bytes")
    entry = FileEntry.of(path)
    assert entry == FileEntry(10, file_digest(path)), f"{entry}"
    assert entry.matches(path), "the file that it was made of"
    path.write_bytes(b"same bytes")
    assert entry.difference(path) == "its bytes have changed", entry.difference(path)
    assert entry.matches(path, digest_limit=10), "a large file counts by its size alone"
    path.write_bytes(b"more bytes than there were")
    for limit in (5, math.inf):
        assert entry.difference(path, limit) == "26 bytes, 10 were written", f"limit {limit}"
    assert not entry.matches(path), "another file"
    assert FileEntry.of(path, digest_limit=26) == FileEntry(26, None), "digest of a large file"
