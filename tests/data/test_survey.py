"""Nothing that looks like data is passed over in silence: it is read, or named with a remedy."""

import json
import os
import shutil
import unicodedata
from pathlib import Path

import nasty
import pytest

from latentddpm.data.captions import Captions
from latentddpm.data.catalog import catalog as catalogs
from latentddpm.data.catalog.catalog import MANIFEST
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.findings import BY_DETAIL, KINDS
from latentddpm.data.sources import kinds
from latentddpm.data.sources.open import open_source
from latentddpm.data.sources.survey import survey
from latentddpm.data.sources.walk import OWN_WORK
from latentddpm.errors import UserError

PIXEL = nasty.encoded(nasty.solid("RGB", nasty.RED, 4), "PNG")
OTHER = nasty.encoded(nasty.solid("RGB", nasty.BLUE, 4), "PNG")


def write(folder, files):
    """Files by name; bytes or text, and a row for each line where it is a list."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def read(folder, templates=()):
    """Captions of a place by the names of its images, through a catalog."""
    catalog = open_catalog(folder, Path(f"{folder}-catalog"), quiet=True)
    captions = Captions(catalog, templates)
    return {catalog.name(i): captions[i] for i in range(len(catalog))}


def named(folder, key):
    """Files that a survey names, with the details."""
    found = survey(str(folder)).get(key)
    return dict(found.items) if found else {}


# --- What is read --------------------------------------------------------------------------


def test_tables_of_subfolders_are_read_relative_to_them(tmp_path):
    write(
        tmp_path / "d",
        {
            "x.png": PIXEL,
            "train/1.png": PIXEL,
            "test/deep/2.png": PIXEL,
            "pictures/3.png": PIXEL,
            "metadata.csv": "file_name,text\nx.png,top\n",
            "train/metadata.jsonl": [{"file_name": "1.png", "text": "one"}],
            "test/METADATA.JSONL": [{"file_name": "deep/2.png", "text": "two"}],
            "tables/metadata.tsv": "file_name\ttext\n../pictures/3.png\tthree\n",
        },
    )
    wanted = {"x.png": "top", "train/1.png": "one", "test/deep/2.png": "two"}
    wanted["pictures/3.png"] = "three"
    assert read(tmp_path / "d") == {name: (text,) for name, text in sorted(wanted.items())}


def test_a_table_of_a_subfolder_may_not_leave_the_place(tmp_path):
    table = [{"file_name": "../../x.png", "text": "out"}]
    write(tmp_path / "d", {"1.png": PIXEL, "sub/metadata.jsonl": table})
    with pytest.raises(UserError, match=r"sub/metadata\.jsonl line 1: .*climbs out"):
        read(tmp_path / "d")


def test_a_change_of_a_table_in_a_subfolder_is_seen(tmp_path):
    files = {"t/1.png": PIXEL, "t/metadata.jsonl": [{"file_name": "1.png", "text": "old"}]}
    write(tmp_path / "d", files)
    assert read(tmp_path / "d") == {"t/1.png": ("old",)}
    write(tmp_path / "d", {"t/metadata.jsonl": [{"file_name": "1.png", "text": "new one"}]})
    assert read(tmp_path / "d") == {"t/1.png": ("new one",)}, "expected the table to be read again"


@pytest.mark.parametrize("suffix", [".txt", ".caption", ".TXT", ".Caption"])
def test_sidecars_have_several_suffixes(tmp_path, suffix):
    write(tmp_path / "d", {"a.png": PIXEL, f"a{suffix}": " red \n", "b.PNG": PIXEL})
    assert read(tmp_path / "d") == {"a.png": ("red",), "b.PNG": ()}
    assert not named(tmp_path / "d", "missing_image"), "expected it to be the caption of a.png"


def test_two_sidecars_are_alternatives(tmp_path):
    write(tmp_path / "d", {"a.png": PIXEL, "a.caption": "a boat", "a.txt": "boat, red"})
    assert read(tmp_path / "d") == {"a.png": ("boat, red", "a boat")}


def test_a_text_file_of_two_pictures_is_named(tmp_path):
    write(tmp_path / "d", {"1.png": PIXEL, "1.jpg": OTHER, "1.txt": "both"})
    assert read(tmp_path / "d") == {"1.jpg": ("both",), "1.png": ("both",)}
    assert named(tmp_path / "d", "shared_caption") == {"1.txt": "of 2 images"}


@pytest.mark.parametrize("suffix", sorted(kinds.PICTURES_READ))
def test_every_suffix_is_read(tmp_path, suffix):
    kind = kinds.PICTURES_READ[suffix]
    data = nasty.encoded(nasty.solid("RGB", nasty.RED, 16), kind)
    write(tmp_path / "d", {f"a{suffix}": data, f"b{suffix.upper()}": data})
    report = examine(tmp_path / "d", quiet=True)
    assert (report.images, report.formats[kind]) == (2, 2), f"{suffix}: {report.findings}"
    assert "wrong_extension" not in report.findings, f"{suffix} is a name of {kind}"


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("table", [True, False])
def test_unicode_forms_are_the_same_name(tmp_path, form, table):
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    image, text = (unicodedata.normalize(f, "é/ü") for f in (form, other))
    files = {f"{image}.png": PIXEL}
    if table:
        files["metadata.jsonl"] = [{"file_name": f"{text}.png", "text": "accent"}]
    else:
        base = os.path.dirname(image)
        files[f"{base}/{os.path.basename(text)}.txt"] = "accent"
    assert list(read(write(tmp_path / "d", files)).values()) == [("accent",)]


def test_a_name_that_fits_exactly_comes_first(tmp_path):
    names = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    rows = [{"file_name": name, "text": f"{len(name)} letters"} for name in names]
    write(tmp_path / "d", {**dict.fromkeys(names, PIXEL), "metadata.jsonl": rows})
    found = read(tmp_path / "d")
    assert found == {name: (f"{len(name)} letters",) for name in names}, f"{found}"


def test_backslashes_separate_folders(tmp_path):
    rows = [{"file_name": "sub\\deep\\1.png", "text": "one"}]
    write(tmp_path / "d", {"sub/deep/1.png": PIXEL, "metadata.jsonl": rows})
    assert read(tmp_path / "d") == {"sub/deep/1.png": ("one",)}


# --- Links ---------------------------------------------------------------------------------


def test_links_are_followed_once_and_loops_end(tmp_path):
    folder = write(tmp_path / "d", {"a/1.png": PIXEL, ".store/2.png": OTHER, ".more/3.png": PIXEL})
    (folder / "again").symlink_to("a")
    (folder / "a/loop").symlink_to("..")
    (folder / "copy.png").symlink_to("a/1.png")
    (folder / "2.png").symlink_to(".store/2.png")
    (folder / "2-again.png").symlink_to(".store/2.png")
    (folder / "more").symlink_to(".more")
    assert list(read(folder)) == ["2-again.png", "a/1.png", "more/3.png"], "each picture once"
    once = named(folder, "link_once")
    assert len(once) == 3, f"expected three of the links to be named: {once}"
    assert survey(str(folder))["link_once"].count == 4


def test_links_that_leave_are_named_with_a_way_that_reads_them(tmp_path):
    folder = write(tmp_path / "d", {"1.png": PIXEL})
    write(tmp_path / "real", {"2.png": PIXEL, "2.txt": "two"})
    (folder / "more").symlink_to("../real")
    (folder / "gone.png").symlink_to("nowhere")
    found = named(folder, "link_not_followed")
    assert set(found) == {"more", "gone.png"}, f"named {found}"
    assert f"cp -rL {folder} NEW" in found["more"], found
    (folder / "gone.png").unlink()
    assert os.system(f"cp -rL {folder} {tmp_path / 'new'}") == 0
    assert read(tmp_path / "new") == {"1.png": (), "more/2.png": ("two",)}


def hub(tmp_path):
    """A repository in a cache of the Hub: snapshots link to blobs without suffixes."""
    repository = tmp_path / "datasets--me--birds"
    table = [{"file_name": "1.png", "text": "one"}]
    blobs = {"aa": PIXEL, "bb": OTHER, "cc": json.dumps(table[0]), "dd": "two"}
    write(repository, {f"blobs/{name}": data for name, data in blobs.items()})
    snapshot = repository / "snapshots" / "0123"
    links = {"1.png": "aa", "metadata.jsonl": "cc", "more/2.png": "bb", "more/2.txt": "dd"}
    for name, blob in links.items():
        path = snapshot / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(os.path.relpath(repository / "blobs" / blob, path.parent))
    return repository, snapshot


def test_a_snapshot_of_the_hub_is_read(tmp_path):
    repository, snapshot = hub(tmp_path)
    wanted = {"1.png": ("one",), "more/2.png": ("two",)}
    assert read(snapshot) == wanted
    shutil.rmtree(f"{snapshot}-catalog")
    assert list(survey(str(snapshot))) == [], "expected nothing to be passed over"
    assert list(survey(str(repository))) == [], "blobs are read by their links"
    below = {f"snapshots/0123/{name}": texts for name, texts in wanted.items()}
    assert read(repository) == below
    data = tmp_path / "data"
    data.mkdir()
    (data / "birds").symlink_to(snapshot / "more")
    assert read(data) == {"birds/2.png": ("two",)}, "a link into the cache"


# --- What is named -------------------------------------------------------------------------

NAMED = {
    "picture_not_read": [f"a{suffix}" for suffix in kinds.PICTURES_NAMED],
    "caption_not_read": ["1.json", "1.cap", "1.tags", "1.xml", "1.md", "1.png.txt", "1.png.json"],
    "table_not_read": ["metadata.json", "meta_cap.json", "captions.jsonl", "x/labels.csv"],
    "archive_not_read": ["train.zip", "x/shard-0.tar", "all.tar.gz", "a.tfrecord"],
    "missing_image": ["captions/1.txt", "lost.caption"],
    "hidden": [".1.png", ".thumbs/2.png"],
}


@pytest.mark.parametrize(("key", "name"), [(k, name) for k in NAMED for name in NAMED[k]])
def test_what_looks_like_data_is_named(tmp_path, key, name):
    write(tmp_path / "d", {"1.png": PIXEL, name: "x"})
    found = survey(str(tmp_path / "d"))
    assert list(found) == [key], f"{name}: {found}"
    assert [one for one, _ in found[key].items] == [name], f"{found[key]}"
    assert found[key].items[0][1] or key == "hidden", f"{name}: expected a remedy"
    (line,) = found.lines()
    assert name in line, f"expected {name} in {line!r}"


@pytest.mark.parametrize("suffix", ["", ".part", ".jpg_large"])
def test_a_picture_is_told_by_its_bytes(tmp_path, suffix):
    write(tmp_path / "d", {"1.png": PIXEL, f"download{suffix}": PIXEL, "notes.bin": "no picture"})
    found = named(tmp_path / "d", "picture_not_read")
    assert list(found) == [f"download{suffix}"], f"named {found}"
    assert ".png" in found[f"download{suffix}"], f"expected a suffix that is read: {found}"


@pytest.mark.parametrize(
    "name", ["._1.png", "x/._2.png", "__MACOSX/._1.png", "Thumbs.db", "desktop.ini", "README.txt"]
)
def test_what_systems_leave_behind_is_no_data(tmp_path, name):
    write(tmp_path / "d", {"1.png": PIXEL, name: b"\0\1"})
    assert list(read(tmp_path / "d")) == ["1.png"]
    assert list(survey(str(tmp_path / "d"))) == [], f"{name} is not data of the user"


def test_each_kind_is_named_once_with_its_count(tmp_path, capsys):
    files = {f"{i}.heic": "x" for i in range(5)}
    write(tmp_path / "d", {"1.png": PIXEL, "a.jxl": "x", "b.jxl": "x", **files})
    open_catalog(tmp_path / "d", tmp_path / "catalog")
    lines = [line for line in capsys.readouterr().err.splitlines() if "not read" in line]
    assert len(lines) == 2, f"expected a line for each suffix: {lines}"
    assert "5 × " in lines[0], lines
    assert "pillow-heif" in lines[0], lines
    assert "2 × " in lines[1], lines
    text = [
        detail
        for _, detail in examine(tmp_path / "d", quiet=True, limit=1)
        .findings["picture_not_read"]
        .items
    ]
    assert len(text) == 2, f"expected doctor to give an example of each: {text}"


def test_a_place_without_a_picture_says_what_it_has_instead(tmp_path):
    write(tmp_path / "d", {"a.heic": "x", "train/s.tar": "x"})
    for look in (examine, lambda place: next(open_source(place).units())):
        with pytest.raises(UserError, match=r"no image in it .*a\.heic.*pillow-heif.*s\.tar"):
            look(tmp_path / "d")


def test_the_tables_of_kinds_are_disjoint():
    pictures = {*kinds.PICTURES_READ, *kinds.PICTURES_NAMED}
    assert len(pictures) == len(kinds.PICTURES_READ) + len(kinds.PICTURES_NAMED), "read and named"
    groups = [pictures, set(kinds.CAPTION_SUFFIXES), set(kinds.ARCHIVES_NAMED)]
    groups.append(set(kinds.TABLES_NAMED))
    for i, group in enumerate(groups):
        for other in groups[i + 1 :]:
            assert not group & other, f"{group & other} are of two kinds"
    for name in BY_DETAIL:
        assert name in KINDS, f"{name} has no place in the list of findings"


# --- Work of our own -----------------------------------------------------------------------


@pytest.mark.parametrize(("made", "marks"), OWN_WORK)
def test_our_own_folders_are_not_data(tmp_path, made, marks):
    files = {f"out/{mark}" + "/x" * (mark == "checkpoints"): "" for mark in marks}
    write(tmp_path / "d", {"1.png": PIXEL, "out/samples/step-1.png": OTHER, **files})
    assert list(read(tmp_path / "d")) == ["1.png"], f"pictures of {made} were read"
    assert named(tmp_path / "d", "own_work") == {"out/": made}


def test_a_catalog_in_the_data_is_not_data(tmp_path):
    write(tmp_path / "d", {"1.png": PIXEL})
    for _ in range(2):
        catalog = open_catalog(tmp_path / "d", tmp_path / "d/cat", quiet=True)
        assert len(catalog) == 1
    assert named(tmp_path / "d", "own_work") == {"cat/": "a catalog"}


def test_a_run_in_the_place_itself_is_left_out(tmp_path):
    run = {"config.yaml": "", "log.jsonl": "", "samples/s.png": OTHER, "catalog/x": ""}
    write(tmp_path / "d", {"1.png": PIXEL, "more/2.png": PIXEL, **run})
    assert list(read(tmp_path / "d")) == ["1.png", "more/2.png"]
    write(tmp_path / "run", {**run, "samples/t.png": PIXEL})
    assert list(read(tmp_path / "run/samples")) == ["s.png", "t.png"], "a place that is named"


def test_shards_beside_a_run_are_still_shards(tmp_path):
    import tarfile

    write(tmp_path / "d", {"1.png": PIXEL, "run/config.yaml": "", "run/log.jsonl": ""})
    write(tmp_path / "d", {"run/samples/s.png": OTHER})
    with tarfile.open(tmp_path / "d/a.tar", "w") as shard:
        shard.add(tmp_path / "d/1.png", "1.png")
    (tmp_path / "d/1.png").unlink()
    source = open_source(tmp_path / "d")
    assert source.kind == "tar", "a run among shards made a folder of images of them"
    assert list(source.survey()) == ["own_work"], f"{source.survey()}"


# --- Catalogs of before --------------------------------------------------------------------


def test_a_catalog_read_by_other_rules_is_read_again_without_decoding(tmp_path, monkeypatch):
    from latentddpm.data.catalog import reader

    rows = [{"file_name": "sub\\1.png", "text": "one"}]
    write(tmp_path / "d", {"sub/1.png": PIXEL, "metadata.jsonl": rows})
    for path in (tmp_path / "d/sub/1.png", tmp_path / "d/metadata.jsonl"):
        os.utime(path, (1e9, 1e9))
    first = open_catalog(tmp_path / "d", tmp_path / "c", quiet=True)
    path = first.folder / MANIFEST
    manifest = json.loads(path.read_text())
    assert manifest.pop("rules") == catalogs.RULES
    path.write_text(json.dumps(manifest))
    monkeypatch.setattr(reader, "examine", lambda entry: pytest.fail(f"{entry.name} was decoded"))
    again = open_catalog(tmp_path / "d", tmp_path / "c", quiet=True)
    assert again.folder != first.folder, "expected another version"
    assert again.manifest.rules == catalogs.RULES
    assert (again.digest, again.row_digest) == (first.digest, first.row_digest), "cannot resume"
