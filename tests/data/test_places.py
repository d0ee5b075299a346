"""Several places of images: how they are named, read as one source, and drawn by weight."""

import json
import tarfile
from collections import Counter
from fractions import Fraction

import nasty
import numpy as np
import pytest
import tensorflow as tf
from conftest import age

from latentddpm.config import DataConfig
from latentddpm.data.buckets import BucketSchedule
from latentddpm.data.captions import Captions
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.dataset import open_dataset
from latentddpm.data.pack import pack
from latentddpm.data.places.places import Place, as_places, shown
from latentddpm.data.places.weighted import (
    WeightedSelection,
    in_several,
    weight_lines,
    weights_fact,
)
from latentddpm.data.random import RandomStream
from latentddpm.errors import UserError

COLOURS = iter(range(1, 250))


def picture(path, colour=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    colour = (next(COLOURS), 0, 0) if colour is None else colour
    path.write_bytes(nasty.encoded(nasty.solid("RGB", colour, 4), "PNG"))


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """photos: 6 images with a table; drawn/images: 4 with text files; a tar with 3."""
    root = tmp_path_factory.mktemp("places")
    rows = []
    for k in range(6):
        picture(root / f"photos/{k}.png")
        rows.append({"file_name": f"{k}.png", "text": f"photo {k}", "style": "flat"})
    (root / "photos/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for k in range(4):
        picture(root / f"drawn/images/{k}.png")
        (root / f"drawn/images/{k}.txt").write_text(f"drawing {k}")
    with tarfile.open(root / "more.tar", "w") as tar:
        for k in range(3):
            picture(root / "scratch.png")
            tar.add(root / "scratch.png", f"{k}.png")
            (root / "scratch.txt").write_text(f"member {k}")
            tar.add(root / "scratch.txt", f"{k}.txt")
    for path in root.rglob("*"):
        age(path)
    return root


def named(places, *texts):
    return [f"{places}/{text}" for text in texts]


# --- Names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "path", "weight"),
    [
        ("photos:3", "photos", 3),
        ("photos:0.5", "photos", Fraction(1, 2)),
        ("photos", "photos", 1),
        ("gs://bucket/photos", "gs://bucket/photos", 1),
        ("gs://bucket/photos:2", "gs://bucket/photos", 2),
        ("gs://bucket:2", "gs://bucket", 2),
        ("hf://user/set@main", "hf://user/set@main", 1),
        ("hf://user/set:1.5", "hf://user/set", Fraction(3, 2)),
        ("hdfs://node:9000/photos", "hdfs://node:9000/photos", 1),
        ("hdfs://node:9000", "hdfs://node:9000", 1),
        ("hdfs://node:9000/photos:4", "hdfs://node:9000/photos", 4),
        ("a-{00..99}.tar", "a-{00..99}.tar", 1),
        ("a-{00..99}.tar:2", "a-{00..99}.tar", 2),
        ("C:\\photos", "C:\\photos", 1),
        ("C:\\photos:2", "C:\\photos", 2),
        ("photos:v2", "photos:v2", 1),
    ],
)
def test_only_a_number_behind_the_last_colon_is_a_weight(text, path, weight):
    first, _ = as_places([text, "others"])
    assert first == Place(path, Fraction(weight)), f"place and weight of {text}"


def test_a_folder_with_a_colon_in_its_name_is_a_place(tmp_path):
    (tmp_path / "take:2").mkdir()
    assert as_places(f"{tmp_path}/take:2") == [Place(f"{tmp_path}/take:2")], "what is there"


def test_python_takes_pairs_and_lists():
    expected = [Place("a", Fraction(3)), Place("b")]
    for data in (["a:3", "b"], [("a", 3), "b"], (("a", 3.0), ("b", 1)), [Place("a", 3), "b"]):
        assert [(p.path, p.weight) for p in as_places(data)] == expected, f"places of {data}"
    assert shown(["a:3", ("b", 0.5)]) == "a:3 + b:0.5", "as they were named"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["a:0", "b"], "the weight is 0, expected a number above 0"),
        (["a:-1", "b"], "the weight is -1"),
        (["a:nan", "b"], "the weight is nan"),
        ([("a", float("inf")), "b"], "the weight is inf"),
        (["a:3"], "only one; leave it out"),
        (["a", "./a:2"], "named twice"),
        ([], "no place"),
    ],
)
def test_weights_and_places_without_a_sense_are_refused(data, words):
    with pytest.raises(UserError, match=words):
        as_places(data)


# --- One source ----------------------------------------------------------------------------


def test_a_union_has_the_images_and_captions_of_all_places(places, tmp_path):
    data = named(places, "photos:3", "drawn/images", "more.tar")
    catalog = open_catalog(data, tmp_path / "catalog", quiet=True)
    captions = Captions(catalog, quiet=True)
    found = {catalog.name(i): captions[i] for i in range(len(catalog))}
    expected = {f"photos/{k}.png": (f"photo {k}",) for k in range(6)}
    expected |= {f"images/{k}.png": (f"drawing {k}",) for k in range(4)}
    expected |= {f"more.tar/{k}.png": (f"member {k}",) for k in range(3)}
    assert found == expected, "names and captions of all"
    for index in range(len(catalog)):
        label, _, name = catalog.name(index).partition("/")
        own = {"photos": "photos", "images": "drawn/images", "more.tar": "more.tar"}[label]
        assert own in catalog.where(index), "messages name the file itself"
        assert name in catalog.where(index), "messages name the file itself"
        assert catalog.image(index, 4).shape == (4, 4, 3), "it is read"
    assert {"text", "style"} <= set(catalog.columns()), "columns of tables and of text files"


def test_the_split_of_an_image_is_that_of_its_place_alone(places, tmp_path):
    config = DataConfig(validation_fraction=0.5)
    whole = open_dataset(named(places, "photos", "more.tar"), tmp_path / "a", config, quiet=True)
    for place, label in (("photos", "photos/"), ("more.tar", "more.tar/")):
        alone = open_dataset(f"{places}/{place}", tmp_path / place, config, quiet=True)
        rows = whole.validation.rows(np.arange(len(whole.validation)))
        there = {whole.catalog.name(int(row)) for row in rows}
        rows = alone.validation.rows(np.arange(len(alone.validation)))
        here = {label + alone.catalog.name(int(row)) for row in rows}
        assert here == {name for name in there if name.startswith(label)}, f"split of {place}"


def test_a_changed_table_gives_new_captions_to_its_own_place(places, tmp_path):
    root = tmp_path / "copy"
    for name in ("photos/0.png", "photos/1.png", "drawn/0.png"):
        picture(root / name)
    table = root / "photos/metadata.jsonl"
    table.write_text('{"file_name": "0.png", "text": "old"}')
    for path in root.rglob("*"):
        age(path, 100)
    data = [f"{root}/photos", f"{places}/more.tar"]

    def captions():
        found = Captions(open_catalog(data, tmp_path / "catalog", quiet=True), quiet=True)
        return {found.catalog.name(i): found[i] for i in range(len(found))}

    before = captions()
    table.write_text('{"file_name": "0.png", "text": "new"}')
    age(table, 50)
    after = captions()
    assert (before["photos/0.png"], after["photos/0.png"]) == (("old",), ("new",)), "the table's"
    assert {n: c for n, c in before.items() if n != "photos/0.png"} == {
        n: c for n, c in after.items() if n != "photos/0.png"
    }, "captions of the shard stay those of each member"


def test_places_of_one_name_get_labels_that_tell_them_apart(tmp_path):
    for place in ("a/images", "b/images"):
        picture(tmp_path / place / "x.png")
    data = [f"{tmp_path}/a/images", f"{tmp_path}/b/images"]
    catalog = open_catalog(data, tmp_path / "catalog", quiet=True)
    names = [catalog.name(i) for i in range(2)]
    assert names == ["a-images/x.png", "b-images/x.png"], "the folder above is named too"


def test_an_image_in_two_places_is_named(places, tmp_path):
    picture(tmp_path / "own/copy.png", (9, 9, 9))
    picture(tmp_path / "other/same.png", (9, 9, 9))
    dataset = open_dataset(
        [f"{tmp_path}/own:2", f"{tmp_path}/other"], tmp_path / "catalog", quiet=True
    )
    ((first, second),) = in_several(dataset.catalog)
    assert {first, second} == {f"{tmp_path}/own/copy.png", f"{tmp_path}/other/same.png"}, "both"
    lines = "\n".join(weight_lines(dataset.training, dataset.catalog))
    assert "own: 1 images, weight 2, 66.7% of the examples" in lines, "weight and share"
    assert "1 images lie in several places" in lines, "and the file that is in two"


def test_an_empty_place_is_named(places, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: no image"):
        open_catalog([f"{places}/photos", f"{tmp_path}/empty"], tmp_path / "c", quiet=True)


def test_places_are_packed_together(places, tmp_path):
    count, _ = pack(named(places, "photos", "more.tar"), tmp_path / "out", quiet=True)
    assert count == 9, "images of both"
    catalog = open_catalog(tmp_path / "out", tmp_path / "catalog", quiet=True)
    captions = Captions(catalog, quiet=True)
    found = {catalog.name(i): captions[i] for i in range(len(catalog))}
    assert found["photos/3.png"] == ("photo 3",), "name with its place, and caption"


# --- Weights -------------------------------------------------------------------------------


def groups_of(*sizes):
    """Selections of so many images each, one after the other."""
    ends = np.cumsum(sizes)
    total = int(ends[-1])

    def rule(start, stop):
        return lambda a, b: (np.arange(a, b) >= start) & (np.arange(a, b) < stop)

    starts = [0, *ends[:-1]]
    return [Selection(total, rule(*both)) for both in zip(starts, ends, strict=True)]


def draw(selection, start, stop, seed=0):
    stream = RandomStream(seed, "train")
    dataset = tf.data.Dataset.range(start, stop).map(lambda p: stream.draw(p, selection))
    return selection.rows(np.array([*dataset.as_numpy_iterator()]))


def test_images_are_drawn_by_weight_and_equally_within_a_place():
    selection = WeightedSelection(groups_of(4, 6), [3, 1])  # shares 12 and 6 of 18
    rows = draw(selection, 0, 180)
    counts = Counter(rows.tolist())
    assert [counts[row] for row in range(4)] == [30] * 4, "30 times each: weight 3"
    assert [counts[row] for row in range(4, 10)] == [10] * 6, "10 times each: weight 1"
    for start in range(0, 180, 18):
        first = int((rows[start : start + 18] < 4).sum())
        assert abs(first - 12) <= 1, f"12 of 18 at any time, got {first}"
    own = [row for row in rows.tolist() if row < 4]
    epochs = [own[k : k + 4] for k in range(0, len(own), 4)]
    assert all(sorted(epoch) == [0, 1, 2, 3] for epoch in epochs), "each epoch has all of them"
    assert len({tuple(epoch) for epoch in epochs}) > 5, "in a new order"


def test_a_draw_depends_on_the_position_alone():
    selection = WeightedSelection(groups_of(5, 3), [2, 5])
    whole = draw(selection, 0, 60)
    np.testing.assert_array_equal(draw(selection, 37, 60), whole[37:], "resumed at 37")
    assert (draw(selection, 0, 60, seed=1) != whole).any(), "another seed, another order"


def test_equal_weights_are_the_plain_sampling(places, tmp_path):
    data = named(places, "photos:2", "more.tar:2")
    dataset = open_dataset(data, tmp_path / "catalog", quiet=True)
    assert not isinstance(dataset.training, WeightedSelection), "one group, so nothing is weighed"
    stream, plain = RandomStream(0, "train"), Selection(9)
    one = [int(stream.draw(tf.constant(p, tf.int64), plain)) for p in range(20)]
    two = [int(stream.index(tf.constant(p, tf.int64), 9)) for p in range(20)]
    assert one == two, "bit for bit what it was without weights"


def test_weights_and_repeats_multiply(places, tmp_path):
    for k in range(2):
        picture(tmp_path / f"kohya/10_sks dog/{k}.png")
        picture(tmp_path / f"kohya/1_dog/{k}.png")
    data = [f"{tmp_path}/kohya:0.5", f"{places}/photos:2"]
    plain = open_dataset(
        data, tmp_path / "a", DataConfig(validation_fraction=0), quiet=True
    ).training
    assert plain.weights == [1, 4], "without data.repeats those of the places"
    config = DataConfig(repeats=True, validation_fraction=0)
    both = open_dataset(data, tmp_path / "a", config, quiet=True)
    assert both.training.sizes == [2, 6, 2], "1_dog, photos, 10_sks dog"
    assert both.training.weights == [1, 4, 10], "½ · 1, 2, ½ · 10"
    assert "weights of places" in weights_fact(both.catalog), "a resumed run has to agree"
    lines = "\n".join(weight_lines(both.training, both.catalog))
    assert "weight 0.5" in lines, "the weight of the place is said"


def test_parts_by_shape_keep_the_weights():
    selection = WeightedSelection(groups_of(4, 4), [3, 1])
    even = selection.parts(lambda start, stop: np.arange(start, stop) % 2, 2)
    assert [part.amount for part in even] == [8, 8], "2 · 3 + 2 · 1 each"
    rows = [set(part.rows(np.arange(len(part))).tolist()) for part in even]
    assert rows == [{0, 2, 4, 6}, {1, 3, 5, 7}], "images of each shape"
    none = selection.parts(lambda start, stop: np.where(np.arange(start, stop) < 4, 0, 1), 3)
    assert [len(part) for part in none] == [4, 4, 0], "a shape may have none"
    counts = Counter(draw(even[0], 0, 32).tolist())
    assert counts == {0: 12, 2: 12, 4: 4, 6: 4}, "weights inside a shape"


def test_the_turn_of_a_group_is_its_number_of_examples_before():
    selection = WeightedSelection(groups_of(3, 5, 2), [7, 1, 4])
    schedule, before = BucketSchedule([21, 5, 8]), [0, 0, 0]
    for position in range(100):
        group, own = selection.turn(position)
        assert group == schedule.bucket(position), "Sainte-Laguë's rule"
        assert own == before[group], "its own examples are 0, 1, 2, …"
        before[group] += 1
