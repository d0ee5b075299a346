"""Files of generated pictures: nothing that is there is lost, and places are judged beforehand."""

import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from latentddpm.errors import UserError
from latentddpm.generation.output import (
    check_out,
    check_writable,
    note_of_names,
    targets,
    write_picture,
)
from latentddpm.utils.files import atomic_path

BLACK = np.zeros((2, 2, 3), np.uint8)


def test_names_are_of_prompt_and_seed():
    prompts, seeds = ["Red, apple!", "ü/…"], [3, 4]
    found = targets(Path("out"), prompts, seeds, grid=False)
    assert found == [Path("out/red-apple-3.png"), Path("out/ü-4.png")], f"got {found}"
    assert targets(None, prompts, seeds, grid=True) == [Path("red-apple-3-grid.png")]
    assert targets(Path("a.png"), ["x"], [0], grid=False) == [Path("a.png")]


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"of somebody")
    found = [write_picture(mine, BLACK, {}, replace=False).name for _ in range(3)]
    assert found == ["mine_2.png", "mine_3.png", "mine_4.png"], f"expected numbers, got {found}"
    assert mine.read_bytes() == b"of somebody", "expected the file that was there"
    assert write_picture(mine, BLACK, {}, replace=True) == mine, "expected to replace it"
    assert mine.read_bytes() != b"of somebody", "expected to replace it"
    assert not list(tmp_path.glob(".tmp-*")), "expected no temporary files"


def test_a_link_that_leads_nowhere_is_a_name_that_is_taken(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "nowhere.png")
    found = write_picture(tmp_path / "a.png", BLACK, {}, replace=False)
    assert found.name == "a_2.png", f"expected a number, got {found}"


def test_writers_at_the_same_time_get_names_of_their_own(tmp_path):
    names = []
    start = threading.Barrier(8)

    def write():
        start.wait()
        names.append(write_picture(tmp_path / "a.png", BLACK, {}, replace=False).name)

    writers = [threading.Thread(target=write) for _ in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    there = sorted(path.name for path in tmp_path.iterdir())
    assert sorted(names) == there, f"expected a file for each writer, got {names}, {there}"
    assert len(set(names)) == 8, f"expected eight names, got {names}"


def test_without_hard_links_nothing_is_replaced_either(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    found = [write_picture(tmp_path / "a.png", BLACK, {}, replace=False).name for _ in range(2)]
    assert found == ["a.png", "a_2.png"], f"expected a number, got {found}"
    with pytest.raises(FileExistsError), atomic_path(tmp_path / "a.png", replace=False):
        pass


def test_a_failed_write_leaves_what_was_there(tmp_path):
    mine = tmp_path / "mine.png"
    mine.write_bytes(b"of somebody")
    for replace in (False, True):
        with pytest.raises(OSError, match="disk full"), atomic_path(mine, replace=replace):
            raise OSError(errno.ENOSPC, "disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.png"], "expected one file"
    assert mine.read_bytes() == b"of somebody", "expected the file that was there"


@pytest.mark.parametrize(("out", "count"), [("a.jpg", 1), ("a.png", 2), ("a.tar.gz", 1)])
def test_a_file_that_cannot_be_is_refused(out, count):
    with pytest.raises(UserError, match=out):
        check_out(Path(out), count)


def test_a_place_is_judged_without_a_trace(tmp_path):
    check_writable([tmp_path / "a" / "b" / "c.png"], [], replace=False)
    assert not list(tmp_path.iterdir()), "expected nothing to be made"
    (tmp_path / "file").write_text("not a folder", "utf-8")
    with pytest.raises(UserError, match=r"--out .*: .*file is not a folder"):
        check_writable([tmp_path / "file" / "deep" / "c.png"], [], replace=False)
    with pytest.raises(OSError, match="too long"):
        check_writable([tmp_path / f"{'a' * 300}.png"], [], replace=False)
    with pytest.raises(OSError, match="/proc/latentddpm"):
        check_writable([Path("/proc/latentddpm/a.png")], [], replace=False)


def test_what_is_read_is_not_replaced(tmp_path):
    photo = tmp_path / "photo.png"
    write_picture(photo, BLACK, {}, replace=False)
    (tmp_path / "folder.png").mkdir()
    check_writable([photo], [photo, None], replace=False)
    with pytest.raises(UserError, match=r"--overwrite: .*photo\.png is read"):
        check_writable([photo], [photo, None], replace=True)
    with pytest.raises(UserError, match=r"--overwrite: .*folder\.png is a folder"):
        check_writable([tmp_path / "folder.png"], [], replace=True)


def test_a_number_is_said_once():
    wanted = [Path("a.png"), Path("b.png"), Path("c.png")]
    assert note_of_names(wanted, wanted) is None, "expected nothing to say"
    found = note_of_names(wanted, [Path("a_2.png"), Path("b.png"), Path("c_2.png")])
    for words in ("a.png", "is kept", "a_2.png", "1 more", "--overwrite"):
        assert words in found, f"expected {words!r} in {found!r}"
