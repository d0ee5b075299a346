"""A catalog says what the images are, is made once, follows every change, and is never trusted
when it is not whole."""

import json
import os
import shutil
import threading
import time

import nasty
import numpy as np
import pytest
from conftest import age
from PIL import Image

from latentddpm.clip.tokenizer import CLIPTokenizer, PromptTooLong
from latentddpm.config import DataConfig
from latentddpm.data.captions import Captions, prepare_tokens
from latentddpm.data.catalog import reader
from latentddpm.data.catalog.catalog import MANIFEST
from latentddpm.data.catalog.columns import HEADER, Schema, Table, TableWriter, npy_header
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import BLOCK, Selection, split_catalog
from latentddpm.distribution.processes import ProcessGroup
from latentddpm.errors import UserError

NAMES = tuple(f"part-{i // 4}/{i:02d}.png" for i in range(8))


def save(path, seed, side=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


class Bench:
    """A folder of eight captioned images, its catalog, and a note of what was decoded."""

    def __init__(self, folder, monkeypatch):
        self.data, self.folder, self.decoded = folder / "data", folder / "catalog", []
        self.fail_after = None
        for seed, name in enumerate(NAMES):
            save(self.data / name, seed)
            (self.data / name).with_suffix(".txt").write_text(f"picture {seed}")
        self.settle()
        examine = reader.examine

        def noted(entry):
            if self.fail_after is not None and len(self.decoded) >= self.fail_after:
                raise KeyboardInterrupt
            self.decoded.append(entry.name)
            return examine(entry)

        monkeypatch.setattr(reader, "examine", noted)

    def settle(self):
        """Let everything be old enough to be trusted."""
        for path in self.data.rglob("*.*"):
            if time.time() - path.stat().st_mtime < 10:
                age(path)

    def open(self, **options):
        self.decoded.clear()
        return open_catalog(self.data, self.folder, quiet=True, **options)

    def check(self, catalog):
        """The catalog is what a fresh scan of the folder says."""
        fresh = open_catalog(self.data, self.folder.with_name("fresh"), quiet=True)
        assert len(catalog) == len(fresh), f"{len(catalog)} images, expected {len(fresh)}"
        for i in range(len(fresh)):
            assert catalog.name(i) == fresh.name(i), f"image {i} is {catalog.name(i)}"
            assert catalog.row(i) == fresh.row(i), f"{fresh.name(i)}: {catalog.row(i)}"
            assert catalog.read(i) == fresh.read(i), f"{fresh.name(i)}: other bytes"
        for column in ("sha256", "width", "height", "transparent", "split_hash", "size"):
            found, expected = catalog.images[column], fresh.images[column]
            np.testing.assert_array_equal(found, expected, err_msg=column)
        assert list(catalog.unreadable()) == list(fresh.unreadable()), "other unreadable files"
        assert catalog.digest == fresh.digest, "another digest of the same contents"
        assert catalog.row_digest == fresh.row_digest, "another digest of the same captions"
        assert catalog.columns() == fresh.columns(), f"columns {catalog.columns()}"
        shutil.rmtree(self.folder.with_name("fresh"))


@pytest.fixture
def bench(tmp_path, monkeypatch):
    return Bench(tmp_path, monkeypatch)


# --- Made once, following changes -----------------------------------------------------------


def test_a_second_start_decodes_nothing(bench):
    bench.check(bench.open())
    again = bench.open()
    assert bench.decoded == [], f"decoded again: {bench.decoded}"
    bench.check(again)


def test_only_what_changed_is_decoded(bench):
    bench.open()
    save(bench.data / NAMES[2], 99)
    save(bench.data / "part-0/021.png", 98)
    (bench.data / NAMES[5]).unlink()
    (bench.data / "part-1/bad.png").write_bytes(b"no picture")
    bench.settle()
    catalog = bench.open()
    wanted = [NAMES[2], "part-0/021.png", "part-1/bad.png"]
    assert sorted(bench.decoded) == sorted(wanted), f"decoded {bench.decoded}"
    bench.check(catalog)
    bench.open()
    assert bench.decoded == [], "unreadable files are decoded at each start"
    left = [path.name for path in bench.folder.iterdir()]
    assert sorted(left) == [".lock", "version-000002"], f"versions pile up: {left}"


def test_an_equal_size_at_another_time_is_decoded(bench):
    bench.open()
    before = (bench.data / NAMES[2]).stat()
    save(bench.data / NAMES[2], 99)
    age(bench.data / NAMES[2], 30)
    assert (bench.data / NAMES[2]).stat().st_size == before.st_size, "the test needs equal sizes"
    bench.check(bench.open())
    assert bench.decoded.count(NAMES[2]) >= 1, "a changed file was not decoded"


def test_young_files_are_not_trusted(bench):
    bench.open()
    save(bench.data / NAMES[3], 99)
    status = (bench.data / NAMES[3]).stat()
    bench.open()
    save(bench.data / NAMES[3], 100)
    os.utime(bench.data / NAMES[3], ns=(status.st_atime_ns, status.st_mtime_ns))
    catalog = bench.open()
    assert bench.decoded == [NAMES[3]], f"decoded {bench.decoded}"
    bench.check(catalog)


def test_new_captions_decode_nothing(bench):
    bench.open()
    (bench.data / NAMES[1]).with_suffix(".txt").write_text("another one")
    (bench.data / NAMES[2]).with_suffix(".txt").unlink()
    bench.settle()
    age((bench.data / NAMES[1]).with_suffix(".txt"), 30)
    catalog = bench.open()
    assert bench.decoded == [], f"decoded {bench.decoded} for a caption"
    assert Captions(catalog)[1] == ("another one",), f"{Captions(catalog)[1]}"
    assert Captions(catalog)[2] == (), "a caption that is gone"
    bench.check(catalog)


def test_a_new_table_of_captions_decodes_nothing(bench):
    bench.open()
    table = bench.data / "metadata.jsonl"
    for style in ("flat", "round"):
        rows = [{"file_name": name, "style": style} for name in (*NAMES, "gone.png")]
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        age(table, 60 if style == "flat" else 30)
        catalog = bench.open()
        assert bench.decoded == [], f"decoded {bench.decoded} for captions"
        with pytest.warns(UserWarning, match=r"1 of 9 rows name files .*\(gone\.png\)"):
            captions = Captions(catalog, ["{text}, {style}"])
        assert captions[3] == (f"picture 3, {style}",), f"{captions[3]}"
        bench.open()
    table.unlink()
    catalog = bench.open()
    with pytest.raises(UserError, match="no column 'style'"):
        Captions(catalog, ["{style}"])
    bench.check(catalog)


def test_broken_captions_hinder_only_those_who_want_them(bench):
    (bench.data / NAMES[1]).with_suffix(".txt").write_bytes(b"caf\xe9")
    captions = Captions(bench.open())
    assert captions[0] == ("picture 0",), "a good caption beside a bad one"
    with pytest.raises(UserError, match=r"01\.txt: not UTF-8"):
        captions[1]
    (bench.data / "metadata.jsonl").write_text("{")
    catalog = bench.open()
    assert len(catalog) == 8, "images beside a broken table"
    with pytest.raises(UserError, match=r"metadata\.jsonl line 1: not valid JSON"):
        Captions(catalog)


# --- Interrupted, damaged, shared -----------------------------------------------------------


def test_an_interrupted_scan_goes_on(bench):
    bench.fail_after = 5
    with pytest.raises(KeyboardInterrupt):
        bench.open()
    bench.fail_after = None
    catalog = bench.open()
    assert 3 <= len(bench.decoded) < 8, f"decoded {len(bench.decoded)} of 8, 3 were left"
    bench.check(catalog)


def test_an_interrupted_update_leaves_the_old_catalog(bench):
    bench.open()
    save(bench.data / NAMES[0], 50)
    bench.settle()
    bench.fail_after = 0
    with pytest.raises(KeyboardInterrupt):
        bench.open()
    versions = sorted(path.name for path in bench.folder.glob("version-*"))
    assert "version-000001" in versions, f"the whole version is gone: {versions}"
    bench.fail_after = None
    bench.check(bench.open())


@pytest.mark.parametrize("name", ["images/width.npy", "images/row.bin", "units/name.bin"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_damage_is_seen_and_mended(bench, name, damage):
    path = bench.open().folder / name
    raw = bytearray(path.read_bytes())
    raw[-2] ^= 1
    if damage == "delete":
        path.unlink()
    else:
        path.write_bytes(raw if damage == "flip" else raw[:-3])
    bench.check(bench.open())


def test_a_manifest_of_lies_is_not_followed(bench):
    version = bench.open().folder
    manifest = json.loads((version / MANIFEST).read_text())
    for key, lie in {"images": 10**12, "units": 10**12, "format": 7, "files": {}}.items():
        (version / MANIFEST).write_text(json.dumps({**manifest, key: lie}))
        bench.check(bench.open())
        version = bench.open().folder
        manifest = json.loads((version / MANIFEST).read_text())


def test_a_catalog_of_another_format_is_named_and_made_again(bench, capsys):
    path = bench.open().folder / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    catalog = bench.open()
    assert len(bench.decoded) == len(NAMES), "expected all images to be read again"
    told = capsys.readouterr().err
    assert f"{path.parent}: format 1, expected 4: another version of latentddpm wrote it" in told
    bench.check(catalog)


def test_processes_scan_a_part_each(bench):
    alone = bench.open()
    folder = bench.folder.with_name("crewed")
    barrier, found = threading.Barrier(3), {}
    bench.decoded.clear()

    def work(index):
        processes = ProcessGroup(index, 3, barrier.wait)
        found[index] = open_catalog(bench.data, folder, quiet=True, processes=processes)

    workers = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert set(found) == {0, 1, 2}, f"only {set(found)} of 3 came back"
    assert sorted(bench.decoded) == sorted(NAMES), f"decoded {bench.decoded}, each once"
    for catalog in found.values():
        assert catalog.digest == alone.digest, "another catalog than that of one process"
        bench.check(catalog)
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".lock", "version-000001"], f"parts remain: {left}"


def test_nothing_is_left_of_a_place_without_pictures(bench):
    for name in NAMES:
        (bench.data / name).write_bytes(b"no picture")
    with pytest.raises(UserError, match="8 of 8 images cannot be read"):
        bench.open()
    assert not bench.folder.exists(), "a catalog of nothing"


def test_the_place_of_the_catalog_is_a_file(bench):
    bench.folder.write_text("")
    with pytest.raises(UserError, match="is a file"):
        bench.open()


# --- Split and selections -------------------------------------------------------------------


def test_the_split_is_that_of_the_names(bench):
    import hashlib

    catalog = bench.open()
    fractions = {
        name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
        for name in NAMES
    }
    for fraction in (0.0, 0.3, 0.6):
        training, validation = split_catalog(catalog, DataConfig(validation_fraction=fraction))
        names = [catalog.name(i) for i in validation.rows(np.arange(len(validation)))]
        expected = [name for name in NAMES if fractions[name] < fraction]
        assert names == expected, f"{fraction} makes validation images of {names}"
        assert len(training) + len(validation) == 8, "an image in both or in none"
    with pytest.raises(UserError, match=r"validation_fraction=0\.99\d* leaves none of 8"):
        split_catalog(catalog, DataConfig(validation_fraction=1 - 1e-9))


def test_the_split_by_caption_keeps_pictures_of_one_thing_together(tmp_path, emoji_folder):
    """Four styles of ten emoji: all four are validation images or none, whatever else is there."""
    lines = (emoji_folder / "metadata.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    captions = {row["file_name"]: row["text"] for row in rows}
    config = DataConfig(validation_fraction=0.3, validation_by="caption")

    def kept_out(folder):
        catalog = open_catalog(emoji_folder, tmp_path / folder, quiet=True)
        training, validation = split_catalog(catalog, config)
        assert len(training) + len(validation) == len(catalog), "an image in both or in none"
        parts = [
            {captions[catalog.name(i)] for i in part.rows(np.arange(len(part)))}
            for part in (training, validation)
        ]
        assert not parts[0] & parts[1], f"{parts[0] & parts[1]} in training and in validation"
        return parts[1]

    whole = kept_out("whole")
    assert 0 < len(whole) < 10, f"of ten emoji {whole} are validation images"
    rows = [{**row, "text": row["text"].title()} for row in rows if row["text"] != min(whole)]
    (emoji_folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    for name, caption in captions.items():
        if caption == min(whole):
            (emoji_folder / name).unlink()
    assert kept_out("fewer") == whole - {min(whole)}, "other images or letter case decide"


def test_a_split_by_caption_needs_captions(tmp_path, emoji_folder):
    (emoji_folder / "metadata.jsonl").unlink()
    catalog = open_catalog(emoji_folder, tmp_path / "catalog", quiet=True)
    with pytest.raises(UserError, match="no image has a caption") as caught:
        split_catalog(catalog, DataConfig(validation_by="caption"))
    assert "validation_by=path" in str(caught.value), f"{caught.value}: it says no way out"


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_a_selection_is_the_list_of_what_is_kept(count):
    kept = np.random.default_rng(count).random(count) < 0.3
    kept[-1] = True
    selection = Selection(count, lambda start, stop: kept[start:stop])
    expected = np.flatnonzero(kept)
    assert len(selection) == len(expected), f"{len(selection)} kept of {len(expected)}"
    numbers = np.random.default_rng(0).permutation(len(expected))
    np.testing.assert_array_equal(selection.rows(numbers), expected[numbers], "other rows")
    everything = Selection(count)
    np.testing.assert_array_equal(everything.rows(np.arange(count)), np.arange(count))


# --- Token ids ------------------------------------------------------------------------------


def test_token_ids_are_made_once_and_follow_captions_and_templates(bench):
    tokenizer, catalog = CLIPTokenizer(8), bench.open()
    tokens = prepare_tokens(Captions(catalog), tokenizer, quiet=True)
    stamp = tokens.ids.filename
    expected = tokenizer([f"picture {i}" for i in range(8)] + [""])
    np.testing.assert_array_equal(tokens.ids, expected, "other ids")
    again = prepare_tokens(Captions(bench.open()), tokenizer, quiet=True)
    assert again.ids.filename == stamp, "made again"
    other = prepare_tokens(Captions(catalog, ["{text}", "a {text}"]), tokenizer, quiet=True)
    starts, counts = other.starts_and_counts(np.array([0, 5]))
    assert (starts.tolist(), counts.tolist()) == ([0, 10], [2, 2]), "two captions an image"
    (bench.data / NAMES[0]).with_suffix(".txt").write_text("new")
    changed = prepare_tokens(Captions(bench.open()), tokenizer, quiet=True)
    np.testing.assert_array_equal(changed.ids[0], tokenizer("new")[0], "old ids of new captions")
    os.truncate(changed.ids.filename, 200)
    mended = prepare_tokens(Captions(bench.open()), tokenizer, quiet=True)
    np.testing.assert_array_equal(mended.ids[1:-1], expected[1:-1], "damaged ids were used")
    with pytest.warns(PromptTooLong, match="prompt too long"):
        prepare_tokens(Captions(bench.open(), ["{text}, far too many words to fit"]), tokenizer)


# --- Tables and keys ------------------------------------------------------------------------

SCHEMA = Schema({"number": ("<i8", ()), "pair": ("<f4", (2,))}, ("text",))


def test_a_table_reads_back_and_copies(tmp_path):
    count = 10_000
    with TableWriter(tmp_path / "a", SCHEMA) as writer:
        for i in range(count):
            writer.append({"number": i, "pair": [i, -i]}, {"text": b"x" * (i % 7)})
        writer.save()
    table = Table(tmp_path / "a", SCHEMA, count)
    np.testing.assert_array_equal(table["number"], np.arange(count))
    loaded = np.load(tmp_path / "a" / "pair.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(loaded[:, 1], -np.arange(count), "NumPy reads it")
    assert table.text("text", 20) == b"x" * 6, f"{table.text('text', 20)}"
    with TableWriter(tmp_path / "b", SCHEMA) as writer:
        writer.append({"number": 5, "pair": [0, 0]}, {"text": b"first"})
        writer.copy(table, 100, 9_000, number=-100)
        writer.append({"number": 7, "pair": [0, 0]}, {"text": b"last"})
        writer.save()
    copied = Table(tmp_path / "b", SCHEMA, 8_902)
    assert copied["number"][[0, 1, -2, -1]].tolist() == [5, 0, 8_899, 7], "shifted numbers"
    for row in (0, 1, 5_000, 8_901):
        expected = {0: b"first", 8_901: b"last"}.get(row, b"x" * ((row + 99) % 7))
        assert copied.text("text", row) == expected, f"text of row {row}"


def test_headers_have_one_length_and_are_numpys():
    for shape in ((0,), (10**12,), (10**12, 4096)):
        header = npy_header("<u8", shape)
        assert len(header) == HEADER, f"{len(header)} bytes for {shape}"


def test_a_table_that_is_too_short_is_refused(tmp_path):
    with TableWriter(tmp_path / "a", SCHEMA) as writer:
        writer.append({"number": 1, "pair": [0, 0]}, {"text": b"abc"})
        writer.save()
    with pytest.raises(ValueError, match="expected int64"):
        Table(tmp_path / "a", SCHEMA, 2)
    (tmp_path / "a" / "text.bin").write_bytes(b"ab")
    with pytest.raises(ValueError, match="ends before byte 3"):
        Table(tmp_path / "a", SCHEMA, 1)


def test_unreadable_pictures_are_named_with_their_reason(tmp_path, capsys):
    nasty.write(tmp_path / "data", {"a.png": (nasty.encoded(nasty.corner(), "PNG"), None)})
    nasty.write(tmp_path / "data", nasty.unreadable())
    open_catalog(tmp_path / "data", tmp_path / "catalog", quiet=True)
    error = capsys.readouterr().err
    assert error.startswith("9 files cannot be read and are left out:\n"), f"{error!r}"
    for name, (_, word) in nasty.unreadable().items():
        line = next((line for line in error.splitlines() if line.startswith(f"  {name}: ")), "")
        assert word in line, f"{name}: {line!r} does not say {word!r}"
