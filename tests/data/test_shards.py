"""Shards are the folder they were packed from, and whatever is wrong with one is said."""

import io
import json
import shutil
import tarfile

import keras
import nasty
import numpy as np
import pytest

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import DataConfig
from latentddpm.data.captions import Captions, prepare_tokens
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import split_catalog
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.examples import diffusion_examples, image_examples
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.pack import KINDS, pack, parse_size
from latentddpm.data.random import RandomStream
from latentddpm.data.sources.folder import Folder
from latentddpm.data.sources.open import expand, open_source
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.latent_space import LatentSpace

KIND_NAMES = tuple(KINDS)
SHARD = 700  # bytes: few images a shard
TEMPLATES = ["{text}", "{text}, {style}"]
RED = nasty.encoded(nasty.solid("RGB", nasty.RED, 8), "PNG")
BLUE = nasty.encoded(nasty.solid("RGB", nasty.BLUE, 8), "PNG")


def catalog_of(place, folder):
    return open_catalog(place, folder, quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What folders hold: sidecars, a table, alternatives, dots, one stem twice, a broken file."""
    folder = tmp_path_factory.mktemp("set") / "photos"
    images = {
        "a.b.png": nasty.encoded(nasty.corner(), "PNG"),
        "same.png": RED,
        "same.JPG": nasty.encoded(nasty.solid("RGB", nasty.BLUE, 24), "JPEG"),
        "sub folder/ünï 🍎.webp": nasty.encoded(nasty.solid("RGB", nasty.RED, 12), "WEBP"),
        "sub folder/bare.png": nasty.encoded(nasty.solid("RGBA", (0, 0, 255, 90), 9), "PNG"),
        "z-broken.png": b"no picture",
        **{f"more/{i}.png": nasty.encoded(nasty.solid("L", 20 * i, 8), "PNG") for i in range(9)},
    }
    nasty.write(folder, {name: (data, None) for name, data in images.items()})
    (folder / "a.b.txt").write_text("a dotted corner\n")
    rows = [
        {"file_name": "same.png", "text": ["red", "scarlet"], "style": "flat", "year": 1999},
        {"file_name": "same.JPG", "text": "blue", "style": ["flat", "plain"]},
        {"file_name": "./sub folder/ünï 🍎.webp", "text": "apple", "half": "\ud83c"},
    ]
    table = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metadata.jsonl").write_text(table)
    return folder


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    """The folder of shards of each kind, several images in each."""
    here = tmp_path_factory.mktemp("packed")
    for kind in KIND_NAMES:
        count, shards = pack(folder, here / kind, kind=kind, shard_size=SHARD, quiet=True)
        assert count == 15, f"packed {count} of 15 files as {kind}"
        assert shards > 2, f"{shards} shards of {kind}: the test needs several"
    return here


@pytest.fixture(scope="module")
def reference(folder, tmp_path_factory):
    """The catalog of the folder, and its latents cache by a small autoencoder."""
    keras.utils.set_random_seed(0)
    sizes = {"channels": 4, "channel_multipliers": (1, 1), "num_res_blocks": 1, "norm_groups": 2}
    model, here = Autoencoder(**sizes), tmp_path_factory.mktemp("reference")
    catalog = catalog_of(folder, here / "catalog")
    return catalog, latents(catalog, here / "latents", lambda: model), here / "latents"


def latents(catalog, cache, load):
    settings = {"vae_digest": "a", "resolution": 8, "mirrored": True, "quiet": True}
    return prepare_latents(catalog, cache, load_autoencoder=load, **settings)


def never():
    raise AssertionError("a packed set was encoded although its folder's latents are there")


# --- The same set --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_packed_set_is_the_folder(kind, packed, reference, tmp_path):
    expected, catalog = reference[0], catalog_of(packed / kind, tmp_path / "catalog")
    assert catalog.digest == expected.digest, "other images, or another order"
    for column in ("width", "height", "transparent", "split_hash"):
        found = catalog.images[column]
        np.testing.assert_array_equal(found, expected.images[column], err_msg=column)
    ours, theirs = Captions(catalog, TEMPLATES), Captions(expected, TEMPLATES)
    for i in range(len(expected)):
        assert catalog.name(i) == expected.name(i), f"image {i} is {catalog.name(i)}"
        assert catalog.read(i) == expected.read(i), f"{catalog.name(i)}: other bytes"
        assert ours[i] == theirs[i], f"{catalog.name(i)}: captions {ours[i]}, not {theirs[i]}"
        for name, value in expected.row(i).columns.items():
            if name != "file_name":
                kept = catalog.row(i).columns.get(name)
                assert kept == value, f"{catalog.name(i)}: column {name} is {kept!r}"
    names = [name.rpartition(": ")[2] for name, _ in catalog.unreadable()]
    assert names == ["z-broken.png"], f"unreadable are {names}"


@pytest.mark.parametrize("kind", KIND_NAMES)
def test_a_packed_set_trains_to_the_same_examples(kind, packed, reference, tmp_path):
    catalog = catalog_of(packed / kind, tmp_path / "catalog")
    expected, cache, place = reference

    import tensorflow as tf

    def streams(catalog, cache):
        training, validation = split_catalog(catalog, DataConfig(validation_fraction=0.3))
        assert len(validation), "the test needs validation images"
        settings = {
            "batch_size": 5,
            "positions": tf.data.Dataset.range(30),
            "stream": RandomStream(1, "train"),
        }
        captions = Captions(catalog, TEMPLATES)
        yield image_examples(
            catalog, training, resolution=8, latent_shape=(4, 4, 4), flip=True, **settings
        )
        yield diffusion_examples(
            cache,
            training,
            NoiseSchedule(),
            LatentSpace(0.5),
            tokens=prepare_tokens(captions, CLIPTokenizer(12), quiet=True),
            condition_dropout=0.2,
            **settings,
        ).map(lambda inputs, target: {**inputs, "target": target})

    own = latents(catalog, place, never)  # the folder's cache is a hit
    for found, wanted in zip(streams(catalog, own), streams(expected, cache), strict=True):
        for one, other in zip(found, wanted, strict=True):
            for name in other:
                np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_packing_shards_again_changes_nothing(packed, reference, tmp_path):
    pack(packed / "tar", tmp_path / "again", kind="tfrecord", quiet=True)
    catalog = catalog_of(tmp_path / "again", tmp_path / "catalog")
    assert catalog.digest == reference[0].digest, "other images after two rounds of packing"
    assert Captions(catalog)[0] == Captions(reference[0])[0], "other captions"


@pytest.mark.parametrize("kind", ["tar", "tfrecord"])
def test_places_with_a_scheme_are_read(kind, folder, packed, reference, tmp_path):
    """Through TensorFlow's file systems: its own in-memory one stands for gs:// and hdfs://."""
    import tensorflow as tf

    def upload(local, remote):
        for path in sorted(local.rglob("*")):
            if path.is_file():
                name = f"{remote}/{path.relative_to(local).as_posix()}"
                tf.io.gfile.makedirs(name.rpartition("/")[0])
                with tf.io.gfile.GFile(name, "wb") as stream:
                    stream.write(path.read_bytes())

    for local, remote in ((folder, f"ram://{kind}/photos"), (packed / kind, f"ram://{kind}/set")):
        upload(local, remote)
        catalog = catalog_of(remote, tmp_path / local.name)
        assert catalog.digest == reference[0].digest, f"{remote}: other images"
        assert catalog.read(3) == reference[0].read(3), f"{remote}: other bytes"
        found, expected = Captions(catalog, TEMPLATES), Captions(reference[0], TEMPLATES)
        assert found[2] == expected[2], f"{remote}: captions {found[2]}"


def test_a_filesystem_that_nobody_knows_is_said():
    with pytest.raises(UserError, match=r"foo://bar/x: TensorFlow reads no foo:// by itself"):
        open_source("foo://bar/x")
    with pytest.raises(UserError, match=r"ram://nothing/here: no such folder"):
        open_source("ram://nothing/here")


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")
def test_webdataset_reads_what_we_write_and_we_read_what_it_writes(packed, reference, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    shards = sorted(map(str, (packed / "tar").glob("*.tar")))
    samples = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert len(samples) == 15, f"webdataset finds {len(samples)} samples"
    by_name = {json.loads(sample["json"])["file_name"]: sample for sample in samples}
    catalog = reference[0]
    for i in range(len(catalog)):
        sample, name = by_name[catalog.name(i)], catalog.name(i)
        assert sample[name.rpartition(".")[2].lower()] == catalog.read(i), f"{name}: other bytes"
    assert by_name["a.b.png"]["txt"] == b"a dotted corner", "the caption of one alternative"
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as sink:
        for i, data in enumerate((RED, BLUE)):
            sink.write({"__key__": f"x/{i}", "png": data, "txt": f"picture {i}", "cls": i})
    theirs = catalog_of(tmp_path / "theirs.tar", tmp_path / "catalog")
    assert [theirs.read(i) for i in range(2)] == [RED, BLUE], "other bytes"
    assert [Captions(theirs)[i] for i in range(2)] == [("picture 0",), ("picture 1",)]
    assert theirs.name(1) == "x/1.png", f"named {theirs.name(1)}"


# --- Tars of others ------------------------------------------------------------------------


def tar(path, members, **options):
    """A tar of `(name or TarInfo, bytes)`."""
    with tarfile.open(path, options.pop("mode", "w"), **options) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def test_members_that_are_no_sample_are_passed_over(tmp_path):
    link, folder = tarfile.TarInfo("2.png"), tarfile.TarInfo("deep")
    link.type, link.linkname, folder.type = tarfile.SYMTYPE, "/etc/passwd", tarfile.DIRTYPE
    long = "deep/" + "x" * 150 + ".png"
    path = tar(
        tmp_path / "a.tar",
        [
            (folder, b""),
            ("./deep/0.txt", "\ufefffirst".encode()),
            ("./deep/0.png", RED),
            ("deep/0.cls", b"3"),
            ("deep/0.npy", b"\x93NUMPY"),
            ("._hidden.png", RED),
            ("deep/.hidden.png", RED),
            (link, b""),
            ("1.json", b'{"text": ["p", "q"], "file_name": "/somewhere/else.png"}'),
            ("1.PNG", BLUE),
            (long, RED),
        ],
    )
    catalog = catalog_of(path, tmp_path / "catalog")
    names = [catalog.name(i) for i in range(len(catalog))]
    assert names == ["deep/0.png", "1.PNG", long], f"images {names}"
    captions = Captions(catalog)
    assert [captions[i] for i in range(3)] == [("first",), ("p", "q"), ()], "captions"
    assert catalog.where(0) == f"{path}: deep/0.png", f"called {catalog.where(0)}"
    assert catalog.read(1) == BLUE, "other bytes"


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("0.txt", b"caf\xe9", r"a\.tar: 0\.txt: not UTF-8 \(byte 0xe9 at position 3\)"),
        ("0.json", b"{", r"a\.tar: 0\.json: not valid JSON"),
        ("0.json", b"[" * 100_000, "not valid JSON"),
        ("0.json", b"[1]", "expected an object"),
        ("0.json", b'{"text": {"en": "x"}}', "'text' is .*expected a text"),
        ("0.json", b'{"text": "\\ud83c"}', "half a character"),
    ],
)
def test_wrong_captions_are_named_when_they_are_used(tmp_path, name, data, words):
    path = tar(tmp_path / "a.tar", [("0.png", RED), (name, data), ("1.png", BLUE)])
    catalog = catalog_of(path, tmp_path / "catalog")
    assert len(catalog) == 2, "images with wrong captions are images"
    captions = Captions(catalog, ["{text}"]) if "text" in catalog.columns() else None
    with pytest.raises(UserError, match=words):
        captions[0]


def test_a_text_and_a_column_that_differ_are_said(tmp_path):
    members = [("0.png", RED), ("0.txt", b"red"), ("0.json", b'{"text": "green"}')]
    captions = Captions(catalog_of(tar(tmp_path / "a.tar", members), tmp_path / "catalog"))
    with pytest.raises(UserError, match=r"0\.png.* says 'red', .* says 'green'"):
        captions[0]


@pytest.mark.parametrize("name", ["../up.png", "a/../../up.png", "/etc/up.png", "C:\\up.png"])
def test_a_member_may_not_climb_out(tmp_path, name):
    path = tar(tmp_path / "a.tar", [("0.png", RED), (name, BLUE)])
    with pytest.raises(UserError, match=r"a\.tar: a member: .*(climbs out|absolute)"):
        catalog_of(path, tmp_path / "catalog")


SAMPLES = {
    "sorted by name": (
        ["0.jpg", "0.meta.json", "0.seg.png", "0.txt", "1.jpg", "1.seg.png", "1.txt"],
        {"0.jpg": ("0.txt",), "1.jpg": ("1.txt",)},
        {"other_member": 3},
    ),
    "the image last": (["0.cls", "0.txt", "0.webp"], {"0.webp": ("0.txt",)}, {"other_member": 1}),
    "a dotted folder": (["v1.0/0.png", "v1.0/0.txt"], {"v1.0/0.png": ("v1.0/0.txt",)}, {}),
    "one picture with two suffixes": (
        ["0.image.png", "0.txt", "1.image.png", "1.txt"],
        {"0.image.png": ("0.txt",), "1.image.png": ("1.txt",)},
        {},
    ),
    "dotted names": (
        ["v1.5.png", "v1.5.txt", "v1.6.png", "v1.6.txt"],
        {"v1.5.png": ("v1.5.txt",), "v1.6.png": ("v1.6.txt",)},
        {},
    ),
    "several pictures and one text": (
        ["0.a.png", "0.b.png", "0.txt", "1.png"],
        {"1.png": ()},
        {"picture_not_read": 2, "other_member": 1},
    ),
    "other suffixes": (
        ["0.PNG", "0.caption", "1.heic", "1.txt", "2.jfif", "2.TXT"],
        {"0.PNG": ("0.caption",), "2.jfif": ("2.TXT",)},
        {"picture_not_read": 1, "missing_image": 1},
    ),
    "a table": (["0.png", "metadata.jsonl"], {"0.png": ()}, {"table_not_read": 1}),
    "texts apart": (
        ["images/0.png", "texts/0.txt"],
        {"images/0.png": ()},
        {"missing_image": 1},
    ),
}


@pytest.mark.parametrize("case", SAMPLES)
def test_the_key_of_a_sample_ends_at_the_first_dot(tmp_path, case):
    """As in WebDataset; every member is an image, its caption, or counted."""
    names, wanted, counts = SAMPLES[case]
    data = {".txt": None, ".caption": None, ".json": b"{}"}
    members = []
    for name in names:
        suffix = f".{name.rpartition('.')[2].lower()}"
        members.append((name, data.get(suffix, RED) or name.encode()))
    tar(tmp_path / "a.tar", members)
    for again in range(2):
        catalog = catalog_of(tmp_path / "a.tar", tmp_path / "catalog")
        captions = Captions(catalog)
        found = {catalog.name(i): captions[i] for i in range(len(catalog))}
        assert found == wanted, f"{case}: {found}"
        passed = {key: one.count for key, one in catalog.passed_over().items()}
        assert passed == counts, f"{case}, opened {again + 1} times: {passed}"
    report = examine(tmp_path / "a.tar", quiet=True)
    counted = {key: report.findings[key].count for key in counts}
    assert counted == counts, f"{case}: doctor says {counted}"


def test_links_in_a_tar_are_named(tmp_path):
    (tmp_path / "0.png").write_bytes(RED)
    (tmp_path / "1.png").symlink_to("0.png")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("0.png", "1.png"):
            archive.add(tmp_path / name, name)
    catalog = catalog_of(tmp_path / "a.tar", tmp_path / "catalog")
    assert len(catalog) == 1
    name, detail = catalog.passed_over()["link_not_followed"].items[0]
    assert name == "1.png", f"{name} is named"
    assert "--dereference" in detail, f"expected the way to pack it: {detail}"


def test_a_changed_shard_keeps_the_findings_of_the_others(tmp_path):
    import os

    for name in ("a", "b"):
        (tmp_path / "set").mkdir(exist_ok=True)
        path = tar(tmp_path / f"set/{name}.tar", [("0.png", RED), ("0.cls", b"3")])
        os.utime(path, (1e9, 1e9))
    catalog_of(tmp_path / "set", tmp_path / "c")
    tar(tmp_path / "set/b.tar", [("0.png", BLUE), ("1.cls", b"3")])
    passed = catalog_of(tmp_path / "set", tmp_path / "c").passed_over()
    assert passed["other_member"].count == 2, f"{passed}"


def damaged(data, kind):
    raw = bytearray(data)
    if kind == "header":
        raw[1024 + 100] ^= 0xFF  # of the second image's header
        return bytes(raw)
    return {"cut": data[: len(data) // 4], "junk": b"junk" * 999, "empty": b""}[kind]


@pytest.mark.parametrize("kind", ["header", "cut", "junk", "empty"])
def test_a_damaged_tar_is_said(tmp_path, kind):
    whole = tar(tmp_path / "whole.tar", [(f"{i}.png", RED + bytes(400)) for i in range(3)])
    (tmp_path / "a.tar").write_bytes(damaged(whole.read_bytes(), kind))
    with pytest.raises(UserError, match=r"a\.tar: (damaged at byte|not a whole|no image)"):
        catalog_of(tmp_path / "a.tar", tmp_path / "catalog")


def test_a_compressed_tar_is_said(tmp_path):
    path = tar(tmp_path / "a.tar", [("0.png", RED)], mode="w:gz")
    with pytest.raises(UserError, match="not a whole, uncompressed tar"):
        catalog_of(path, tmp_path / "catalog")


def test_a_shard_that_changed_under_the_catalog_is_an_error_not_another_image(tmp_path):
    path = tar(tmp_path / "a.tar", [("0.png", RED), ("1.png", BLUE)])
    catalog = catalog_of(path, tmp_path / "catalog")
    with open(path, "r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(OSError, match="ends before byte"):
        catalog.read(1)


# --- Records of others ---------------------------------------------------------------------


def record(**features):
    import tensorflow as tf

    names = {"image": "image/encoded", "name": "image/filename"}
    made = {
        names.get(key, key): tf.train.Feature(bytes_list=tf.train.BytesList(value=value))
        for key, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


def records(path, *data):
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for one in data:
            writer.write(one)
    return path


def test_a_record_needs_an_image_alone(tmp_path):
    path = records(
        tmp_path / "a.tfrecord",
        record(image=[RED]),
        record(image=[BLUE], text=[b"one", b"two"]),
        record(image=[RED], name=[b"own.png"], text=[b"caf\xe9"]),
    )
    catalog = catalog_of(path, tmp_path / "catalog")
    names = [catalog.name(i) for i in range(3)]
    assert names == ["0", "1", "own.png"], f"names {names}"
    assert [catalog.read(i) for i in range(3)] == [RED, BLUE, RED], "other bytes"
    captions = Captions(catalog)
    assert captions[1] == ("one", "two"), f"captions {captions[1]}"
    with pytest.raises(UserError, match="record 2: feature 'text' is not UTF-8"):
        captions[2]


def test_captions_of_records_have_several_names_and_others_are_counted(tmp_path):
    path = records(
        tmp_path / "a.tfrecord",
        record(image=[RED], **{"image/caption": [b"one"], "image/format": [b"png"]}),
        record(image=[BLUE], caption=[b"two", b"nan"]),
    )
    catalog = catalog_of(path, tmp_path / "catalog")
    assert list(Captions(catalog)) == [("one",), ("two",)]
    assert catalog.passed_over()["other_member"].items == [("0", "feature 'image/format'")]


def test_wrong_records_are_said(tmp_path):
    cases = {
        "other": (record(picture=[RED]), "record 0: no feature 'image/encoded'.* picture"),
        "bytes": (b"\xff" * 40, "record 0: not a tf.train.Example"),
    }
    for name, (data, words) in cases.items():
        path = records(tmp_path / f"{name}.tfrecord", data)
        with pytest.raises(UserError, match=words):
            catalog_of(path, tmp_path / f"catalog-{name}")


@pytest.mark.parametrize("kind", ["flip", "cut", "junk"])
def test_a_damaged_record_file_is_said(tmp_path, kind):
    raw = bytearray(records(tmp_path / "a.tfrecord", record(image=[RED])).read_bytes())
    raw[len(raw) // 2] ^= 1
    data = {"flip": bytes(raw), "cut": bytes(raw[:-9]), "junk": b"junk" * 99}[kind]
    (tmp_path / "a.tfrecord").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tfrecord: not a whole, uncompressed TFRecord"):
        catalog_of(tmp_path / "a.tfrecord", tmp_path / "catalog")


def test_a_damaged_array_record_is_said(tmp_path, packed):
    path = tmp_path / "a.array_record"
    raw = next((packed / "array-record").iterdir()).read_bytes()
    for data in (b"junk" * 99, raw[: len(raw) // 2], b""):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"a\.array_record: not a whole ArrayRecord"):
            catalog_of(path, tmp_path / "catalog")


# --- Which shards --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("a.tar", ["a.tar"]),
        ("s-{08..11}.tar", ["s-08.tar", "s-09.tar", "s-10.tar", "s-11.tar"]),
        ("s-{9..10}.tar", ["s-9.tar", "s-10.tar"]),
        ("{0..1}/{00..01}.tar", ["0/00.tar", "0/01.tar", "1/00.tar", "1/01.tar"]),
    ],
)
def test_patterns_expand(pattern, expected):
    assert expand(pattern) == expected, f"{pattern} became {expand(pattern)}"


@pytest.mark.parametrize("pattern", ["a-{3..1}.tar", "a-{x..y}.tar", "a-{1,2}.tar", "a-}.tar"])
def test_wrong_patterns_are_said(pattern):
    with pytest.raises(UserError, match="range"):
        expand(pattern)


def test_a_pattern_names_its_shards_and_a_missing_one_is_said(packed, reference, tmp_path):
    folder = packed / "tar"
    last = len(list(folder.iterdir())) - 1
    pattern = f"{folder}/shard-{{000000..{last:06d}}}.tar"
    catalog = catalog_of(pattern, tmp_path / "catalog")
    assert catalog.digest == reference[0].digest, "other images than the folder of shards"
    one = catalog_of(folder / "shard-000001.tar", tmp_path / "one")
    assert 0 < len(one) < len(catalog), f"{len(one)} images in one shard"
    with pytest.raises(UserError, match=rf"shard-{last + 1:06d}\.tar: no such file"):
        open_source(f"{folder}/shard-{{{last:06d}..{last + 2:06d}}}.tar")


def test_a_folder_of_images_with_a_tar_stays_a_folder(folder, packed, tmp_path):
    shutil.copytree(folder, tmp_path / "mixed")
    shutil.copy(next((packed / "tar").iterdir()), tmp_path / "mixed" / "backup.tar")
    source = open_source(tmp_path / "mixed")
    assert source.kind == "folder", "shards took a folder over"
    name, detail = source.survey()["archive_not_read"].items[0]
    assert name == "backup.tar", f"{name} is named, expected backup.tar"
    assert "--data" in detail, f"expected the way to read it: {detail}"


def test_shards_of_several_kinds_are_refused(packed, tmp_path):
    for kind in ("tar", "tfrecord"):
        shutil.copy(next((packed / kind).iterdir()), tmp_path)
    with pytest.raises(UserError, match="several kinds"):
        open_source(tmp_path)


def test_only_a_changed_shard_is_read_again(packed, tmp_path, monkeypatch):
    import os

    from latentddpm.data.catalog import reader

    shutil.copytree(packed / "tar", tmp_path / "tar")
    for path in (tmp_path / "tar").iterdir():
        os.utime(path, (1e9, 1e9))
    whole, decoded = catalog_of(tmp_path / "tar", tmp_path / "c"), []
    examine = reader.examine
    monkeypatch.setattr(reader, "examine", lambda e: decoded.append(e.where) or examine(e))
    catalog_of(tmp_path / "tar", tmp_path / "c")
    assert decoded == [], "decoded again"
    os.utime(tmp_path / "tar" / "shard-000001.tar", (2e9 - 1e9 + 5, 2e9 - 1e9 + 5))
    again = catalog_of(tmp_path / "tar", tmp_path / "c")
    assert decoded, "the changed shard was not read"
    assert all("shard-000001.tar" in where for where in decoded), f"decoded {decoded}"
    assert again.digest == whole.digest, "other images"
    assert [again.read(i) for i in range(len(again))] == [whole.read(i) for i in range(len(whole))]


# --- Packing -------------------------------------------------------------------------------


def test_sizes():
    cases = {"512MB": 512 * 10**6, "1.5 gb": 15 * 10**8, "1000": 1000, "20k": 20_000}
    for text, expected in cases.items():
        assert parse_size(text) == expected, f"{text!r} is {parse_size(text)}"
    for text in ("", "big", "-1MB", "0", "1XB", "nan"):
        with pytest.raises(UserError, match="--shard-size"):
            parse_size(text)


def test_packing_refuses_what_would_be_lost(folder, tmp_path):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine.txt").touch()
    with pytest.raises(UserError, match="exists already; name a new folder"):
        pack(folder, tmp_path / "taken")
    with pytest.raises(UserError, match=r"format: 'zip' is not known.*'tar'"):
        pack(folder, tmp_path / "new", kind="zip")
    shutil.copytree(folder, tmp_path / "photos")
    (tmp_path / "photos" / "same.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"same\.txt: not UTF-8"):
        pack(tmp_path / "photos", tmp_path / "new", quiet=True)
    (tmp_path / "photos" / "same.txt").unlink()
    (tmp_path / "photos" / "metadata.jsonl").write_text('{"file_name": "gone.png"}\n')
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["photos", "taken"], f"something half packed remains: {left}"
    with pytest.warns(UserWarning, match=r"1 of 1 rows .* are not packed \(gone\.png\)"):
        pack(tmp_path / "photos", tmp_path / "new", quiet=True)


def test_packing_takes_a_table_of_any_length(folder, packed, tmp_path, monkeypatch):
    """It is the way out for a table that is too long to train from."""
    monkeypatch.setattr(Folder.open_metadata, "__defaults__", (1,))
    assert "pack" in Folder(str(folder)).open_metadata().problem, "a table that is too long"
    pack(folder, tmp_path / "long", shard_size=SHARD, quiet=True)
    names = [path.name for path in sorted((packed / "tar").iterdir())]
    found = [path.name for path in sorted((tmp_path / "long").iterdir())]
    assert found == names, f"packed {found}, expected {names}"


def test_packing_is_the_same_bytes_each_time(folder, packed, tmp_path):
    pack(folder, tmp_path / "again", shard_size=SHARD, quiet=True)
    for path in sorted((packed / "tar").iterdir()):
        same = path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()
        assert same, f"{path.name} differs"
