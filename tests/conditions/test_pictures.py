"""Picture conditions: their maps are what the pictures say, and nothing of them is lost."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from latentddpm.conditions.edges import EdgesCondition, edges_of
from latentddpm.conditions.inpainting import (
    InpaintingCondition,
    mask_at,
    random_mask,
    with_hole,
)
from latentddpm.conditions.kinds import KINDS
from latentddpm.conditions.low_resolution import LowResolutionCondition
from latentddpm.conditions.picture import PairCondition, Stage
from latentddpm.config.conditions import ConditionConfig
from latentddpm.errors import UserError
from latentddpm.utils.images.maps import depth_to_space, resized, space_to_depth

LATENTS = Stage(downsample_factor=8, image_channels=3, latent_channels=4, encodes=True)
PIXELS = Stage(downsample_factor=1, image_channels=3, latent_channels=3, encodes=False)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def made(kind, stage=LATENTS, null=True, **settings):
    return KINDS[kind].of_stage("c", ConditionConfig(kind=kind, **settings), stage, null)


def philox(seed):
    return np.random.Generator(np.random.Philox(key=seed))


# --- Space to depth ------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_space_to_depth_is_tensorflows_and_goes_back(factor):
    pictures = numbers(2, 8, 12, 3)
    maps = space_to_depth(pictures, factor)
    if factor > 1:
        np.testing.assert_array_equal(maps, tf.nn.space_to_depth(pictures, factor))
    np.testing.assert_array_equal(depth_to_space(maps, factor), pictures)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(UserError, match="c: a map of 4 channels, expected 64"):
        EdgesCondition("c", channels=64).arrays(numbers(1, 16, 16, 1), (8, 8))
    with pytest.raises(UserError, match="16×24 pixels for latents of 8×8"):
        EdgesCondition("c").arrays(numbers(1, 24, 16, 1), (8, 8))


def test_boxes_average_and_a_mirrored_picture_is_reduced_to_the_mirrored():
    picture = numbers(8, 8, 3)
    small = resized(picture, (4, 4), Image.Resampling.BOX)
    means = picture.reshape(4, 2, 4, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small, means, atol=1e-6)
    mirrored = resized(picture[:, ::-1], (4, 4), Image.Resampling.BOX)
    np.testing.assert_allclose(mirrored, small[:, ::-1], atol=1e-6)


# --- Sizes, and what a model folder keeps --------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "stage", "inputs"),
    [
        ("picture", {}, LATENTS, [("c", "concat", 4)]),
        ("picture", {"through": "pixels"}, LATENTS, [("c", "concat", 192)]),
        ("picture", {}, PIXELS, [("c", "concat", 3)]),
        ("edges", {}, LATENTS, [("c", "concat", 64)]),
        ("edges", {}, PIXELS, [("c", "concat", 1)]),
        ("low_resolution", {"factor": 4}, LATENTS, [("c", "concat", 12)]),
        ("low_resolution", {"factor": 3}, LATENTS, [("c", "concat", 27)]),
        ("low_resolution", {"factor": 2}, PIXELS, [("c", "concat", 3)]),
        (
            "low_resolution",
            {"factor": 8, "noise": 0.2},
            LATENTS,
            [("c", "concat", 3), ("c_level", "projection", 1)],
        ),
        ("inpainting", {}, LATENTS, [("c", "concat", 5)]),
        ("inpainting", {}, PIXELS, [("c", "concat", 4)]),
    ],
)
def test_inputs_have_the_sizes_of_their_arrays(kind, settings, stage, inputs):
    condition = made(kind, stage, **settings)
    assert [tuple(one) for one in condition.inputs()] == inputs
    entry = dict(condition.to_json())
    assert KINDS[entry.pop("kind")].from_json(entry) == condition, f"{entry} is not the same"

    images, size = numbers(2, 48, 48, 3), (48 // stage.downsample_factor,) * 2
    pictures = images if kind == "picture" else None
    if pictures is None:
        pictures = np.stack([condition.picture(one, philox(0)) for one in images])
    latents = numbers(2, *size, stage.latent_channels)
    arrays = condition.arrays(pictures, size, lambda _: latents, [philox(1), philox(2)])
    for one in condition.inputs():
        space = size if one.enters == "concat" else ()
        assert arrays[one.name].shape == (2, *space, one.size), f"{one}"
        assert arrays[one.name].dtype == np.float32
    for name, nothing in condition.null_arrays(arrays).items():
        assert not nothing.any(), f"{name}: not told is all zeros"


def test_an_autoencoder_that_is_not_there_is_refused():
    with pytest.raises(
        UserError, match=r"conditions\.c\.through: autoencoder, but this model has"
    ):
        made("picture", PIXELS, through="autoencoder")


def test_pictures_through_the_autoencoder_are_their_latents():
    pictures, latents = numbers(2, 16, 16, 3), numbers(2, 2, 2, 4)
    seen = []

    def encode(images):
        seen.append(images)
        return latents

    found = made("picture").arrays(pictures, (2, 2), encode)["c"]
    np.testing.assert_array_equal(found, latents)
    np.testing.assert_array_equal(seen, [pictures])


# --- Edges ---------------------------------------------------------------------------------------


def square(colour=(1, 1, 1), ground=(-1, -1, -1)):
    """A square over the pixels 8 … 23 of 32."""
    image = np.empty((32, 32, 3), "float32")
    image[:] = ground
    image[8:24, 8:24] = colour
    return image


def outline(lines):
    """Whether each pixel of some lines lies within a pixel of the outline of the square."""
    rows, columns = np.nonzero(lines[..., 0] > 0)
    distance = [
        np.minimum(abs(one - 7.5), abs(one - 23.5)) for one in (rows.astype(float), columns)
    ]
    return np.minimum(*distance) <= 1.5, rows, columns


@pytest.mark.parametrize("colour", [(1, 1, 1), (0.5, -1, -1)])
def test_edges_of_a_square_are_its_outline_one_pixel_wide(colour):
    lines = edges_of(square(colour))
    assert set(np.unique(lines)) == {-1, 1}
    close, rows, _columns = outline(lines)
    assert close.all(), f"{(~close).sum()} pixels of lines lie elsewhere"
    for axis in (0, 1):  # a line through the middle meets the outline twice
        assert (np.take(lines, 16, axis)[:, 0] > 0).sum() == 2, f"axis {axis}: expected two edges"
    assert 4 * 12 <= len(rows) <= 4 * 18, f"{len(rows)} pixels, expected about 4 sides of 16"


def test_colours_of_equal_brightness_have_an_edge():
    red, green = (1.0, -1.0, -1.0), (-1.0, -1 + 2 * 0.299 / 0.587, -1.0)
    image = square(red, green)
    gray = (image @ np.float32([0.299, 0.587, 0.114]))[..., None]
    assert (edges_of(gray) < 0).all(), "in gray there is nothing to see"
    assert outline(edges_of(image))[0].sum() > 40, "the colours differ all around the square"


def test_edges_do_not_depend_on_the_sign_and_a_flat_image_has_none():
    image = square((0.4, 0.1, -0.2), (0.9, 0.1, 0.3))
    np.testing.assert_array_equal(edges_of(image), edges_of(-image))
    assert (edges_of(np.full((8, 8, 3), 0.3, "float32")) < 0).all()


def test_weak_parts_of_a_line_stay_only_beside_strong_ones():
    image = np.full((32, 32, 1), -1.0, "float32")
    image[:, 16:] = np.linspace(-0.8, 0.0, 32, dtype="float32")[:, None, None]
    half = 0.4 * 0.5  # strength of a step of 0.4 in units of the range is about 0.4 × 0.4
    lines = edges_of(image, low=0.05, high=half)[..., 0] > 0
    alone = edges_of(image, low=half, high=half)[..., 0] > 0
    assert lines.sum() > alone.sum() or not alone.any()
    strong = edges_of(image, low=0.05, high=0.1)[..., 0] > 0
    assert strong.any(axis=1).sum() > 20, "the line goes on where it gets weak"


# --- Low resolution ------------------------------------------------------------------------------


def test_noise_has_the_level_that_is_told_and_none_at_generation():
    condition = made("low_resolution", PIXELS, factor=2, noise=0.5)
    pictures = np.zeros((3, 32, 32, 3), "float32")
    size = (32, 32)
    clean = condition.arrays(pictures, size)
    assert not clean["c"].any()
    assert not clean["c_level"].any()
    rngs = [philox(seed) for seed in range(3)]
    noisy = condition.arrays(pictures, size, rngs=rngs)
    levels = noisy["c_level"][:, 0]
    assert (levels > 0).all()
    assert (levels < 0.5).all()
    assert len(set(levels)) == 3
    np.testing.assert_allclose(noisy["c"].std(axis=(1, 2, 3)), levels, rtol=0.1)
    again = condition.arrays(pictures, size, rngs=[philox(seed) for seed in range(3)])
    np.testing.assert_array_equal(noisy["c"], again["c"])


def test_every_pixel_of_the_small_picture_is_in_the_map():
    condition = made("low_resolution", factor=2)
    image = numbers(32, 32, 3)
    small = condition.picture(image)
    assert small.shape == (16, 16, 3)
    found = condition.arrays(small[None], (4, 4))["c"]
    np.testing.assert_array_equal(depth_to_space(found, 4)[0], small)


# --- Inpainting ----------------------------------------------------------------------------------


def test_the_map_is_the_mask_and_then_the_picture_around_a_gray_hole():
    image, mask = numbers(16, 16, 3), np.zeros((16, 16), "float32")
    mask[:8, 8:] = 1
    picture = with_hole(image, mask)
    assert not picture[:8, 8:, :3].any(), "the hole is gray"
    np.testing.assert_array_equal(picture[8:, :, :3], image[8:])
    latents = numbers(1, 2, 2, 4)
    seen = []
    encode = lambda images: seen.append(images) or latents  # noqa: E731
    found = made("inpainting").arrays(picture[None], (2, 2), encode)["c"]
    np.testing.assert_array_equal(found[..., 0], [[[0, 1], [0, 0]]])
    np.testing.assert_array_equal(found[..., 1:], latents)
    np.testing.assert_array_equal(seen[0][0], picture[..., :3])


def test_masks_are_reduced_as_diffusers_does():
    torch = pytest.importorskip("torch")
    mask = (np.random.default_rng(0).uniform(size=(2, 24, 16, 1)) > 0.5).astype("float32")
    theirs = torch.nn.functional.interpolate(torch.tensor(mask[..., 0])[:, None], (3, 2))
    np.testing.assert_array_equal(mask_at(mask, (3, 2))[..., 0], theirs[:, 0].numpy())


def test_inpainting_is_always_told():
    assert not made("inpainting", null=True).null
    assert not InpaintingCondition("c").null


def test_random_masks_are_the_same_for_the_same_bits_and_of_all_shapes():
    masks = [random_mask((24, 32), philox(seed)) for seed in range(200)]
    assert all(one.shape == (24, 32) and one.any() for one in masks)
    for seed in (0, 7):
        np.testing.assert_array_equal(masks[seed], random_mask((24, 32), philox(seed)))
    shares = np.array([one.mean() for one in masks])
    assert 0.05 < (shares == 1).mean() < 0.2, "about one in ten paints everything"
    assert 0.2 < shares[shares < 1].mean() < 0.5, f"holes of {shares[shares < 1].mean():.2f}"
    assert len({one.tobytes() for one in masks if not one.all()}) > 150


def test_kinds_of_maps_are_named_as_configured():
    kinds = {PairCondition: "picture", LowResolutionCondition: "low_resolution"}
    for kind, name in kinds.items():
        assert KINDS[name] is kind
