"""Columns, rows and values as other tools write them: understood, or said with what works."""

import json
import tempfile
from pathlib import Path

import nasty
import pytest

from latentddpm.config import DataConfig
from latentddpm.data.captions import Captions
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import split_catalog
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.doctor.report import as_text
from latentddpm.data.findings import ERROR
from latentddpm.data.pack import pack
from latentddpm.data.sources.kinds import CAPTION_COLUMNS, NAME_COLUMNS, NO_TEXT
from latentddpm.errors import UserError

PIXEL = nasty.encoded(nasty.solid("RGB", nasty.RED, 4), "PNG")


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "sub/b.png"):
        (tmp_path / "d" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "d" / name).write_bytes(PIXEL)
    return tmp_path / "d"


def read(folder, templates=()):
    with tempfile.TemporaryDirectory() as here:
        catalog = open_catalog(folder, Path(here, "catalog"), quiet=True)
        captions = Captions(catalog, templates)
        return {catalog.name(i): captions[i] for i in range(len(catalog))}


def jsonl(folder, *rows):
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")


def table(folder, text):
    (folder / "metadata.csv").write_text(text, "utf-8")


# --- Columns -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "text") for name in (*NAME_COLUMNS, "Image", "FILE_NAME")),
        *(("image", text) for text in (*CAPTION_COLUMNS, "Caption")),
    ],
)
def test_columns_under_other_names_are_understood(folder, name, text, capsys):
    jsonl(folder, {name: "a.png", text: "apple"}, {name: "sub/b.png", text: ["pear", "fruit"]})
    assert read(folder) == {"a.png": ("apple",), "sub/b.png": ("pear", "fruit")}
    said = capsys.readouterr().err
    assert (repr(text) in said) == (text != "text"), f"expected another column to be said: {said}"


def test_the_first_caption_column_with_a_text_is_used(folder):
    jsonl(
        folder,
        {"file_name": "a.png", "prompt": "third", "caption": "second", "text": ""},
        {"file_name": "sub/b.png", "caption": None, "prompt": "pear"},
    )
    assert read(folder) == {"a.png": ("second",), "sub/b.png": ("pear",)}
    assert read(folder, ["{prompt}"])["a.png"] == ("third",), "a template takes its own column"


def test_the_split_by_caption_takes_the_same_captions(folder, tmp_path):
    jsonl(folder, *({"file_name": name, "prompt": "x"} for name in ("a.png", "sub/b.png")))
    config = DataConfig(validation_by="caption", validation_fraction=0.01)
    parts = split_catalog(open_catalog(folder, tmp_path / "catalog", quiet=True), config)
    assert list(map(len, parts)) == [2, 0], "one caption in two parts"


@pytest.mark.parametrize("column", ["description", "texts", "alt_text"])
def test_another_column_is_suggested_with_the_line_that_works(folder, column):
    jsonl(folder, {"file_name": "a.png", column: "apple"})
    line = f'data.caption_templates=["{{{column}}}"]'
    with pytest.raises(UserError, match="no column 'text'") as caught:
        read(folder)
    assert line in str(caught.value), f"expected {line} in {caught.value}"
    report = examine(folder, quiet=True)
    found = report.findings["bad_table"].items[0][1]
    assert line in found, f"doctor says {found}"
    assert "unconditional" not in as_text(report), "training with text refuses this"
    templates = json.loads(line.partition("=")[2])
    assert read(folder, templates)["a.png"] == ("apple",), "the suggested line does not work"


def test_the_name_of_the_folder_is_a_column(folder):
    assert read(folder, ["a photo of {folder}"]) == {"a.png": (), "sub/b.png": ("a photo of sub",)}
    jsonl(folder, {"file_name": "sub/b.png", "folder": "own"})
    assert read(folder, ["{folder}"])["sub/b.png"] == ("own",), "a column of the table comes first"


def test_captions_missing_in_folders_of_classes_name_the_template(folder, tmp_path):
    remedy = Captions(open_catalog(folder, tmp_path / "c", quiet=True)).remedy()
    line = 'data.caption_templates=["a photo of {folder}"]'
    assert line in remedy, f"expected {line} in {remedy!r}"
    assert line in as_text(examine(folder, quiet=True)), "doctor says it too"


# --- Rows ----------------------------------------------------------------------------------


def test_several_rows_of_an_image_are_alternatives(folder):
    rows = [
        {"file_name": "a.png", "text": "apple", "style": "flat", "id": 1},
        {"file_name": "./a.png", "text": ["fruit", "apple"], "style": "flat", "id": 2},
        {"file_name": "a.png", "text": "red fruit", "style": "flat"},
    ]
    jsonl(folder, *rows)
    assert read(folder)["a.png"] == ("apple", "fruit", "red fruit")
    assert read(folder, ["{text}, {style}"])["a.png"][2] == "red fruit, flat"
    report = examine(folder, quiet=True)
    assert not list(report.of(ERROR)), f"doctor finds {report.findings}"
    assert report.captions == 3


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_seen_in_the_header(folder, separator):
    text = separator.join(("file_name", " text")) + "\n" + separator.join(("a.png", '"x; y, z"'))
    table(folder, text)
    assert read(folder)["a.png"] == ("x; y, z",)


def test_a_byte_order_mark_before_a_semicolon_is_no_part_of_a_name(folder):
    (folder / "metadata.csv").write_text("file_name;text\na.png;apple\n", "utf-8-sig")
    assert read(folder)["a.png"] == ("apple",)


def test_an_absolute_path_in_the_folder_is_understood(folder):
    jsonl(folder, {"file_name": str(folder / "sub/b.png"), "text": "pear"})
    assert read(folder)["sub/b.png"] == ("pear",)
    jsonl(folder, {"file_name": f"{folder}/../d/../e/b.png", "text": "pear"})
    with pytest.raises(UserError, match="climbs out"):
        read(folder)


BROKEN = {
    "a.png,a red apple\n": "in its first line: no 'file_name'; columns are 'a.png', 'a red apple'",
    "file_name,text\na.png,red, ripe\n": "3 cells, expected 2 .*stands in quotes",
    "name,text\na.png,red\n": r"no 'file_name' \(did you mean 'name'\?\); columns are",
    "file_name:text\na.png:red\n": "no 'file_name'",
}


@pytest.mark.parametrize("text", BROKEN)
def test_doctor_says_of_a_broken_table_what_training_says(folder, text):
    table(folder, text)
    with pytest.raises(UserError, match=BROKEN[text]) as caught:
        read(folder)
    report = examine(folder, quiet=True)
    assert report.findings["bad_table"].items[0][1] == str(caught.value), "two judgements"
    assert report.images == 2, "expected the images to be looked at all the same"
    mine = examine(folder, templates=["{style}"], quiet=True)
    assert mine.findings["bad_table"].items[0][1] == str(caught.value), "with templates too"


# --- What is no text -----------------------------------------------------------------------

NOT_TEXT = [
    "NaN",
    "1e400",
    "-Infinity",
    "null",
    "5",
    "0.5",
    '"nan"',
    '"None"',
    "[NaN, null]",
    "[]",
]


@pytest.mark.parametrize("value", NOT_TEXT)
def test_what_is_no_text_is_no_caption_and_counted(folder, tmp_path, value):
    good = '{"file_name": "sub/b.png", "text": "pear"}'
    jsonl(folder, f'{{"file_name": "a.png", "text": {value}}}', good)
    assert read(folder) == {"a.png": (), "sub/b.png": ("pear",)}
    report = examine(folder, quiet=True)
    key = "empty_caption" if value == "[]" else "not_text"
    assert [name for name, _ in report.findings[key].items] == ["a.png"], f"{report.findings}"
    captions = Captions(open_catalog(folder, tmp_path / "c", quiet=True))
    assert ("'text'" in captions.reason(0)) == (value != "[]"), f"why: {captions.reason(0)!r}"
    pack(folder, tmp_path / "packed", quiet=True)
    assert read(tmp_path / "packed") == {"a.png": (), "sub/b.png": ("pear",)}
    packed = (tmp_path / "packed/shard-000000.tar").read_bytes()
    for word in (b"NaN", b"Infinity"):
        assert word not in packed, f"{word} is no JSON"


@pytest.mark.parametrize("sidecar", [True, False])
def test_words_for_a_missing_value_are_no_caption(tmp_path, sidecar):
    for number, cell in enumerate(("", *NO_TEXT)):
        (tmp_path / f"{number}.png").write_bytes(PIXEL)
        if sidecar:
            (tmp_path / f"{number}.txt").write_text(cell)
    if not sidecar:
        rows = (f"{number}.png,{cell}\n" for number, cell in enumerate(("", *NO_TEXT)))
        table(tmp_path, "file_name,text\n" + "".join(rows))
    found = {name: texts for name, texts in read(tmp_path).items() if texts}
    assert not found, f"captions are {found}"


def test_such_words_inside_a_text_stay(folder):
    (folder / "a.txt").write_text("nan bread, none left")
    assert read(folder)["a.png"] == ("nan bread, none left",)


def test_a_number_fills_a_template_of_words_and_is_no_caption_alone(folder):
    jsonl(
        folder,
        {"file_name": "a.png", "digit": 5, "weight": float("nan")},
        {"file_name": "sub/b.png", "text": 7},
    )
    assert read(folder, ["the digit {digit}"])["a.png"] == ("the digit 5",)
    assert read(folder, ["{digit}"])["a.png"] == (), "a number alone"
    assert read(folder, ["{weight} kg"])["a.png"] == (), "NaN"
    assert read(folder, ["number {text}"])["sub/b.png"] == ("number 7",)
