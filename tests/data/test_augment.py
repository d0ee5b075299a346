"""Augmentation of images: what the numbers say is what is done, and what is done is told."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tiny import QUICK_AUTOENCODER, tiny_autoencoder

from latentddpm.config import AugmentConfig, DiffusionRun
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.conditions.augmented import (
    AugmentedCatalog,
    ChangesTold,
    changes_condition,
)
from latentddpm.data.examples import diffusion_examples, image_examples
from latentddpm.data.images import WHITE
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.data.pictures.augment import Changes, augmented, draw_changes, scales
from latentddpm.data.random import RandomStream
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.utils.images.pixel_format import RGB, PixelFormat

SIZE = 16
RNG = np.random.default_rng(0)
BLOCKS = RNG.integers(40, 216, (4, 4, 4), np.uint8).repeat(4, axis=0).repeat(4, axis=1)
OPAQUE = np.concatenate([BLOCKS[..., :3], np.full((SIZE, SIZE, 1), 255, np.uint8)], axis=-1)
SPOT = np.zeros((SIZE, SIZE, 4), np.uint8)
SPOT[6:10, 4:8] = (200, 40, 40, 255)
STRONG = AugmentConfig(probability=0.5, variants=3)


def change(image, pixels=RGB, background=WHITE, **changes):
    """An image of `SIZE`, changed; read at another size it is repeated."""

    def read(size):
        return image.repeat(size[0] // SIZE, axis=0).repeat(size[1] // SIZE, axis=1)

    return augmented(read, (SIZE, SIZE), Changes(**changes), pixels, background)


# --- Pixels ----------------------------------------------------------------------------------


def test_nothing_done_is_the_image_itself():
    np.testing.assert_array_equal(change(OPAQUE), OPAQUE[..., :3])
    np.testing.assert_array_equal(change(SPOT, background=None)[..., 3], SPOT[..., 3])
    gray = OPAQUE[..., :1]
    np.testing.assert_array_equal(change(gray, PixelFormat(channels=1)), gray)


def test_geometry_does_what_the_numbers_say():
    image = OPAQUE[..., :3]
    expected = {
        "turned counterclockwise": (np.rot90(image), {"turn": 90.0}),
        "moved to the right by a quarter": (image[:, :-4], {"shift_x": 0.25}),
        "moved down by a quarter": (image[:-4], {"shift_y": 0.25}),
        "its middle, twice as large": (
            image[4:12, 4:12].repeat(2, axis=0).repeat(2, axis=1),
            {"zoom": 1.0},
        ),
    }
    for what, (wanted, changes) in expected.items():
        found = change(OPAQUE, **changes).astype(int)
        found = found[SIZE - wanted.shape[0] :, SIZE - wanted.shape[1] :]
        # Bilinear: between blocks of one colour pixels are mixed.
        assert np.median(abs(found - wanted)) <= 1, f"{what}: {found[..., 0]} {wanted[..., 0]}"


def test_behind_the_edge_is_the_mirror_image_or_the_background():
    found = change(OPAQUE, shift_x=0.25)
    np.testing.assert_array_equal(found[:, :4], found[:, 7:3:-1], "expected the mirror image")
    cut = SPOT.copy()
    cut[:, :4] = (0, 0, 255, 255)  # a drawing that reaches to the edge
    found = change(cut, shift_x=0.25)
    np.testing.assert_array_equal(found[:, :3], 255, "expected white behind a drawing")
    alpha = change(cut, background=None, shift_x=0.25)
    assert alpha.shape == (SIZE, SIZE, 4), "expected the alpha, where it is kept"
    np.testing.assert_array_equal(alpha[:, :3, 3], 0)


def test_colours_do_what_the_numbers_say():
    values = OPAQUE[..., :3] / 255
    gray = values @ [0.299, 0.587, 0.114]
    for changes, wanted in (
        ({"brightness": 0.1}, values + 0.1),
        ({"contrast": -1.0}, 0.5 + (values - 0.5) / 2),
        ({"saturation": -100.0}, np.repeat(gray[..., None], 3, axis=-1)),
        ({"hue": 120.0}, values[..., [2, 0, 1]]),
    ):
        found = change(OPAQUE, **changes)
        np.testing.assert_allclose(found, 255 * wanted, atol=1, err_msg=str(changes))
    drawing = change(SPOT, brightness=-0.3, hue=60.0)
    np.testing.assert_array_equal(drawing[0, 0], 255, "the background keeps its colour")
    assert drawing[8, 6, 0] < 200, "the drawing does not"


def test_the_mirror_image_of_a_changed_image_has_the_mirrored_numbers():
    done = Changes(zoom=0.2, shift_x=0.1, shift_y=-0.05, turn=20.0, hue=10.0)
    mirrored = change(OPAQUE[:, ::-1], **done.mirrored().by_name())
    np.testing.assert_allclose(
        mirrored[:, ::-1].astype(int), change(OPAQUE, **done.by_name()), atol=1
    )


def test_drawn_numbers_have_the_strengths_and_are_zero_without_them():
    settings = AugmentConfig(probability=1, crop=0, hue=0, rotation=30)
    drawn = np.array([draw_changes(settings, np.random.default_rng(k)) for k in range(400)])
    found = dict(zip(Changes._fields, drawn.T, strict=True))
    assert 29 < abs(found["turn"]).max() <= 30
    assert not found["hue"].any()
    assert abs(found["shift_x"]).max() <= settings.translation, "nothing is cropped"
    sizes = scales(settings)
    for name, size in sizes.by_name().items():
        if size:
            assert found[name].std() == pytest.approx(size, rel=0.1), name
            assert abs(found[name].mean()) < 0.2 * size, f"{name} leans to one side"
    gray = draw_changes(AugmentConfig(), np.random.default_rng(0), in_colour=False)
    assert gray.saturation == gray.hue == 0


def test_a_crop_shows_nothing_from_behind_the_edge():
    settings = AugmentConfig(crop=0.5, scale=0, translation=0, rotation=0)
    for k in range(50):
        done = draw_changes(settings, np.random.default_rng(k))
        corners = (np.array([-0.5, 0.5])[:, None] - [done.shift_x, done.shift_y]) / 2**done.zoom
        assert abs(corners).max() <= 0.5 + 1e-6, f"{done} shows {corners}"


# --- Variants of a catalog -------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """Four images, one with transparent pixels."""
    folder = tmp_path_factory.mktemp("augment")
    (folder / "data").mkdir()
    for k in range(4):
        image = SPOT if k == 3 else np.roll(OPAQUE, 4 * k, axis=0)
        Image.fromarray(image).save(folder / "data" / f"{k}.png")
    return open_catalog(folder / "data", folder / "catalog", quiet=True)


def run_config(**augment):
    data = {"resolution": SIZE, "augment": {"probability": 0.5, "variants": 3, **augment}}
    return DiffusionRun.model_validate({"data": data})


def test_variants_are_a_function_of_image_strengths_and_number(catalog):
    variants = AugmentedCatalog(catalog, STRONG)
    assert len(variants) == 16
    np.testing.assert_array_equal(variants.image(1, SIZE), catalog.image(1, SIZE))
    np.testing.assert_array_equal(variants.images["sha256"][:4], catalog.images["sha256"])
    same = AugmentedCatalog(catalog, STRONG)
    np.testing.assert_array_equal(variants.image(9, SIZE), same.image(9, SIZE))
    digests = [variants.digest]
    for other in ({"rotation": 5}, {"hue": 20}, {"variants": 4}):
        settings = STRONG.model_copy(update=other)
        digests.append(AugmentedCatalog(catalog, settings).digest)
    assert len(set(digests)) == 4, "strengths and the number of variants name the rows"
    often = STRONG.model_copy(update={"probability": 0.9})
    assert AugmentedCatalog(catalog, often).digest == variants.digest, "the same rows"
    done = {variants.changes(row) for row in range(4, 16)}
    assert len(done) == 12, "every variant is changed in its own way"


def test_a_cache_encodes_the_variants_and_keeps_what_stays(catalog, tmp_path):
    autoencoder = tiny_autoencoder(**QUICK_AUTOENCODER)
    encoded = []
    encode_on_batch = autoencoder.encode_on_batch

    def counting(images):
        encoded.append(len(images))
        return encode_on_batch(images)

    autoencoder.encode_on_batch = counting
    common = {"vae_digest": "a", "resolution": SIZE, "batch_size": 4, "quiet": True}

    def prepare(settings):
        encoded.clear()
        own = AugmentedCatalog(catalog, settings)
        made = prepare_latents(
            own, tmp_path, load_autoencoder=lambda: autoencoder, mirrored=False, **common
        )
        return made, sum(encoded)

    first, count = prepare(STRONG)
    assert (first.count, count) == (16, 16)
    assert prepare(STRONG)[1] == 0, "a complete cache is opened"
    more = STRONG.model_copy(update={"variants": 5})
    assert prepare(more)[1] == 8, "two further variants of four images"
    other = more.model_copy(update={"rotation": 20.0})
    assert prepare(other)[1] == 20, "other strengths: all but the images themselves"


def examples(catalog, probability=0.5, mirrored=False, name="train-diffusion", count=256):
    """Clean images of examples, and what is told of each."""
    config = run_config()
    variants = AugmentedCatalog(catalog, config.data.augment)
    batches = diffusion_examples(
        PixelLatents.of(variants, SIZE, mirrored=mirrored),
        Selection(len(catalog)),
        NoiseSchedule(prediction_type="sample"),
        LatentSpace(1.0),
        batch_size=64,
        stream=RandomStream(0, name),
        positions=tf.data.Dataset.range(count),
        conditions=[ChangesTold(changes_condition(config), variants)],
        augmented=probability,
    )
    pairs = [(target, inputs["changes"]) for inputs, target in batches.as_numpy_iterator()]
    return variants, *map(np.concatenate, zip(*pairs, strict=True))


@pytest.mark.parametrize("mirrored", [False, True])
def test_examples_are_told_what_was_done_to_their_image(catalog, mirrored):
    variants, seen, told = examples(catalog, mirrored=mirrored)
    sizes = np.array(list(scales(variants.settings)))
    known = {}
    for row in range(len(variants)):
        image, done = RGB.to_images(variants.image(row, SIZE)), variants.changes(row)
        known[(np.float32(done / sizes)).tobytes()] = image
        known.setdefault(np.float32(done.mirrored() / sizes).tobytes(), image[:, ::-1])
    plain = 0
    told = told + 0.0  # −0.0 is 0.0
    for image, numbers in zip(seen, told, strict=True):
        if not numbers.any():
            plain += 1
            continue
        np.testing.assert_allclose(known[numbers.tobytes()], image, atol=1e-6)
    assert 0.4 < plain / len(seen) < 0.6, f"{plain} of {len(seen)} as they are, expected half"
    assert len({one.tobytes() for one in told}) == 1 + 12 * (1 + mirrored), "a variant is missing"


def test_validation_is_never_augmented(catalog):
    _, seen, told = examples(catalog, 0.0, name="validation", count=16)
    assert not told.any()
    images = [RGB.to_images(catalog.image(row, SIZE)) for row in range(4)]
    for one in seen:
        assert min(abs(one - image).max() for image in images) == 0


def test_the_autoencoder_sees_changed_pixels_in_training_alone(catalog):
    common = {
        "resolution": SIZE,
        "latent_shape": (1,),
        "batch_size": 32,
        "augment": STRONG,
    }

    def images(stream, count):
        positions = tf.data.Dataset.range(count)
        batches = image_examples(
            catalog, Selection(4), stream=stream, positions=positions, **common
        )
        return np.concatenate([one["images"] for one in batches.as_numpy_iterator()])

    plain = images(None, 4)
    seen = images(RandomStream(0, "train-vae"), 128)
    np.testing.assert_array_equal(seen, images(RandomStream(0, "train-vae"), 128))
    same = [any((one == image).all() for image in plain) for one in seen]
    assert 0.3 < np.mean(same) < 0.7, f"{np.mean(same):.0%} as they are, expected half"
    assert abs(seen).max() <= 1
