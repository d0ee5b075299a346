"""Parquet shards as Hugging Face's image data sets have them, on disk and on a stub of the Hub."""

import datetime
import json
import sys
import threading

import hub_stub
import nasty
import numpy as np
import pyarrow as arrow
import pyarrow.parquet
import pytest
from command_line import call, refused, succeeds
from conftest import age

from latentddpm.conditions.classes import ClassCondition
from latentddpm.config import ConditionConfig
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.pack import pack
from latentddpm.data.sources.open import open_source
from latentddpm.data.sources.packed import parquet
from latentddpm.errors import UserError

COUNT = 12
IMAGES = [nasty.encoded(nasty.solid("L", 10 * i, 8), "PNG") for i in range(COUNT)]
WORDS = ["cat", "dog", "fox"]
FEATURES = {
    "image": {"_type": "Image"},
    "label": {"_type": "ClassLabel", "names": WORDS},
    "text": {"_type": "Value", "dtype": "string"},
}


def write(path, columns, features=None, group=5, **options):
    """A parquet file of columns, with Hugging Face's features in its schema."""
    table = arrow.table(columns)
    if features is not None:
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group, **options)
    return path


def a_set(numbers=range(COUNT), **more):
    """Columns of a data set: nested images, labels, captions."""
    return {
        "image": [{"bytes": IMAGES[i], "path": f"{i}.png" if i % 2 else None} for i in numbers],
        "label": [i % 4 - (i % 4 == 3) * 4 for i in numbers],  # −1 is no label
        "text": [f"number {i}" if i else None for i in numbers],
        **more,
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two shards of a data set."""
    folder = tmp_path_factory.mktemp("set")
    write(folder / "train-00000-of-00002.parquet", a_set(range(7)), FEATURES)
    write(folder / "train-00001-of-00002.parquet", a_set(range(7, COUNT)), FEATURES)
    return folder


def entries(place):
    source = open_source(place)
    metadata = source.open_metadata()
    return [one for unit in source.units() for one in source.entries(unit, metadata)]


def test_rows_of_one_name_are_told_apart_by_their_numbers(tmp_path):
    images = [{"bytes": one, "path": "image.png"} for one in IMAGES]
    write(tmp_path / "set.parquet", {"image": images})
    names = [one.name for one in entries(tmp_path / "set.parquet")]
    assert names[:3] == ["image.png", "set/000001/image.png", "set/000002/image.png"]
    assert len(set(names)) == COUNT, "the split into training and validation reads names"


def test_rows_are_images_with_their_columns(place):
    found = entries(place)
    assert [one.load() for one in found] == IMAGES, "expected the images in their order"
    assert found[1].name == "1.png", f"expected the path of the row, got {found[1].name}"
    numbered = "train-00000-of-00002/000002.png"
    assert found[2].name == numbered, f"expected a number of one without, got {found[2].name}"
    assert found[1].row.columns == {"label": "dog", "text": "number 1"}, "expected the word"
    assert "text" not in found[0].row.columns, "null is no text"
    assert "label" not in found[3].row.columns, "-1 is no label"


def test_images_are_read_in_any_order_by_many_threads(place, tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "KEPT_BYTES", 1)  # one row group is kept
    catalog = open_catalog(place, tmp_path / "catalog", quiet=True)
    wrong = []

    def read(seed):
        for i in np.random.default_rng(seed).permutation(COUNT):
            if catalog.read(int(i)) != IMAGES[i]:
                wrong.append(int(i))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"images {wrong} are others"
    assert len(catalog.source._groups._kept) == 1, "expected no more to be kept than allowed"


def test_memory_follows_the_row_groups_not_the_file(tmp_path):
    """In a scan and in reading; pyarrow counts its own bytes."""
    draw = np.random.default_rng(0)
    big = [IMAGES[0] + draw.bytes(100_000) for _ in range(100)]
    path = write(tmp_path / "big.parquet", {"image": big}, group=10, compression="none")
    assert path.stat().st_size > 9_900_000, "the test needs a large file"
    before, most = arrow.total_allocated_bytes(), 0
    source = open_source(path)
    for entry in source.entries(next(iter(source.units())), source.open_metadata()):
        most = max(most, arrow.total_allocated_bytes() - before)
        assert entry.size == len(big[0]), f"{entry.name}: {entry.size} bytes"
    assert most < 6_000_000, f"expected about two groups of a megabyte, got {most:,} bytes"


@pytest.mark.parametrize("name", ["img", "Image", "picture", "jpg", "anything"])
def test_plain_bytes_under_other_names_are_images(name, tmp_path):
    columns = {name: IMAGES, "caption": ["a", "b"] * 6}
    found = entries(write(tmp_path / "a.parquet", columns))
    assert [one.load() for one in found] == IMAGES, f"expected the images of {name}"
    assert found[1].row.columns == {"caption": "b"}, f"got {found[1].row.columns}"


def test_of_several_columns_of_images_one_is_read_and_the_others_are_named(tmp_path):
    both = {"mask": {"_type": "Image"}, "image": {"_type": "Image"}}
    images = [{"bytes": data, "path": None} for data in IMAGES]
    path = write(tmp_path / "a.parquet", {"mask": images[::-1], "image": images}, both)
    assert [one.load() for one in entries(path)] == IMAGES, "expected the column image"
    report = examine(path, quiet=True)
    text = " ".join(report.findings.lines())
    assert "column mask" in text, f"expected the other one to be named: {text}"


def test_values_that_json_cannot_hold_are_none_or_text(tmp_path):
    columns = a_set(
        when=[datetime.date(2020, 1, 2)] * COUNT,
        score=[float("nan"), *[0.5] * (COUNT - 1)],
        embedding=[[0.0] * 512] * COUNT,
        tags=[["red", "round"]] * COUNT,
        inner=[{"a": 1}] * COUNT,
    )
    first, second, *_ = entries(write(tmp_path / "a.parquet", columns, FEATURES))
    assert "score" not in first.row.columns, "NaN is no number"
    columns = second.row.columns
    assert columns["when"] == "2020-01-02", f"got {columns}"
    assert columns["tags"] == ["red", "round"], f"got {columns}"
    assert columns["inner"] == {"a": 1}, f"got {columns}"
    assert "embedding" not in columns, "an embedding is no metadata"


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"text": ["a"], "url": ["x"]}, "no column of images in it .its columns are text, url."),
        ({"text": ["a"]}, "one holds the bytes of image files"),
        ({"image": ["a.png"]}, "its columns are image"),
        ({"audio": [b"RIFF"], "sound": [b"RIFF"]}, "its columns are audio, sound"),
    ],
)
def test_without_images_the_columns_are_named(columns, words, tmp_path):
    path = write(tmp_path / "a.parquet", columns)
    with pytest.raises(UserError, match=words):
        entries(path)
    line = ("pack", "--data", path, "--out", tmp_path / "out")
    refused(call(*line), "no column of images in it", "a.parquet")


def test_damage_is_said_by_name(place, tmp_path):
    data = (place / "train-00000-of-00002.parquet").read_bytes()
    for number, broken in enumerate((data[:-9], b"PAR1", b"", b"nothing")):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(broken)
        with pytest.raises(UserError, match=rf"{number}.parquet: not a whole parquet file"):
            entries(path)
    catalog = open_catalog(place, tmp_path / "catalog", quiet=True)
    with pytest.raises(OSError, match="row 99 is not the image it was"):
        catalog.source.read("train-00000-of-00002.parquet", 99, 1)


def test_rows_without_bytes_are_named(tmp_path):
    columns = {"image": [{"bytes": IMAGES[0], "path": "a.png"}, {"bytes": None, "path": "b.png"}]}
    path = write(tmp_path / "a.parquet", columns, {"image": {"_type": "Image"}})
    assert len(entries(path)) == 1, "expected the image that is there"
    text = " ".join(examine(path, quiet=True).findings.lines())
    assert "row 1" in text, f"expected the row to be named: {text}"


def test_tables_of_tar_shards_are_no_shards(place, tmp_path):
    """img2dataset writes 00000.parquet beside 00000.tar."""
    pack(place, tmp_path / "tar", quiet=True)
    write(tmp_path / "tar" / "shard-000000.parquet", {"url": ["x"], "caption": ["y"]})
    source = open_source(tmp_path / "tar")
    assert source.kind == "tar", f"expected the tar, got {source.kind}"
    assert [one.load() for one in entries(tmp_path / "tar")] == IMAGES, "expected the images"


def test_what_pack_writes_others_read(place, tmp_path):
    """The columns and the schema are those of Hugging Face's `datasets`."""
    pack(place, tmp_path / "packed", kind="parquet", quiet=True)
    table = pyarrow.parquet.read_table(tmp_path / "packed" / "shard-000000.parquet")
    rows = table.select(["image", "text"]).to_pylist()
    assert [row["image"]["bytes"] for row in rows] == IMAGES, "expected the images"
    assert rows[1]["image"]["path"] == "1.png", "expected its name"
    assert [row["text"] for row in rows[:2]] == [None, "number 1"], "expected captions or null"
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}, f"got {features}"


def test_without_pyarrow_the_extra_is_named(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UserError, match=r'pip install "latentddpm\[hub\]"'):
        open_source(place)


# --- On the Hub ----------------------------------------------------------------------------


@pytest.fixture
def hub(place, tmp_path, monkeypatch):
    with hub_stub.running() as hub:
        hub_stub.use(monkeypatch, hub, tmp_path / "cache")
        files = {f"data/{path.name}": path.read_bytes() for path in place.iterdir()}
        test = write(tmp_path / "test.parquet", a_set([3, 4]), FEATURES).read_bytes()
        files |= {"data/test-00000-of-00001.parquet": test, "set.py": b"print('never')"}
        hub.add("me/set", files, "datasets")
        hub.add("me/script", {"script.py": b"", "README.md": b""}, "datasets")
        pictures = {f"train/{i}.png": data for i, data in enumerate(IMAGES)}
        table = "file_name,text\n" + "".join(f"{i}.png,number {i}\n" for i in range(COUNT))
        hub.add("me/pictures", {**pictures, "train/metadata.csv": table}, "datasets")
        yield hub


def test_a_data_set_of_the_hub_is_read(hub, tmp_path):
    catalog = open_catalog("hf://datasets/me/set", tmp_path / "catalog", quiet=True)
    assert [catalog.read(i) for i in range(len(catalog))] == IMAGES, "expected the training split"
    commit = hub.repositories["datasets", "me/set"].refs["main"]
    place = catalog.manifest.place
    assert place == f"hf://datasets/me/set@{commit}", f"expected the commit, got {place}"
    assert not any("test" in name or "set.py" in name for name in hub.fetched()), "fetched more"
    values = [catalog.row(i).columns.get("label") for i in range(len(catalog))]
    known = ClassCondition.of_data("label", ConditionConfig(kind="class"), values, True)
    assert list(known.words) == WORDS, f"expected the words as classes, got {known.words}"
    for path in (tmp_path / "cache").rglob("*.parquet"):
        age(path)
    open_catalog(place, tmp_path / "catalog", quiet=True)
    catalog = open_catalog(place, tmp_path / "catalog", quiet=True)
    again = open_catalog("hf://datasets/me/set", tmp_path / "catalog", quiet=True)
    assert again.digest == catalog.digest, "expected the same catalog"
    assert again.folder == catalog.folder, "expected it not to be made again"


def test_a_split_and_pictures_of_the_hub(hub):
    found = entries("hf://datasets/me/set/test")
    assert [one.load() for one in found] == IMAGES[3:5], "expected the split test"
    found = entries("hf://datasets/me/pictures")
    assert sorted(one.load() for one in found) == sorted(IMAGES), "expected the pictures"
    captions = {one.name: one.row.columns["text"] for one in found}
    assert captions["3.png"] == "number 3", f"expected the captions of the table, got {captions}"


def test_commands_take_a_data_set_of_the_hub(hub, tmp_path):
    done = succeeds(call("doctor", "hf://datasets/me/set"))
    assert f"{COUNT} readable images" in done.stdout, f"got {done.stdout}"
    assert "using hf://datasets/me/set@" in done.stderr, f"expected the commit: {done.stderr}"
    line = ("pack", "--data", "hf://datasets/me/set/test", "--out", tmp_path / "shards")
    succeeds(call(*line))
    assert len(entries(tmp_path / "shards")) == 2, "expected the split in a tar"
    refused(call("doctor", "hf://datasets/me/script"), "script.py", "@refs/convert/parquet")
    refused(call("doctor", "hf://datasets/me/set/tset"), "no split or folder 'tset'", "'test'")
    refused(call("doctor", "hf://datasets/me/no"), "no such data set, or a private one")
    refused(call("doctor", "hf://me/set"), "is a model; a data set is hf://datasets/owner/name")
