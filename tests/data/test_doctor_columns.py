"""What `doctor` finds that a model could be told: kinds of columns, and what is odd about them."""

import json
import shlex

import pytest
from PIL import Image

from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.conditions.rows import read_rows
from latentddpm.data.doctor.columns import FEW, MOST, Column, Columns
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.doctor.report import as_json, as_text


def kind_of(values):
    column = Column()
    for value in values:
        column.add(value)
    return column.kind


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["cat", "dog"] * FEW, "class"),
        (["cat", "dog"] * (FEW - 1), ""),  # too few images of each
        (["cat"] * 20, ""),  # says nothing
        ([str(k) + "a" for k in range(40)], ""),  # another word for each
        ([["smile"], ["smile", "hat"]] * 10, "labels"),
        (["smile", "smile, hat"] * 10, "labels"),
        (list(range(10)) * FEW, "class"),  # digits
        ([str(k) for k in range(10)] * FEW, "class"),
        (list(range(30)) * FEW, "number"),
        ([0.5, 1.5] * 10, "number"),
        (["0.5", 3] * 10, "number"),
        ([3.0] * 20, ""),
        ([True, False] * 10, "class"),
        ([{"a": 1}] * 20, ""),
        ([k / 7 for k in range(MOST + 50)], "number"),
        ([f"word {k % (MOST + 9)}" for k in range((MOST + 9) * FEW)], ""),  # more than MOST
        ([None, "", []], ""),
    ],
)
def test_a_column_has_a_kind(values, kind):
    assert kind_of(values) == kind


def test_captions_and_names_are_no_conditions():
    columns = Columns()
    for k in range(20):
        columns.add({"text": "cat", "Prompt": "a" if k % 2 else "b", "file_name": "x"}, f"{k}.png")
    assert columns.candidates() == {}
    for k in range(20):
        columns.add({}, f"{'cat' if k % 2 else 'dog'}/{k}.png")
    (only,) = columns.candidates()
    assert only == "folder"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve cats and twelve dogs; a style of three words, of which two are one; an age."""
    folder = tmp_path_factory.mktemp("data") / "pets"
    lines = []
    styles = [*["flat"] * 15, *["Flat"] * 6, "oil", "oil"]
    for k in range(24):
        name = f"{'cat' if k % 2 else 'dog'}/{k:02}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (9 * k, 90, 255 - 9 * k)).save(folder / name)
        row = {"file_name": name, "age at time": k + 0.5}
        lines.append(json.dumps(row | ({"style": styles[k]} if k < len(styles) else {})))
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


@pytest.fixture(scope="module")
def report(data):
    return examine(data, quiet=True)


def test_the_report_lists_what_a_model_could_be_told(report):
    text = as_text(report)
    assert "folder: class, 2 words of 12 to 12 images: cat, dog" in text, text
    assert "style: class, 3 words of 2 to 15 images: Flat, flat, oil" in text, text
    assert "age at time: number, 0.5 to 23.5" in text, text
    found = json.loads(as_json(report))["conditions"]
    assert found["folder"] == {"kind": "class", "images": 24, "words": {"cat": 12, "dog": 12}}
    assert found["age at time"] == {"kind": "number", "images": 24, "range": [0.5, 23.5]}


def test_the_options_that_it_prints_are_those_of_a_run(report, data, tmp_path):
    lines = [line.strip() for line in as_text(report).splitlines() if "--set" in line]
    assert len(lines) == 3, lines
    overrides = [word for line in lines for word in shlex.split(line) if word != "--set"]
    config = load_config(DiffusionRun, None, overrides)
    assert sorted(config.conditions) == ["age_at_time", "folder", "style"]
    catalog = open_catalog(data, tmp_path / "catalog", quiet=True)
    for name, settings in config.conditions.items():
        read_rows(name, settings, catalog, True)


def test_names_that_no_condition_can_have_are_others():
    columns = Columns()
    for k in range(40):
        columns.add({"time": k / 3, "7 days": k / 7}, f"{k}.png")
    lines = [line for line in columns.lines() if "--set" in line]
    assert "--set conditions.of_time.kind=number --set conditions.of_time.column=time" in lines[1]
    assert "--set 'conditions.of_7_days.column=7 days'" in lines[0]


def test_it_finds_what_is_odd_about_words(report):
    findings = report.findings
    assert findings["alike_words"].items == [("'Flat' = 'flat'", "column 'style'")]
    assert findings["rare_word"].items == [("'oil'", "column 'style', 2 images")]
    assert findings["no_value"].count == 1
    assert findings["no_value"].items == [("cat/23.png", "column 'style'")]


def test_a_column_that_begins_later_names_the_first_image_without_it():
    columns = Columns()
    for k in range(20):
        columns.add({"style": "ab"[k % 2]} if k > 3 else {}, f"{k}.png")
    (column,) = columns.candidates().values()
    assert column.bare == "0.png"
    assert columns.images - column.images == 4
