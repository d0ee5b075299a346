"""`doctor` on small sets: captions that names could give, tags, places with weights, masks."""

import json

import nasty
import pytest

from latentddpm.data.doctor.doctor import examine
from latentddpm.data.doctor.report import as_json, as_text
from latentddpm.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """fruit: names that say something; tags: lists, and masks of all but one image."""
    root = tmp_path_factory.mktemp("sets")
    (root / "fruit/10_sks pear").mkdir(parents=True)
    for k, name in enumerate(("red_apple_1", "green_pear_2", "IMG_3", "10_sks pear/blue_plum")):
        nasty.solid("RGB", (k, 0, 0), 8).save(root / f"fruit/{name}.png")
    (root / "tags").mkdir()
    for k in range(3):
        nasty.solid("RGB", (9, k, 0), 8).save(root / f"tags/{k}.png")
        (root / f"tags/{k}.txt").write_text(f"1girl, solo, number {k}")
    nasty.solid("L", 255, 8).save(root / "tags/0.mask.png")
    nasty.solid("L", 255, 8).resize((8, 4)).save(root / "tags/1.mask.png")
    return root


def found(report, key):
    finding = report.findings.get(key)
    return {} if finding is None else dict(finding.items)


def test_names_that_could_be_captions_are_shown(root):
    report = examine(root / "fruit", quiet=True)
    text, of = as_text(report), json.loads(as_json(report))["captions"]["without"]
    assert "4 images have none; data.captions=auto takes the names of their files" in text, text
    assert "red_apple_1.png: red apple" in text, "an example"
    assert "1 stay without" in text, "and those that say nothing"
    assert "folders with repeats, for data.repeats: 10_sks pear" in text, "kohya's folders"
    assert (of["images"], of["auto"]) == (4, "name"), "the same in JSON"


def test_lists_of_tags_are_counted(root):
    report = examine(root / "tags", mask=".mask.png", quiet=True)
    text = as_text(report)
    assert "3 captions are lists of 3 to 3 tags" in text, text
    assert "1girl 100 %" in text, "the most common"
    tags = json.loads(as_json(report))["captions"]["tags"]
    assert tags["different"] == 5, "1girl, solo and three numbers"


def test_sentences_are_no_lists(tmp_path):
    nasty.solid("RGB", nasty.RED, 8).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(
        "A long sentence of a cat, which sits on a mat near the door, and looks at the red ball."
    )
    report = examine(tmp_path, quiet=True)
    assert not report.tags.common, "commas alone make no tags"


def test_masks_that_are_missing_or_of_another_shape_are_named(root):
    report = examine(root / "tags", mask=".mask.png", quiet=True)
    assert report.images == 3, "masks are no images"
    assert list(found(report, "missing_mask")) == ["2.png"], "the image without one"
    assert "8×4 beside an image of 8×8" in found(report, "bad_mask")["1.png"], "and both shapes"
    plain = examine(root / "tags", quiet=True)
    assert plain.findings["second_picture"].count == 2, "unasked, they are named as masks"


def test_places_have_their_weights_and_shares(root):
    report = examine([f"{root}/fruit:3", f"{root}/tags"], mask=".mask.png", quiet=True)
    places = json.loads(as_json(report))["places"]
    assert places["fruit"] == {"images": 4, "weight": 3.0, "share": 0.8}, "12 of 15"
    assert "tags   3 images, weight 1: 20.0% of the examples" in as_text(report), as_text(report)
    assert "places" not in as_text(examine(root / "fruit", quiet=True)), "one place has no weight"


def test_masks_in_shards_are_for_the_training_to_check(root, tmp_path):
    from latentddpm.data.pack import pack

    pack(root / "fruit", tmp_path / "shards", quiet=True)
    with pytest.raises(UserError, match="doctor looks at the masks of folders"):
        examine(tmp_path / "shards", mask=".mask.png", quiet=True)
