"""`doctor`: every kind of trouble is found and named, and nothing else is."""

import json
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import nasty
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from latentddpm.cli import main
from latentddpm.data.doctor import doctor as doctoring
from latentddpm.data.doctor import duplicates
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.doctor.report import as_json, as_text, shapes, token_quartiles
from latentddpm.data.findings import ERROR, KINDS
from latentddpm.errors import UserError


def files(report, key):
    finding = report.findings.get(key)
    return [] if finding is None else [name for name, _ in finding.items]


def snapshot(folder):
    return {
        p: (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(folder).rglob("*") if p.is_file()
    }


# --- Findings ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """A folder with one of everything, and what was there before it was looked at."""
    folder = tmp_path_factory.mktemp("hospital")
    nasty.write(folder, nasty.readable())
    nasty.write(folder, nasty.unreadable())
    picture = nasty.corner()
    picture.save(folder / "turned.jpg", **nasty.turned(picture, 6))
    before = snapshot(folder)
    report = examine(folder, resolution=32, quiet=True)
    assert snapshot(folder) == before, "expected doctor to leave every file as it was"
    return report


def test_every_unreadable_file_is_an_error_with_its_reason(hospital):
    reasons = dict(hospital.findings["unreadable"].items)
    assert set(reasons) == set(nasty.unreadable()), "expected exactly the broken files"
    for name, (_, word) in nasty.unreadable().items():
        assert word in reasons[name], f"{name}: expected {word!r} in {reasons[name]!r}"
    assert hospital.images == len(nasty.readable()) + 1, "expected all others to be readable"


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("animated", {"animated.gif"}),
        ("exif_rotated", {"turned.jpg"}),
        ("cmyk", {"cmyk.jpg"}),
        ("16_bit", {"gray16.png", "gray16-hidden.png", "rgb16.png"}),
        ("float", {"float.tif"}),
        ("palette", {"palette.png", "palette-alpha.png", "animated.gif"}),
        ("gray", {"gray-alpha.png", "gray16.png", "gray16-hidden.png", "float.tif"}),
        ("bilevel", {"1bit.png"}),
        (
            "transparent",
            {"gray-alpha.png", "gray16-hidden.png", "palette-alpha.png", "rgba.webp"},
        ),
        ("wrong_extension", {"jpeg-inside.png"}),
        ("too_small", {"1x1.png", "line.png"}),
    ],
)
def test_odd_files_are_told_by_their_bytes(hospital, key, names):
    assert set(files(hospital, key)) == names, f"{key}: {files(hospital, key)}"


def test_without_any_caption_none_is_missing(hospital):
    assert "missing_caption" not in hospital.findings, "expected an unconditional set to be fine"
    assert "unconditional" in as_text(hospital), "expected the table to say what it is good for"


def test_captions(emoji_folder):
    (emoji_folder / "metadata.jsonl").unlink()
    images = sorted(p for p in emoji_folder.rglob("*.png"))
    names = [p.relative_to(emoji_folder).as_posix() for p in images]
    for path in images:
        path.with_suffix(".txt").write_text("red apple", "utf-8")
    images[0].with_suffix(".txt").write_bytes(b"caf\xe9")
    images[1].with_suffix(".txt").write_bytes("\ufeff \n".encode())
    images[2].with_suffix(".txt").unlink()
    images[3].with_suffix(".txt").write_text("word " * 75, "utf-8")  # 77 with start and end
    images[4].with_suffix(".txt").write_text("word " * 76, "utf-8")
    images[5].with_suffix(".txt").write_text("🍎 Ünïcode", "utf-8")
    images[6].with_suffix(".txt").rename(images[6].with_suffix(".TXT"))
    (emoji_folder / "lost.txt").write_text("nothing here", "utf-8")
    report = examine(emoji_folder, quiet=True)
    assert files(report, "not_utf8") == [names[0]]
    assert files(report, "empty_caption") == [names[1]]
    assert files(report, "missing_caption") == [names[2]]
    assert files(report, "long_caption") == [names[4]], "expected 77 tokens to fit and 78 not"
    assert files(report, "missing_image") == ["lost.txt"]
    assert report.captioned == report.captions == len(images) - 3, ".TXT is read as .txt is"
    assert max(report.tokens) == 78, f"expected the longest to have 78 tokens: {report.tokens}"


def test_a_table_of_captions(emoji_folder):
    table = emoji_folder / "metadata.jsonl"
    rows = [json.loads(line) for line in table.read_text("utf-8").splitlines()]
    missing = [{"file_name": f"gone-{i}.png", "text": "gone"} for i in range(9)]
    image = emoji_folder / rows[0]["file_name"]
    image.with_suffix(".txt").write_text("something else", "utf-8")
    text = "".join(json.dumps(row) + "\n" for row in [*rows, *missing])
    table.write_text(text, "utf-8")
    report = examine(emoji_folder, templates=["{text}", "{style} of {text}"], quiet=True)
    assert files(report, "missing_image") == [row["file_name"] for row in missing]
    assert files(report, "bad_caption") == [rows[0]["file_name"]], "expected the contradiction"
    few = examine(emoji_folder, limit=2, quiet=True).findings["missing_image"]
    assert (few.count, len(few.items)) == (9, 2), "expected all counted and two named"
    with pytest.raises(UserError, match=r"no column 'stile'.*style"):
        examine(emoji_folder, templates=["{stile}"], quiet=True)
    table.write_text(text + "{", "utf-8")
    broken = examine(emoji_folder, quiet=True)
    assert "not valid JSON" in broken.findings["bad_table"].items[0][1]
    assert any(broken.of(ERROR)), "expected a table that cannot be used to be an error"


def test_shards_are_looked_at_where_they_are(emoji_folder, tmp_path):
    names = sorted(p for p in emoji_folder.rglob("*.png"))[:4]
    shards = tmp_path / "shards"
    shards.mkdir()
    with tarfile.open(shards / "a.tar", "w") as archive:
        for number, path in enumerate(names):
            archive.add(path, f"{number:04d}.png")
        archive.add(names[0], "0009.png")
    whole = (shards / "a.tar").read_bytes()
    (shards / "b.tar").write_bytes(whole[: len(whole) // 3])
    (shards / "c.tar").write_bytes(b"no tar at all" * 100)
    report = examine(shards, quiet=True)
    broken = " ".join(files(report, "unreadable"))
    assert "c.tar" in broken, f"expected the damaged shard to be named: {broken}"
    assert report.findings["equal"].items[0][:2] == ["0000.png", "0009.png"]
    assert report.kind == "tar"


def test_a_set_that_is_too_small_to_train_from_scratch_is_said(emoji_folder, monkeypatch):
    finding = examine(emoji_folder, quiet=True).findings["few_images"]
    assert finding.count == 40
    assert "--init" in finding.items[0][1], f"expected the way out: {finding}"
    monkeypatch.setattr(doctoring, "FEW_IMAGES", 40)
    assert "few_images" not in examine(emoji_folder, quiet=True).findings, "40 are enough of 40"


# --- Duplicates ----------------------------------------------------------------------------


def test_equal_files_and_files_that_look_alike(emoji_folder):
    images = sorted(emoji_folder.rglob("*.png"))
    assert "equal" not in examine(emoji_folder, quiet=True).findings, "the forty are different"
    shutil.copy(images[0], emoji_folder / "z-copy.png")
    picture = Image.open(images[1]).convert("RGBA")
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A"))
    flat.save(emoji_folder / "z-again.jpg", quality=60)
    flat.resize((300, 300), Image.Resampling.BICUBIC).save(emoji_folder / "z-large.png")
    report = examine(emoji_folder, quiet=True)
    first, second = (path.relative_to(emoji_folder).as_posix() for path in images[:2])
    assert report.findings["equal"].items == [[first, "z-copy.png"]]
    group = next(g for g in report.findings["near_duplicates"].items if second in g)
    assert {"z-again.jpg", "z-large.png"} <= set(group), f"expected both copies in {group}"


def test_colour_tells_flat_pictures_apart(tmp_path):
    for name, colour in (("a", "red"), ("b", "blue"), ("c", "#fe0100")):
        Image.new("RGB", (20, 20), colour).save(tmp_path / f"{name}.png")
    report = examine(tmp_path, quiet=True)
    assert report.findings["near_duplicates"].items == [["a.png", "c.png"]], "red is not blue"


def test_neighbours_are_those_of_comparing_all():
    """Against every pair compared, on hashes with planted neighbours at every distance."""
    generator = np.random.default_rng(0)
    looks = generator.integers(0, 256, (600, duplicates.HASH_BYTES), np.uint8)
    for i in range(200):
        bits = generator.choice(128, size=i % 12, replace=False)
        flip = np.zeros(128, bool)
        flip[bits] = True
        looks[300 + i] = looks[i]
        looks[300 + i, :16] ^= np.packbits(flip)
        looks[300 + i, 16:] = np.clip(looks[i, 16:] + i // 12 - 4.0, 0, 255).astype(np.uint8)
    bits = np.unpackbits(looks[:, :16], axis=1).astype(int)
    apart = (bits[:, None] != bits[None]).sum(-1)
    thumbnails = looks[:, 16:].astype(int)
    levels = np.abs(thumbnails[:, None] - thumbnails[None]).mean(-1)
    a, b = np.nonzero((apart <= duplicates.BITS) & (levels <= duplicates.LEVELS))
    expected = duplicates.join(np.arange(len(looks)), a, b)
    labels, whole = duplicates.near_duplicates(looks)
    assert whole
    assert 540 < len(set(expected)) < 560, "expected about a quarter of the planted ones to count"
    np.testing.assert_array_equal(labels, expected, "expected the groups of comparing all")


def test_too_many_alike_are_said_to_be(monkeypatch):
    looks = np.zeros((50, duplicates.HASH_BYTES), np.uint8)
    looks[:, 16:] = 255 * (np.arange(50) % 2)[:, None]
    assert duplicates.near_duplicates(looks)[1]
    monkeypatch.setattr(duplicates, "MAX_SHIFT", 10)
    assert not duplicates.near_duplicates(looks)[1], (
        "expected a search that was cut short to say so"
    )


def test_bits_are_counted():
    words = np.random.default_rng(1).integers(0, 2**64, 1000, np.uint64)
    expected = [int(word).bit_count() for word in words]
    np.testing.assert_array_equal(duplicates.bit_count(words), expected)


# --- The report ----------------------------------------------------------------------------


def test_the_table_is_readable_and_complete(hospital):
    text = as_text(hospital)
    for key in hospital.findings:
        assert KINDS[key][1] in text, f"expected a line for {key}"
    wide = [line for line in text.replace(hospital.place, "DATA").splitlines() if len(line) > 100]
    assert not wide, f"expected at most 100 columns: {wide}"


def test_json_is_json(hospital):
    value = json.loads(as_json(hospital))
    assert value["images"] == hospital.images
    assert set(value["findings"]) == set(hospital.findings)
    named = {item["file"] for item in value["findings"]["unreadable"]["files"]}
    assert named == set(nasty.unreadable()), "expected JSON to name every file"
    assert value["width"]["greatest"] == 1000, "line.png is 1000 pixels wide"
    assert sum(value["shapes"].values()) == value["images"] == sum(value["formats"].values())


def test_shapes_are_the_nearest_proportions(tmp_path):
    sizes = {
        "1:1": (100, 102),
        "4:3": (80, 60),
        "2:3": (41, 60),
        "9:16": (90, 160),
        "3:1": (90, 9),
    }
    for i, size in enumerate(sizes.values()):
        Image.new("RGB", size).save(tmp_path / f"{i}.png")
    assert shapes(examine(tmp_path, quiet=True)) == dict.fromkeys(shapes_in_order(sizes), 1)


def shapes_in_order(sizes):
    def ratio(shape):
        width, height = map(int, shape.split(":"))
        return -width / height

    return sorted(sizes, key=ratio)


def test_token_quartiles():
    values = [3] * 25 + [5] * 50 + [9] * 24 + [40]
    found = token_quartiles(Counter(values))
    assert list(found.values()) == [3, 3, 5, 5, 40], found


# --- The command ---------------------------------------------------------------------------


def doctor(*arguments):
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)])


def test_exit_codes_and_streams(emoji_folder):
    fine = doctor(emoji_folder, "--strict")
    assert fine.exit_code == 0, f"expected 0 of good data: {fine.output}"
    assert "40 readable images" in fine.stdout
    (emoji_folder / "broken.png").write_bytes(b"")
    assert doctor(emoji_folder).exit_code == 0, "expected 0 without --strict"
    strict = doctor(emoji_folder, "--strict", "--json")
    assert strict.exit_code == 2, "expected 2 with --strict and an error"
    assert json.loads(strict.stdout)["findings"]["unreadable"]["count"] == 1


def test_wrong_use_is_one_line(tmp_path):
    for arguments, words in (
        ((tmp_path / "nowhere",), "no such folder"),
        ((tmp_path,), "no image in it"),
        ((tmp_path, "--resolution", "0"), "resolution: 0"),
        ((tmp_path, "--context-length", "1"), "--context-length"),
        ((tmp_path, "--examples", "-1"), "--examples"),
        ((tmp_path, "--caption-template", "{"), "caption template"),
    ):
        refused = doctor(*arguments)
        assert refused.exit_code == 2, f"{arguments}: expected 2, got {refused.exit_code}"
        assert words in refused.stderr, f"{arguments}: expected {words!r} in {refused.stderr}"
        assert refused.stderr.count("\n") == 1, f"expected one line: {refused.stderr}"
