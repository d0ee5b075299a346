"""Training examples: what was drawn where, and that nothing is drawn or scaled twice."""

import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import EMOJI

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.data.captions import tokenize_captions
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.examples import diffusion_examples, image_examples
from latentddpm.data.images import composite, read_image
from latentddpm.data.latents.cache import LatentsCache, prepare_latents
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.data.random import RandomStream
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.archive import weights_digest
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.latent_space import LatentSpace

RESOLUTION, COUNT, SHAPE = 8, 8, (4, 4, 2)
PATHS = sorted(path.relative_to(EMOJI).as_posix() for path in EMOJI.rglob("*.png"))[:COUNT]
STREAM = RandomStream(5, "train")


def only(*numbers):
    """A selection of some of the images."""
    return Selection(COUNT, lambda start, stop: np.isin(np.arange(start, stop), numbers))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The images of PATHS, without captions."""
    folder = tmp_path_factory.mktemp("images")
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EMOJI / path, folder / path)
    return folder


@pytest.fixture(scope="module")
def catalog(folder, tmp_path_factory):
    return open_catalog(folder, tmp_path_factory.mktemp("catalog"), quiet=True)


@pytest.fixture(scope="module")
def cache(catalog, tmp_path_factory):
    """Moments, mirrored ones too, of real images by a small autoencoder."""
    keras.utils.set_random_seed(0)
    autoencoder = Autoencoder(
        channels=4,
        channel_multipliers=(1, 1),
        num_res_blocks=1,
        latent_channels=SHAPE[-1],
        norm_groups=2,
    )
    return prepare_latents(
        catalog,
        tmp_path_factory.mktemp("cache"),
        vae_digest=weights_digest(autoencoder),
        load_autoencoder=lambda: autoencoder,
        resolution=RESOLUTION,
        mirrored=True,
        dtype="float32",
        quiet=True,
    )


@pytest.fixture(scope="module")
def captions():
    """One to three alternatives for each image, all different; image 7 has none."""
    lines = map(json.loads, (EMOJI / "metadata.jsonl").read_text("utf-8").splitlines())
    words = {line["file_name"]: line["text"] for line in lines}
    return [
        [f"{words[path]}, {i}, way {k}" for k in range(i % 3 + 1)] if i < 7 else []
        for i, path in enumerate(PATHS)
    ]


@pytest.fixture(scope="module")
def tokens(captions, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokens") / "tokens"
    return tokenize_captions(captions, CLIPTokenizer(16), folder)


def own_ids(tokens, image):
    """Token ids of each alternative of an image."""
    starts, counts = tokens.starts_and_counts(np.array([image]))
    return tokens.ids[starts[0] : starts[0] + counts[0]]


def stream(cache, start=0, stop=6, batch_size=4, **changes):
    """Examples of steps start … stop − 1, end to end: one dict of arrays, target included."""
    settings = {
        "selection": only(*range(COUNT)),
        "schedule": NoiseSchedule(),
        "latent_space": LatentSpace(0.5),
        "stream": STREAM,
        **changes,
    }
    batches = diffusion_examples(
        cache,
        **settings,
        batch_size=batch_size,
        positions=tf.data.Dataset.range(start * batch_size, stop * batch_size),
    )
    return joined({**inputs, "target": target} for inputs, target in batches)


def pictures(catalog, start=0, stop=6, batch_size=4, stream=STREAM, **changes):
    dataset = image_examples(
        catalog,
        only(*range(COUNT)),
        resolution=RESOLUTION,
        latent_shape=SHAPE,
        batch_size=batch_size,
        stream=stream,
        positions=tf.data.Dataset.range(start * batch_size, stop * batch_size),
        **changes,
    )
    return joined(dataset)


def joined(batches):
    batches = list(batches)
    return {name: np.concatenate([b[name] for b in batches]) for name in batches[0]}


def assert_same(found, expected, what):
    assert set(found) == set(expected), f"{what}: {set(found)}, expected {set(expected)}"
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=f"{what}: {name}")


def drawn(position, name):
    """What the stream draws at a position, asked from `RandomStream` itself."""
    position = tf.constant(position, tf.int64)
    return {
        "image": lambda: int(STREAM.index(position, COUNT)),
        "mirrored": lambda: bool(STREAM.chance("flip", position, 0.5)),
        "timestep": lambda: int(STREAM.integer("timestep", position, 1000)),
        "posterior": lambda: STREAM.normal("posterior", position, SHAPE).numpy(),
        "noise": lambda: STREAM.normal("noise", position, SHAPE).numpy(),
    }[name]()


# --- Positions -----------------------------------------------------------------------------


def test_a_stream_goes_on_where_it_stopped(catalog, cache, tokens):
    settings = {"tokens": tokens, "condition_dropout": 0.3}
    whole = stream(cache, **settings)
    tail = stream(cache, start=4, **settings)
    assert_same(tail, {k: v[16:] for k, v in whole.items()}, "steps 4 and 5 after a resume")
    whole = pictures(catalog, background="random", flip=True)
    tail = pictures(catalog, start=4, background="random", flip=True)
    assert_same(tail, {k: v[16:] for k, v in whole.items()}, "images after a resume")


def test_an_example_does_not_depend_on_the_batch_size(catalog, cache, tokens):
    settings = {"tokens": tokens, "condition_dropout": 0.3}
    whole = stream(cache, 0, 3, batch_size=8, **settings)
    small = stream(cache, 0, 8, batch_size=3, **settings)
    assert_same(small, whole, "batches of 3 instead of 8")
    whole = pictures(catalog, stop=3, batch_size=8, flip=True)
    assert_same(
        pictures(catalog, stop=8, batch_size=3, flip=True), whole, "images in batches of 3"
    )


def test_validation_is_the_same_each_time(cache, tokens):
    settings = {
        "stream": RandomStream(5, "validation"),
        "tokens": tokens,
        "selection": only(1, 4, 6),
    }
    first = stream(cache, **settings)
    assert_same(stream(cache, **settings), first, "the second validation")
    other = stream(cache, **{**settings, "stream": STREAM})
    assert not np.array_equal(other["target"], first["target"]), "training sees the same noise"


def test_every_epoch_shows_every_image_once(cache, captions, tokens):
    singles = stream(cache, 0, 6, batch_size=COUNT, tokens=tokens)["token_ids"]
    owners = {tuple(ids): i for i in range(COUNT) for ids in own_ids(tokens, i)}
    order = np.array([owners[tuple(ids)] for ids in singles]).reshape(6, COUNT)
    for epoch in order:
        assert sorted(epoch) == list(range(COUNT)), f"an epoch showed the images {epoch}"
    assert len({tuple(epoch) for epoch in order}) > 1, "every epoch has the same order"


def test_only_the_images_asked_for(cache, captions, tokens):
    found = {tuple(ids) for ids in stream(cache, tokens=tokens, selection=only(2, 5))["token_ids"]}
    allowed = {tuple(ids) for i in (2, 5) for ids in own_ids(tokens, i)}
    assert found <= allowed, "a caption of a validation image"


# --- The arithmetic ------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_noisy_latents_and_target_are_the_schedules_formulas(cache, prediction_type):
    scale = 0.7
    schedule = NoiseSchedule(prediction_type=prediction_type)
    found = stream(cache, schedule=schedule, latent_space=LatentSpace(scale))
    # From the definitions, in float64: ᾱ of scaled_linear, and the moments of the cache.
    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for position in range(24):
        t, noise = drawn(position, "timestep"), drawn(position, "noise").astype("float64")
        row = drawn(position, "image") + COUNT * drawn(position, "mirrored")
        mean, logvar = np.split(cache.moments[row].astype("float64"), 2, axis=-1)
        latents = scale * (mean + np.exp(logvar / 2) * drawn(position, "posterior"))
        signal, spread = np.sqrt(alphas_cumprod[t]), np.sqrt(1 - alphas_cumprod[t])
        target = {
            "epsilon": noise,
            "v_prediction": signal * noise - spread * latents,
            "sample": latents,
        }[prediction_type]
        where = f"position {position}, timestep {t}"
        assert found["timesteps"][position] == t, f"{where}: got {found['timesteps'][position]}"
        np.testing.assert_allclose(
            found["noisy_latents"][position],
            signal * latents + spread * noise,
            atol=1e-5,
            err_msg=f"noisy latents at {where}",
        )
        np.testing.assert_allclose(
            found["target"][position], target, atol=1e-5, err_msg=f"{prediction_type} at {where}"
        )


def test_types_are_what_the_network_takes(cache, tokens):
    found = {name: array.dtype.name for name, array in stream(cache, tokens=tokens).items()}
    expected = {
        "noisy_latents": "float32",
        "timesteps": "int32",
        "token_ids": "int32",
        "target": "float32",
    }
    assert found == expected, f"types {found}, expected {expected}"


def test_the_measured_scale_is_applied_exactly_once(cache):
    wide = cache.moments + np.repeat([0, np.log(9)], SHAPE[-1]).astype("float32")
    wide[..., : SHAPE[-1]] *= 3  # three times as wide: far from 1, to tell once from twice
    mean, logvar = np.split(wide.astype("float64"), 2, axis=-1)
    scale = 1 / np.sqrt(mean.var() + np.exp(logvar).mean())
    assert scale < 0.5, f"scale {scale:.2f} is too near 1 to tell once from twice"
    cache = LatentsCache(cache.count, wide, True)
    schedule = NoiseSchedule(prediction_type="sample")
    latents = stream(cache, 0, 100, 8, schedule=schedule, latent_space=LatentSpace(scale))
    std = latents["target"].std()
    assert abs(std - 1) < 0.04, f"clean latents have std {std:.3f}, expected 1"


# --- Shares --------------------------------------------------------------------------------


def test_timesteps_are_uniform_and_noise_is_normal(cache):
    found = stream(cache, 0, 60, 32)
    timesteps, noise = found["timesteps"], found["target"]
    counts = np.histogram(timesteps, 10, (0, 1000))[0]
    assert abs(counts - 192).max() < 65, f"{counts} of each tenth of the timesteps, expected 192"
    assert len(np.unique(timesteps)) > 700, f"only {len(np.unique(timesteps))} timesteps of 1000"
    bound = 4 / np.sqrt(noise.size)
    assert abs(noise.mean()) < bound, f"noise has mean {noise.mean():.4f}, expected ± {bound:.4f}"
    assert abs(noise.std() - 1) < bound, f"noise has std {noise.std():.4f}"
    different = len(np.unique(noise.reshape(len(noise), -1), axis=0))
    assert different == len(noise), f"{different} different noises in {len(noise)} examples"


@pytest.mark.parametrize("share", [0.0, 0.1, 1.0])
def test_conditions_are_dropped_as_often_as_asked(cache, tokens, share):
    # Image 7 has no caption, so its condition is the empty prompt in any case.
    settings = {"tokens": tokens, "condition_dropout": share, "selection": only(*range(7))}
    ids = stream(cache, 0, 40, 50, **settings)["token_ids"]
    found = np.mean((ids == tokens.ids[-1]).all(axis=-1))
    bound = 4 * np.sqrt(share * (1 - share) / len(ids))
    assert abs(found - share) <= bound, f"{found:.3f} dropped, expected {share} ± {bound:.3f}"


def test_dropping_conditions_changes_nothing_else(cache, tokens):
    kept = stream(cache, tokens=tokens)
    dropped = stream(cache, tokens=tokens, condition_dropout=1.0)
    without = stream(cache)
    for name in ("noisy_latents", "timesteps", "target"):
        np.testing.assert_array_equal(dropped[name], kept[name], err_msg=name)
        np.testing.assert_array_equal(without[name], kept[name], err_msg=f"{name}, no captions")


def test_alternatives_are_drawn_alike(cache, tokens):
    image = 2  # has three
    ids = stream(cache, 0, 12, 100, tokens=tokens, selection=only(image))["token_ids"]
    counts = [int((ids == own).all(-1).sum()) for own in own_ids(tokens, image)]
    assert sum(counts) == 1200, f"{1200 - sum(counts)} captions belong to another image"
    # Standard deviation 16.3.
    assert max(abs(count - 400) for count in counts) < 70, f"drawn {counts}, expected 400 each"


def test_half_of_the_rows_are_mirrored(cache):
    schedule = NoiseSchedule(prediction_type="sample")
    certain = np.concatenate(
        [cache.moments[..., :2], np.full_like(cache.moments[..., 2:], -60)], -1
    )
    flat = LatentsCache(cache.count, certain, True)  # a posterior without spread names its row
    settings = {"schedule": schedule, "latent_space": LatentSpace(1.0), "selection": only(3)}
    targets = stream(flat, 0, 10, 100, **settings)["target"]
    straight, mirrored = certain[3, ..., :2], certain[3 + COUNT, ..., :2]
    assert np.abs(straight - mirrored).max() > 1e-3, "the picture is symmetric; choose another"
    is_straight = np.isclose(targets, straight, atol=1e-6).all(axis=(1, 2, 3))
    is_mirrored = np.isclose(targets, mirrored, atol=1e-6).all(axis=(1, 2, 3))
    assert (is_straight ^ is_mirrored).all(), "a row of another image"
    share = is_mirrored.mean()
    assert abs(share - 0.5) < 0.065, f"{share:.3f} mirrored, expected 0.5"

    plain = LatentsCache(cache.count, certain[:COUNT], False)
    targets = stream(plain, **settings)["target"]
    assert np.allclose(targets, straight, atol=1e-6), "a row that a cache without mirrors lacks"


# --- Captions ------------------------------------------------------------------------------


def test_captions_own_their_rows(captions, tokens):
    tokenizer = CLIPTokenizer(16)
    for i, alternatives in enumerate(captions):
        rows = own_ids(tokens, i)
        expected = tokenizer(alternatives or [""])
        np.testing.assert_array_equal(rows, expected, err_msg=f"captions of image {i}")
    np.testing.assert_array_equal(tokens.ids[-1], tokenizer("")[0], err_msg="the empty prompt")


# --- Pictures ------------------------------------------------------------------------------


def unit(path, folder=EMOJI):
    return read_image(folder / path, RESOLUTION) / np.float32(127.5) - 1


def test_pictures_are_the_files_in_the_drawn_order(catalog):
    found = pictures(catalog)
    assert found["images"].dtype == np.float32, f"images are {found['images'].dtype}"
    assert found["noise"].shape == (24, *SHAPE), f"noise is {found['noise'].shape}"
    for position in range(24):
        expected = unit(PATHS[drawn(position, "image")])
        np.testing.assert_allclose(
            found["images"][position], expected, atol=1e-6, err_msg=f"position {position}"
        )
        np.testing.assert_array_equal(found["noise"][position], drawn(position, "noise"))


def test_validation_pictures_come_in_order_without_draws(catalog):
    found = pictures(catalog, stream=None, stop=2, background="random", flip=True)
    assert set(found) == {"images"}, f"validation holds {set(found)}, expected images alone"
    for image, path in zip(found["images"], PATHS, strict=True):
        np.testing.assert_allclose(image, unit(path), atol=1e-6, err_msg=path)


def test_half_of_the_pictures_are_mirrored(catalog):
    plain = pictures(catalog, stop=50)["images"]
    flipped = pictures(catalog, stop=50, flip=True)["images"]
    same = (plain == flipped).all(axis=(1, 2, 3))
    mirrored = (plain[:, :, ::-1] == flipped).all(axis=(1, 2, 3))
    assert (same | mirrored).all(), "a picture is neither itself nor its mirror image"
    share = (mirrored & ~same).mean() / (mirrored ^ same).mean()
    assert abs(share - 0.5) < 0.15, f"{share:.2f} mirrored, expected 0.5"


def test_a_drawn_background_shows_through_transparency_only(catalog):
    plain, coloured = pictures(catalog)["images"], pictures(catalog, background="random")["images"]
    seen = set()
    for position in range(24):
        rgba = read_image(EMOJI / PATHS[drawn(position, "image")], RESOLUTION, None)
        alpha = rgba[..., 3]
        opaque, clear = alpha == 255, alpha == 0
        np.testing.assert_allclose(
            coloured[position][opaque],
            plain[position][opaque],
            atol=1e-5,
            err_msg=f"position {position}: an opaque pixel changed",
        )
        if not clear.any():
            continue
        colour = coloured[position][clear]
        assert np.ptp(colour, axis=0).max() < 1e-5, f"position {position}: a mottled background"
        seen.add(tuple(np.round(colour[0], 3)))
        # In between, colour · alpha + background · (1 − alpha).
        weight = alpha[..., None] / 255.0
        expected = (rgba[..., :3] / 127.5 - 1) * weight + colour[0] * (1 - weight)
        np.testing.assert_allclose(coloured[position], expected, atol=1e-5, err_msg="a blend")
    assert len(seen) > 10, f"only {len(seen)} different backgrounds in 24 pictures"


@pytest.fixture
def fragile(folder, tmp_path):
    """A folder that may be broken, and its catalog."""
    shutil.copytree(folder, tmp_path / "data")
    return tmp_path / "data", open_catalog(tmp_path / "data", tmp_path / "catalog", quiet=True)


def test_a_file_that_breaks_later_is_named_and_its_neighbour_stands_in(fragile):
    folder, catalog = fragile
    (folder / PATHS[2]).write_bytes(b"\x89PNG broken")
    (folder / PATHS[3]).unlink()
    with pytest.warns(UserWarning, match="another image takes its place") as caught:
        found = pictures(catalog, stream=None, stop=2)["images"]
    for i, stand_in in {1: 1, 2: 4, 3: 4, 4: 4}.items():
        np.testing.assert_allclose(
            found[i], unit(PATHS[stand_in]), atol=1e-6, err_msg=f"image {i} should be {stand_in}"
        )
    named = {path for path in PATHS for each in caught if path in str(each.message)}
    assert named == {PATHS[2], PATHS[3]}, f"warnings named {named}"


@pytest.mark.filterwarnings("ignore:.*another image takes its place")
def test_nothing_left_to_read_is_an_error(fragile):
    folder, catalog = fragile
    shutil.rmtree(folder)
    with pytest.raises(tf.errors.OpError, match="no image can be read any more"):
        pictures(catalog, stop=1)


# --- Pixels --------------------------------------------------------------------------------


def files(folder, size, background=(255, 255, 255)):
    """Pixels of all images, as `read_image` gives them."""
    return np.stack([read_image(folder / path, size, background) for path in PATHS])


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["decoded each time", "kept"])
def test_pixels_are_the_images_and_their_exact_mirror_images(folder, catalog, memory):
    latents = PixelLatents.of(catalog, 12, mirrored=True, memory=memory)
    assert (latents.count, latents.latent_shape) == (COUNT, (12, 12, 3))
    assert (latents.pixels is not None) == bool(memory), "expected to keep what fits, only that"
    expected = files(folder, 12) / np.float32(127.5) - 1
    rows = np.array([3, 0, COUNT + 3, 3])
    for _ in range(2):  # from the files, then from memory
        mean, logvar = latents.gather(rows)
        assert mean.dtype == logvar.dtype == np.float32, f"{mean.dtype}, {logvar.dtype}"
        np.testing.assert_array_equal(mean[[0, 1, 3]], expected[[3, 0, 3]])
        np.testing.assert_array_equal(mean[2], expected[3][:, ::-1], "not the mirror image")
        assert (np.exp(logvar) == 0).all(), "expected no variance"
    wide = latents.shaped(8, 16)
    expected = files(folder, (8, 16)) / np.float32(127.5) - 1
    np.testing.assert_array_equal(wide.gather(np.array([5, 6]))[0], expected[[5, 6]])


def test_random_colours_stand_behind_transparent_pixels(folder, catalog):
    """Of each use another, the same in every run; without a draw it is white."""
    latents = PixelLatents.of(catalog, 12, transparent=True, memory=1 << 20)
    np.testing.assert_array_equal(
        latents.gather(np.arange(COUNT))[0], files(folder, 12) / np.float32(127.5) - 1
    )
    (inputs, target), *_ = diffusion_examples(
        latents,
        Selection(COUNT),
        NoiseSchedule(prediction_type="sample"),
        LatentSpace(1.0),
        batch_size=2 * COUNT,
        stream=STREAM,
        positions=tf.data.Dataset.range(2 * COUNT),
        random_background=True,
    )
    assert inputs["noisy_latents"].shape == (2 * COUNT, 12, 12, 3)
    rgba = files(folder, 12, None).astype("float32")
    for position, image in enumerate(target.numpy()):
        own = rgba[STREAM.index(position, COUNT)]
        colour = 255 * STREAM.uniform("background", position, (3,)).numpy()
        over = composite(np.concatenate([own[..., :3], own[..., 3:] / 255], -1), colour)
        np.testing.assert_allclose(image, over / 127.5 - 1, atol=1e-6)
