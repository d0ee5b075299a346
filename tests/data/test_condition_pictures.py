"""Pictures of conditions: second files are found and looked at; batches are what they say, the
same for the same bits, and encoded once."""

import json
import tarfile

import numpy as np
import pytest
from conftest import age
from PIL import Image
from tiny import tiny_autoencoder

from latentddpm.conditions.edges import edges_of
from latentddpm.conditions.kinds import KINDS
from latentddpm.conditions.picture import Stage
from latentddpm.config.conditions import ConditionConfig
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.conditions import pairs as pairs_module
from latentddpm.data.conditions.catalogs import HoleCatalog
from latentddpm.data.conditions.pairs import examine_pairs
from latentddpm.data.conditions.pictures import Frame, plan_maps
from latentddpm.data.images import read_image
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.sources.walk import NO_SECOND, Second
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.utils.images.maps import depth_to_space
from latentddpm.utils.images.pixel_format import RGB

SIZE, COUNT = 16, 4
SUFFIX = ".condition.png"


def save(path, seed, size=(SIZE, SIZE)):
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(
        0, 256, (size[1] // 4, size[0] // 4, 3), np.uint8
    )
    pixels = blocks.repeat(4, axis=0).repeat(4, axis=1)
    Image.fromarray(pixels).save(path)
    age(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    """Four images with second pictures beside them."""
    for k in range(COUNT):
        save(tmp_path / "data" / f"{k}.png", k)
        save(tmp_path / "data" / f"{k}{SUFFIX}", 100 + k)
    return tmp_path / "data"


def catalog_of(folder, second=Second((SUFFIX,))):  # noqa: B008
    return open_catalog(folder, folder.with_name("catalog"), quiet=True, second=second)


def read(path):
    return read_image(path, SIZE).astype("float32") / 127.5 - 1


def maps_of(kind, folder, factor=1, encode=None, mirrored=True, null=True, **settings):
    """Maps of a condition for the images of a folder."""
    config = ConditionConfig(kind=kind, **settings)
    stage = Stage(factor, 3, 4 if encode else 3, encode is not None)
    condition = KINDS[kind].of_stage("c", config, stage, null)
    frame = Frame((SIZE, SIZE), RGB, stage, mirrored, LatentSpace(0.5), encode)
    kept = folder.with_name("kept")
    second = Second((SUFFIX,), (config.column,))
    catalog = catalog_of(folder, second)
    return plan_maps(condition, config, catalog, kept).open(frame, kept)


def batch(maps, images, mirrored=None, dropped=None, bits=None):
    number = len(images)
    none = np.zeros(number, bool)
    bits = np.arange(number) if bits is None else np.asarray(bits)
    mirrored = none if mirrored is None else np.asarray(mirrored)
    dropped = none if dropped is None else np.asarray(dropped)
    return maps.batch(np.asarray(images), mirrored, dropped, bits)


# --- Finding pairs -------------------------------------------------------------------------------


def test_second_pictures_are_no_images_where_a_condition_reads_them(folder):
    assert len(catalog_of(folder)) == COUNT
    alone = catalog_of(folder, NO_SECOND)
    assert len(alone) == 2 * COUNT, "without the condition every file is an image, as before"
    findings = alone.passed_over()
    assert findings["second_picture"].count == COUNT
    assert "second_picture" not in catalog_of(folder).passed_over()


def test_missing_pairs_are_counted_and_the_first_is_named(folder):
    for k in (1, 3):
        (folder / f"{k}{SUFFIX}").unlink()
    with pytest.raises(
        UserError, match=r"conditions\.c: 2 of 4 images have no picture, such as "
    ) as (error):
        maps_of("picture", folder)
    assert f"1{SUFFIX}: no such file" in str(error.value)


def test_broken_pairs_and_other_shapes_are_named(folder):
    save(folder / f"2{SUFFIX}", 7, (32, SIZE))
    match = (
        rf"1 of 4 pictures have another shape .*2{SUFFIX}: 32×16 pixels, beside .*2\.png of 16×16"
    )
    with pytest.raises(UserError, match=match):
        maps_of("picture", folder)
    (folder / f"2{SUFFIX}").write_bytes(b"no picture")
    with pytest.raises(UserError, match=rf"1 of 4 images have no picture.*2{SUFFIX}"):
        maps_of("picture", folder)


def test_a_pair_of_another_size_is_scaled_as_its_image(folder):
    for k in range(COUNT):
        save(folder / f"{k}{SUFFIX}", k, (2 * SIZE, 2 * SIZE))
    (found,) = batch(maps_of("picture", folder), [2])
    np.testing.assert_array_equal(found[0], read(folder / f"2{SUFFIX}"))


def test_pairs_are_found_by_a_column_relative_to_the_table(tmp_path):
    data, lines = tmp_path / "data", []
    for k in range(COUNT):
        save(data / "part" / f"{k}.png", k)
        save(data / "part" / "depth" / f"d{k}.png", 100 + k)
        lines.append(json.dumps({"file_name": f"{k}.png", "depth": f"depth/d{k}.png"}))
    (data / "part" / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    maps = maps_of("picture", data, column="depth")
    assert maps.pictures.count == COUNT, "pictures that the column names are no images"
    found = batch(maps, range(COUNT))[0]
    for k in range(COUNT):
        np.testing.assert_array_equal(found[k], read(data / "part" / "depth" / f"d{k}.png"))
    with pytest.raises(UserError, match=r"line 1: no column 'dept', which names the picture"):
        maps_of("picture", data, column="dept")


@pytest.mark.parametrize("by_column", [False, True])
def test_pairs_in_tar_shards(folder, by_column):
    shards = folder.with_name("shards")
    shards.mkdir()
    for shard in range(2):
        with tarfile.open(shards / f"{shard}.tar", "w") as archive:
            for k in (2 * shard, 2 * shard + 1):
                archive.add(folder / f"{k}.png", f"{k}.png")
                archive.add(folder / f"{k}{SUFFIX}", f"{k}{SUFFIX}")
                text = shards / "one.json"
                text.write_text(json.dumps({"file_name": f"x{k}.png", "lines": f"{k}{SUFFIX}"}))
                archive.add(text, f"{k}.json")
                text.unlink()
    catalog = open_catalog(shards, shards.with_name("tars"), quiet=True)
    assert len(catalog) == COUNT
    config = ConditionConfig(kind="picture", **({"column": "lines"} if by_column else {}))
    found = examine_pairs(catalog, config)
    assert not found.missing
    assert not found.misfits
    read_back = [place.read() for place in found.places]
    assert read_back == [(folder / f"{k}{SUFFIX}").read_bytes() for k in range(COUNT)]
    other = examine_pairs(catalog, ConditionConfig(kind="picture", suffix=".depth.png"))
    assert [why.rpartition(": ")[2] for _, why in other.missing] == ["no such member"] * COUNT


def test_pairs_are_looked_at_again_only_if_they_changed(folder, monkeypatch):
    config = ConditionConfig(kind="picture")
    seen = []
    examine = pairs_module.examine_image
    monkeypatch.setattr(
        pairs_module, "examine_image", lambda data, name: seen.append(name) or examine(data, name)
    )
    kept = folder.with_name("kept")
    first = examine_pairs(catalog_of(folder), config, kept)
    assert len(seen) == COUNT
    save(folder / f"3{SUFFIX}", 55, (8, 8))
    again = examine_pairs(catalog_of(folder), config, kept)
    assert len(seen) == COUNT + 1
    assert seen[-1].endswith(f"3{SUFFIX}")
    assert (again.found["sha256"][:3] == first.found["sha256"][:3]).all()
    assert (again.found["sha256"][3] != first.found["sha256"][3]).any()


# --- Batches through pixels ----------------------------------------------------------------------


def test_batches_hold_the_pictures_mirrored_and_dropped(folder):
    maps = maps_of("picture", folder, factor=4, through="pixels")
    (found,) = batch(maps, [1, 1, 3], [False, True, False], [False, False, True])
    assert found.shape == (3, 4, 4, 48)
    assert found.dtype == np.float32
    back = depth_to_space(found, 4)
    np.testing.assert_array_equal(back[0], read(folder / f"1{SUFFIX}"))
    np.testing.assert_array_equal(back[1], read(folder / f"1{SUFFIX}")[:, ::-1])
    assert not found[2].any(), "a dropped picture is all zeros"


def test_edges_are_those_of_the_images_and_mirrored_with_them(folder):
    maps = maps_of("edges", folder)
    for _ in range(2):  # made, and from memory
        (found,) = batch(maps, [0, 0], [False, True])
        lines = edges_of(read(folder / "0.png"))
        assert (lines > 0).any()
        np.testing.assert_array_equal(found[0], lines)
        np.testing.assert_array_equal(found[1], lines[:, ::-1])
    assert maps.value(0).dtype == np.uint8
    assert maps.value(0).shape == (SIZE, SIZE, 1)


def test_low_resolution_is_the_mean_of_pixels_with_the_noise_of_the_bits(folder):
    maps = maps_of("low_resolution", folder, factor=2, noise=0.5)  # `factor` of both is 2
    first, levels = batch(maps, [1, 1], bits=[5, 6])
    again, _ = batch(maps, [2, 1], bits=[5, 5])
    assert first.shape == (2, 8, 8, 3)
    np.testing.assert_array_equal(first[0], again[1])
    assert levels[0] != levels[1]
    clean = read(folder / "1.png").reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    off = (first[0] - clean).std()
    assert abs(off - levels[0, 0]) < 0.15 * levels[0, 0] + 0.01


def test_inpainting_of_pixels_draws_a_mask_for_each_use(folder):
    maps = maps_of("inpainting", folder)
    (found,) = batch(maps, [1, 1, 1], [False, True, False], bits=[3, 3, 4])
    mask, around = found[..., :1], found[..., 1:]
    image = read(folder / "1.png")
    np.testing.assert_array_equal(around[0], np.where(mask[0] > 0, 0, image))
    np.testing.assert_array_equal(around[1], np.where(mask[1] > 0, 0, image[:, ::-1]))
    assert set(np.unique(mask)) <= {0, 1}
    assert (mask[0] != mask[2]).any(), "other bits, another mask"


# --- Batches through the autoencoder -------------------------------------------------------------


@pytest.fixture(scope="module")
def autoencoder():
    return tiny_autoencoder(channel_multipliers=(1, 1, 1), num_res_blocks=0, scaling_factor=0.5)


class Encoder:
    """Makes latents caches, and counts the pictures that are encoded."""

    def __init__(self, autoencoder):
        self.autoencoder, self.loads = autoencoder, 0

    def load(self):
        self.loads += 1
        return self.autoencoder

    def __call__(self, catalog, cache, pictures):
        return prepare_latents(
            catalog,
            cache,
            vae_digest="a",
            load_autoencoder=self.load,
            resolution=SIZE,
            mirrored=True,
            dtype="float32",
            quiet=True,
            pictures=pictures,
        )

    def latents(self, image):
        mean, _ = self.autoencoder.encode(image[None])
        return 0.5 * np.asarray(mean)[0]


def test_pairs_are_encoded_once_and_their_mirror_images_too(folder, autoencoder):
    encoder = Encoder(autoencoder)
    maps = maps_of("picture", folder, 4, encoder)
    assert encoder.loads == 2, "for the shape, and to encode"
    (found,) = batch(maps, [2, 2, 0], [False, True, False], [False, False, True])
    picture = read(folder / f"2{SUFFIX}")
    np.testing.assert_allclose(found[0], encoder.latents(picture), atol=1e-5)
    np.testing.assert_allclose(found[1], encoder.latents(picture[:, ::-1]), atol=1e-5)
    assert not found[2].any()
    again = maps_of("picture", folder, 4, encoder)
    assert encoder.loads == 2, "a valid cache needs no autoencoder"
    np.testing.assert_array_equal(batch(again, [2])[0][0], found[0])
    np.testing.assert_array_equal(maps.value(2), read_image(folder / f"2{SUFFIX}", SIZE))


def test_holes_are_encoded_once_for_each_mask_and_belong_to_the_image(folder, autoencoder):
    encoder = Encoder(autoencoder)
    maps = maps_of("inpainting", folder, 4, encoder, masks=3)
    assert maps.cache.count == 3 * COUNT
    holes = HoleCatalog(catalog_of(folder), 3)
    image = read(folder / "1.png")
    for bits in (0, 4, 8):
        variant = bits % 3
        mask = holes.mask(1 + variant * COUNT, (SIZE, SIZE))
        (found,) = batch(maps, [1, 1], [False, True], bits=[bits, bits])
        np.testing.assert_array_equal(found[0, ..., 0], mask[::4, ::4])
        np.testing.assert_array_equal(found[1, ..., 0], mask[:, ::-1][::4, ::4])
        around = np.where(mask[..., None], 0, image).astype("float32")
        np.testing.assert_allclose(found[0, ..., 1:], encoder.latents(around), atol=1e-5)
        mirrored = np.ascontiguousarray(around[:, ::-1])
        np.testing.assert_allclose(found[1, ..., 1:], encoder.latents(mirrored), atol=1e-5)
    more = maps_of("inpainting", folder, 4, encoder, masks=4)
    assert more.cache.count == 4 * COUNT
    np.testing.assert_array_equal(more.cache.moments[: 3 * COUNT], maps.cache.moments[: 3 * COUNT])


def test_a_cache_of_pictures_is_not_taken_for_one_of_images(folder, autoencoder, capsys):
    encoder = Encoder(autoencoder)
    encoder(catalog_of(folder), folder.with_name("kept"), "")
    index = json.loads((folder.with_name("kept") / "index.json").read_text())
    assert "pictures" not in index["key"], "caches of images are written as before"
    maps = maps_of("picture", folder, 4, encoder)
    picture = read(folder / f"0{SUFFIX}")
    np.testing.assert_allclose(batch(maps, [0])[0][0], encoder.latents(picture), atol=1e-5)
