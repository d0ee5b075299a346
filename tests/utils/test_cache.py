"""The cache of computed files: whole or none, bounded, never a reason to fail."""

import os

import pytest

from latentddpm.utils.console import speaking
from latentddpm.utils.machine import cache as cache_module
from latentddpm.utils.machine.cache import SWITCH, Cache, is_switched_off


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "latentddpm" / "tests"


def test_what_was_written_is_read(folder):
    cache = Cache("tests", 1000)
    assert cache.read("a") is None, "expected nothing in an empty cache"
    cache.write("a", b"one")
    cache.write("a", b"two")
    assert cache.read("a") == b"two"
    assert [file.name for file in folder.iterdir()] == ["a"], "expected no temporary files"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "folder"])
def test_a_damaged_file_counts_as_none(folder, damage):
    cache = Cache("tests", 1000)
    cache.write("a", b"content")
    file = folder / "a"
    stored = bytearray(file.read_bytes())
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        stored[-1] ^= damage == "flipped"
        file.write_bytes({"cut": stored[:-1], "flipped": stored, "empty": b""}[damage])
    assert cache.read("a") is None, f"{damage}: expected it to be ignored"
    if damage != "folder":
        cache.write("a", b"content")
        assert cache.read("a") == b"content", f"{damage}: expected it to be replaced"


def test_content_of_another_key_counts_as_none(folder):
    cache = Cache("tests", 1000)
    cache.write("a", b"content")
    (folder / "a").rename(folder / "b")
    assert cache.read("b") is None, "expected the key to be part of the digest"


def test_those_not_used_for_longest_go(folder):
    cache = Cache("tests", 3 * (32 + 10))
    for age, key in ((300, "a"), (200, "b"), (100, "c")):
        cache.write(key, b"0123456789")
        os.utime(folder / key, ns=(0, (folder / key).stat().st_mtime_ns - age * 10**9))
    assert cache.read("a"), "expected three files to fit"
    cache.write("d", b"0123456789")
    assert {file.name for file in folder.iterdir()} == {"a", "c", "d"}, "b was not used since"


def test_a_folder_that_cannot_be_written_costs_one_line(folder, capsys):
    cache_module._complain.cache_clear()
    folder.parent.parent.mkdir(exist_ok=True)
    folder.parent.write_text("a file where the folder should be", "utf-8")
    with speaking():
        for key in "ab":
            Cache("tests", 1000).write(key, b"content")
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1, f"expected one line, got {said}"
    assert said[0].startswith("cache:"), said[0]
    assert Cache("tests", 1000).read("a") is None


def test_the_variable_switches_it_off():
    assert not is_switched_off({})
    assert not is_switched_off({SWITCH: ""})
    assert is_switched_off({SWITCH: "1"})
