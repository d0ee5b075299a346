"""Captions come from exactly one place each, and whatever is wrong with them is said."""

import json
import re
import tempfile
from pathlib import Path

import nasty
import pytest

from latentddpm.data.captions import Captions
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.sources.tables import MetadataTable
from latentddpm.errors import UserError

IMAGES = ["a.png", "sub/b.png"]
PIXEL = nasty.encoded(nasty.solid("RGB", nasty.RED, 1), "PNG")


@pytest.fixture
def folder(tmp_path):
    for name in IMAGES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(PIXEL)
    return tmp_path


def read_captions(folder, images, templates=()):
    """The captions of some images of a folder, through a catalog of all of it."""
    with tempfile.TemporaryDirectory() as here:
        catalog = open_catalog(folder, Path(here, "catalog"), quiet=True)
        captions = Captions(catalog, templates)
        names = [catalog.name(i) for i in range(len(catalog))]
        return [captions[names.index(name)] for name in images]


def jsonl(folder, *rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metadata_csv(folder, text):
    (folder / "metadata.csv").write_text(text, encoding="utf-8")


# --- Sidecars ------------------------------------------------------------------------------


def test_a_sidecar_is_one_caption(folder):
    (folder / "a.txt").write_text("  red apple,\nfruit 🍎 \n\n", encoding="utf-8")
    assert read_captions(folder, IMAGES) == [("red apple,\nfruit 🍎",), ()], "sidecar text"


def test_dots_in_a_name_belong_to_the_name(folder):
    (folder / "v1.5.png").write_bytes(PIXEL)
    (folder / "v1.5.txt").write_text("five")
    (folder / "v1.txt").write_text("one")
    assert read_captions(folder, ["v1.5.png"]) == [("five",)], "sidecar of a dotted name"


@pytest.mark.parametrize("content", ["", " \n\t", "\ufeff", "\ufeff  \n"])
def test_an_empty_sidecar_is_no_caption(folder, content):
    (folder / "a.txt").write_text(content, encoding="utf-8")
    assert read_captions(folder, ["a.png"]) == [()], f"{content!r} counts as a caption"


def test_no_captions_at_all_is_unconditional(folder):
    assert read_captions(folder, IMAGES) == [(), ()], "no caption"
    assert read_captions(folder, []) == [], "no image"


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv"])
def test_a_byte_order_mark_is_stripped(folder, name):
    text = {
        "a.txt": "apple",
        "metadata.jsonl": '{"file_name": "a.png", "text": "apple"}',
        "metadata.csv": "file_name,text\r\na.png,apple\r\n",
    }[name]
    (folder / name).write_text(text, encoding="utf-8-sig", newline="")
    assert read_captions(folder, ["a.png"]) == [("apple",)], f"BOM in {name}"


@pytest.mark.parametrize("name", ["a.txt", "metadata.jsonl", "metadata.csv"])
def test_latin_1_is_refused_with_its_position(folder, name):
    (folder / name).write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(UserError, match=rf"{name}: not UTF-8 \(byte 0xe9 at position 3\)"):
        read_captions(folder, IMAGES)


def test_utf_16_is_refused(folder):
    (folder / "a.txt").write_text("apple", encoding="utf-16")
    with pytest.raises(UserError, match="position 0"):
        read_captions(folder, IMAGES)


def test_a_sidecar_link_may_not_leave_the_folder(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("outside") / "secret.txt"
    secret.write_text("secret")
    (folder / "a.txt").symlink_to(secret)
    with pytest.raises(UserError, match="leaves the folder"):
        read_captions(folder, IMAGES)


def test_a_very_long_caption_is_kept_whole(folder):
    long = "word " * 10_000
    (folder / "a.txt").write_text(long)
    assert read_captions(folder, ["a.png"]) == [(long.strip(),)], "a long caption was cut"


# --- Metadata ------------------------------------------------------------------------------


def test_jsonl_text_is_a_string_or_a_list(folder):
    jsonl(
        folder,
        {"file_name": "sub/b.png", "text": [" pear ", "", "fruit", "pear"]},
        {"file_name": "./a.png", "text": "apple"},
    )
    wanted = [("apple",), ("pear", "fruit")]
    assert read_captions(folder, IMAGES) == wanted, "order, strip or repeats"


@pytest.mark.parametrize("empty", ["", "  ", None, [], [""]])
def test_an_empty_text_is_no_caption(folder, empty):
    jsonl(folder, {"file_name": "a.png", "text": empty})
    assert read_captions(folder, IMAGES) == [(), ()], f"{empty!r} counts as a caption"


def test_line_separators_inside_json_do_not_split_it(folder):
    row = json.dumps({"file_name": "a.png", "text": "one\u2028two\x85"}, ensure_ascii=False)
    (folder / "metadata.jsonl").write_text(f"{row}\r\n\n", encoding="utf-8", newline="")
    assert read_captions(folder, ["a.png"]) == [("one\u2028two",)], "split inside a string"


def test_csv_text_is_a_string_or_a_json_list(folder):
    metadata_csv(
        folder, 'file_name,text\na.png,"red, ""ripe""\napple"\nsub/b.png,"[""p"", ""q""]"'
    )
    wanted = [('red, "ripe"\napple',), ("p", "q")]
    assert read_captions(folder, IMAGES) == wanted, "CSV quoting or list"


@pytest.mark.parametrize("cell", ["[1, 2]", "[apple]", "[", '[""a"", 1]'])
def test_csv_brackets_that_are_no_list_of_texts_stay_text(folder, cell):
    metadata_csv(folder, f'file_name,text\na.png,"{cell}"\n')
    plain = cell.replace('""', '"')
    assert read_captions(folder, ["a.png"]) == [(plain,)], f"{cell} was read as a list"


@pytest.mark.parametrize(
    "name", ["../x.png", "sub/../../x.png", "/etc/x.png", "..\\x.png", "C:\\x.png", "\\\\h\\x.png"]
)
def test_a_file_name_may_not_leave_the_folder(folder, name):
    jsonl(folder, {"file_name": "a.png", "text": "ok"}, {"file_name": name, "text": "bad"})
    with pytest.raises(
        UserError, match=r"metadata\.jsonl line 2: 'file_name' .*(climbs|absolute)"
    ):
        read_captions(folder, IMAGES)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file_name": "a.png", "text": "x"', "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('["a.png", "x"]', "expected an object"),
        ('{"file_nam": "a.png", "text": "x"}', r"no 'file_name' \(did you mean 'file_nam'\?\)"),
        ('{"file_name": 3, "text": "x"}', "'file_name' is 3"),
        ('{"file_name": "sub/b.png", "text": {"en": "x"}}', "expected a text"),
        ('{"file_name": "sub/b.png", "text": "\\ud83c"}', "half a character"),
    ],
)
def test_a_wrong_jsonl_line_is_named(folder, line, words):
    first = '{"file_name": "a.png", "text": "apple"}\n'
    (folder / "metadata.jsonl").write_text(first + "\n" + line)
    with pytest.raises(UserError, match=f"line 3: .*{words}") as caught:
        read_captions(folder, IMAGES)
    assert "\n" not in str(caught.value), f"several lines: {caught.value}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("file_name,text\na.png\n", "line 2: 1 cells, expected 2"),
        ("file_name,text\na.png,x,y\n", "line 2: 3 cells, expected 2"),
        ('file_name,text\na.png,"x\n', "line 2: not valid CSV"),
        ("file_name,text,text\na.png,x,y\n", "column name is repeated"),
        ("file_name,text\n", "describes no image"),
        ("", "describes no image"),
    ],
)
def test_a_wrong_csv_is_named(folder, text, words):
    metadata_csv(folder, text)
    with pytest.raises(UserError, match=words):
        read_captions(folder, IMAGES)


def test_rows_without_a_file_are_counted_in_one_warning(folder):
    names = ["a.png", "gone1.png", "gone2.png", "gone3.png", "gone4.png", "sub/b.png"]
    jsonl(folder, *({"file_name": name, "text": name} for name in names))
    with pytest.warns(
        UserWarning, match=r"4 of 6 rows .*\(gone1.png, gone2.png, gone3.png, \.\.\."
    ):
        captions = read_captions(folder, ["a.png"])  # sub/b.png exists, though not asked for
    assert captions == [("a.png",)], "a ghost row shifted the captions"


def test_a_table_of_too_many_rows_is_refused_with_the_way_out(folder):
    jsonl(folder, *({"file_name": name, "text": name} for name in IMAGES))
    table = MetadataTable(str(folder), max_rows=2)
    assert not table.problem, f"two rows of two: {table.problem}"
    problem = MetadataTable(str(folder), max_rows=1).problem
    wanted = rf"metadata\.jsonl line 2: more than 1 rows, .*pack --data {re.escape(str(folder))} "
    assert re.search(wanted, problem), f"{problem!r} does not say {wanted!r}"


def test_two_metadata_files_are_refused(folder):
    jsonl(folder, {"file_name": "a.png", "text": "x"})
    metadata_csv(folder, "file_name,text\na.png,x\n")
    with pytest.raises(UserError, match=r"both metadata\.jsonl and metadata\.csv"):
        read_captions(folder, IMAGES)


def test_sidecar_and_row_may_agree_but_not_differ(folder):
    (folder / "a.txt").write_text("apple\n")
    jsonl(folder, {"file_name": "a.png", "text": "apple"}, {"file_name": "sub/b.png", "text": ""})
    (folder / "sub/b.txt").write_text("pear")
    assert read_captions(folder, IMAGES) == [("apple",), ("pear",)], "agreeing sources"
    (folder / "a.txt").write_text("green apple")
    with pytest.raises(UserError, match=r"a\.png: .*'green apple'.* line 1 says 'apple'"):
        read_captions(folder, IMAGES)


def test_metadata_without_text_is_said_not_taken_for_unconditional(folder):
    jsonl(folder, {"file_name": "a.png", "texts": "apple"})
    with pytest.raises(UserError, match=r"no column 'text' \(did you mean 'texts'\?\)"):
        read_captions(folder, IMAGES)


# --- Templates -----------------------------------------------------------------------------


def test_templates_are_filled_from_columns_in_order(folder):
    jsonl(
        folder,
        {
            "file_name": "a.png",
            "text": ["apple", "fruit"],
            "keywords": ["red", "ripe", "apple"],
            "style": "noto",
            "year": 2024,
        },
    )
    templates = ["{text}", "{text}, {style} style", "{keywords}", "{{{year}}} {text}/{text}"]
    wanted = (
        *("apple", "fruit", "apple, noto style", "fruit, noto style", "red", "ripe"),
        *("{2024} apple/apple", "{2024} fruit/fruit"),
    )
    assert read_captions(folder, ["a.png"], templates) == [wanted], "filled templates"


def test_a_template_without_its_value_is_skipped_for_that_image(folder):
    jsonl(
        folder,
        {"file_name": "a.png", "text": "apple", "style": None},
        {"file_name": "sub/b.png", "text": "pear", "style": "flat"},
    )
    got = read_captions(folder, IMAGES, ["{text}", "{text}, {style}"])
    assert got == [("apple",), ("pear", "pear, flat")], "a missing value leaves a gap"


def test_a_sidecar_offers_only_text_and_joins_the_columns_of_its_row(folder):
    (folder / "a.txt").write_text("apple")
    (folder / "sub/b.txt").write_text("pear")
    jsonl(folder, {"file_name": "sub/b.png", "style": "flat"})
    got = read_captions(folder, IMAGES, ["a {text}", "{text}, {style}"])
    assert got == [("a apple",), ("a pear", "pear, flat")], "sidecar in templates"


def test_a_constant_template_captions_every_image(folder):
    assert read_captions(folder, IMAGES, ["an emoji"]) == [("an emoji",)] * 2, "constant caption"
    assert read_captions(folder, IMAGES, "an emoji") == [("an emoji",)] * 2, "one bare template"


def test_an_unknown_column_is_said_with_the_nearest(folder):
    jsonl(folder, {"file_name": "a.png", "text": "apple", "style": "flat"})
    with pytest.raises(UserError, match=r"no column 'stile' \(did you mean 'style'\?\); columns"):
        read_captions(folder, IMAGES, ["{text}, {stile}"])


@pytest.mark.parametrize(
    "template",
    [
        *["{text.__class__}", "{text[0]}", "{text!r}", "{text:>9999999}", "{text:{style}}", "{}"],
        *["{text", "text}"],
    ],
)
def test_only_plain_fields_are_allowed(folder, template):
    (folder / "a.txt").write_text("apple")
    with pytest.raises(UserError, match="caption template"):
        read_captions(folder, IMAGES, [template])
