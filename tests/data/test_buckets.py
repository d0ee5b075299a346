"""Aspect-ratio buckets: every image in its nearest shape, batches of one shape, nothing lost."""

import collections
import fractions
import re
import shutil

import numpy as np
import pytest
import tensorflow as tf
from conftest import EMOJI
from PIL import Image
from tiny import tiny_autoencoder

from latentddpm.config import DiffusionData, DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.data.batches import LatentBatches
from latentddpm.data.buckets import (
    BucketSchedule,
    buckets_of,
    interleave,
    make_buckets,
    stream_name,
    table,
)
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import BLOCK, Selection, split_catalog
from latentddpm.data.images import read_image
from latentddpm.data.latents import encode
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.random import RandomStream
from latentddpm.data.shares import shared
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.sizes import check_sides
from latentddpm.training.run.contract import Contract, compare
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.utils.files import read_json_lines

NUMBERS = np.random.default_rng(0)


# --- Shapes --------------------------------------------------------------------------------


def test_the_shapes_of_512_pixels_are_those_of_kohya():
    """`make_bucket_resolutions((512, 512), 256, 1024, 64)` of sd-scripts, up to 2 : 1."""
    shapes = [(640, 384), (576, 448), (512, 512), (448, 576), (384, 640)]
    assert make_buckets(512, 64, 2.0).shapes == shapes
    widest = make_buckets(512, 64, 4.0).shapes
    assert len(widest) == 17, f"expected 17 shapes, got {widest}"
    assert widest[-1] == (256, 1024), f"expected 1024 × 256 as the widest, got {widest[-1]}"
    sdxl = make_buckets(1024, 64, 2.0).shapes
    assert {(896, 1152), (832, 1216), (768, 1344)} <= set(sdxl), f"SDXL's are not in {sdxl}"


@pytest.mark.parametrize("resolution", [64, 96, 256, 300, 1024])
@pytest.mark.parametrize(("step", "ratio"), [(8, 2.0), (16, 2.5), (64, 4.0)])
def test_no_shape_is_larger_than_the_square(resolution, step, ratio):
    if resolution == 64 == step:
        ratio = 2.0
        with pytest.raises(UserError, match="lower bucket_step"):
            make_buckets(resolution, step, ratio)
        return
    buckets = make_buckets(resolution, step, ratio)
    assert (resolution, resolution) in buckets.shapes
    for height, width in buckets.others:
        case = f"{width} × {height} at {resolution}"
        assert height % step == width % step == 0, f"{case}: no multiples of {step}"
        assert max(height, width) <= ratio * min(height, width), f"{case}: longer than {ratio}"
        assert height * width <= resolution**2, f"{case}: larger than the square"
        assert (width, height) in buckets.shapes, f"{case}: not upright as well"
        longer = min(height, width) + step
        assert longer * max(height, width) > resolution**2, f"{case}: one larger would fit"


def test_every_image_is_in_its_nearest_shape():
    buckets = make_buckets(512, 64, 4.0)
    width, height = NUMBERS.integers(1, 5000, (2, 2000))
    chosen = buckets.nearest(width, height)
    ratios = np.log([w / h for h, w in buckets.shapes])
    distance = np.abs(np.log(width / height)[:, None] - ratios)
    np.testing.assert_allclose(
        distance[np.arange(2000), chosen],
        distance.min(axis=1),
        atol=1e-12,
        err_msg="some image has a nearer shape than the one it was given",
    )
    turned = buckets.nearest(height, width)
    np.testing.assert_array_equal(
        turned, len(buckets.shapes) - 1 - chosen, "a turned image takes the turned shape"
    )


def test_squares_are_the_case_of_one_shape():
    square = buckets_of(DiffusionData(resolution=64))
    assert (square.shapes, square.others) == ([(64, 64)], ())
    assert not square.nearest(*NUMBERS.integers(1, 500, (2, 50))).any()
    everything = Selection(5)
    assert everything.parts(lambda start, stop: np.zeros(stop - start, int), 1) == [everything]
    assert BucketSchedule([7]).before(1000) == [1000]


def test_parts_of_a_selection_hold_each_image_once():
    count = 3 * BLOCK + 17
    labels, kept = NUMBERS.integers(0, 4, count), NUMBERS.random(count) < 0.7
    labels[labels == 2] = 3  # nothing is 2
    for selection, wanted in (
        (Selection(count), np.ones(count, bool)),
        (Selection(count, lambda start, stop: kept[start:stop]), kept),
    ):
        parts = selection.parts(lambda start, stop: labels[start:stop], 4)
        for label, part in enumerate(parts):
            rows = np.flatnonzero(wanted & (labels == label))
            assert len(part) == len(rows), f"label {label}: {len(part)}, expected {len(rows)}"
            np.testing.assert_array_equal(part.rows(np.arange(len(part))), rows)


# --- Turns ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_turns_are_the_seats_of_webster(seed):
    """The bucket of each step, known from its number alone, is that of dealing one by one."""
    numbers = np.random.default_rng(seed)
    sizes = [int(10 ** numbers.uniform(0, 8)) for _ in range(numbers.integers(1, 12))]
    turns, dealt, total = BucketSchedule(sizes), [0] * len(sizes), sum(sizes)
    for step in range(100):
        assert turns.before(step) == dealt, f"{sizes}: before step {step}"
        quotients = [
            fractions.Fraction(size, 2 * n + 1) for size, n in zip(sizes, dealt, strict=True)
        ]
        bucket = quotients.index(max(quotients))
        assert turns.bucket(step) == bucket, f"{sizes}: turn {step}"
        dealt[bucket] += 1
    for step in map(int, numbers.integers(0, 10**12, 20)):
        before = turns.before(step)
        assert sum(before) == step
        for had, size in zip(before, sizes, strict=True):
            share = fractions.Fraction(size, total)
            off, allowed = abs(had - step * share), (1 + len(sizes) * share) / 2
            assert off <= allowed, f"{sizes}: at step {step} {had} batches of {size} images"


SIZES = {(8, 4): 13, (4, 4): 40, (4, 8): 2}
"""Images of three shapes; of the last one fewer than a batch."""
BATCH = 4


def drawn(start, stop, processes=ONE_PROCESS):
    """For each step the shape, and which image of it each example is."""

    def part(shape, first, last):
        stream = RandomStream(3, stream_name("train", shape))

        def batches(positions, size):
            found = positions.map(
                lambda place: (tf.constant(shape), stream.index(place, SIZES[shape]))
            )
            return found.batch(size)

        return shared(range(first, last), BATCH, processes, batches)

    sized = {shape: range(count) for shape, count in SIZES.items()}
    dataset = interleave(sized, start, stop, BATCH, part)
    return [
        [(*shape, index) for shape, index in zip(shapes.tolist(), indices.tolist(), strict=True)]
        for shapes, indices in dataset.as_numpy_iterator()
    ]


def test_a_batch_holds_one_shape_and_an_epoch_every_image():
    steps = 3 * sum(SIZES.values()) // BATCH  # three epochs
    batches = drawn(0, steps)
    assert len(batches) == steps
    seen = collections.Counter()
    for step, batch in enumerate(batches):
        assert len(batch) == BATCH, f"step {step}: {batch}"
        assert len({one[:2] for one in batch}) == 1, f"step {step} mixes shapes: {batch}"
        seen.update(batch)
    for shape, count in SIZES.items():
        counts = [seen[(*shape, index)] for index in range(count)]
        assert max(counts) - min(counts) <= 1, f"{shape}: its images came {counts} times"
        # Three times each, but for what is left of the last batch.
        assert abs(sum(counts) - 3 * count) <= 1.5 * BATCH, f"{shape}: {sum(counts)} examples"


def test_a_run_goes_on_where_it_stood():
    whole = drawn(0, 30)
    for step in (1, 7, 16, 29):
        assert drawn(step, 30) == whole[step:], f"other batches after a restart at step {step}"
        assert drawn(0, step) == whole[:step]


@pytest.mark.parametrize("workers", [2, 3, 5])
def test_workers_share_each_batch(workers):
    """Their parts make up the batch of one process, and each has a part of every batch: with
    more workers than examples an empty one."""
    whole = drawn(0, 20)
    parts = [drawn(0, 20, ProcessGroup(index, workers)) for index in range(workers)]
    assert [len(part) for part in parts] == [20] * workers
    for step, batch in enumerate(whole):
        together = [one for part in parts for one in part[step]]
        assert together == batch, f"step {step}: expected the parts to be {batch}"


# --- Images, cache, training ---------------------------------------------------------------

DATA = {"resolution": 32, "aspect_buckets": True, "bucket_step": 16, "bucket_max_ratio": 3.0}
CROPS = {(32, 32): (64, 64), (16, 48): (64, 24), (48, 16): (20, 60)}
"""The shape, (height, width), that crops of some size, (width, height), take."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Square, landscape and portrait crops of emoji in turn, with captions: 5 of each."""
    folder = tmp_path_factory.mktemp("images")
    paths = sorted(EMOJI.rglob("*.png"))[:15]
    for number, path in enumerate(paths):
        width, height = list(CROPS.values())[number % 3]
        left, top = (64 - width) // 2, (64 - height) // 2
        crop = Image.open(path).convert("RGBA").crop((left, top, left + width, top + height))
        crop.save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"picture {number}", "utf-8")
    return folder


def small_autoencoder():
    """Latents of half the size."""
    return tiny_autoencoder(channels=4, channel_multipliers=(1, 1), norm_groups=2)


class Encoder:
    """Counts what `prepare_latents` encodes, and fails after so many batches."""

    def __init__(self, monkeypatch):
        self.autoencoder, self.shapes, self.fail_after = small_autoencoder(), [], None
        monkeypatch.setattr(encode, "_compiled", lambda model: self.encode)
        monkeypatch.setattr(encode, "BLOCK", 6)  # so that there are several

    def encode(self, images):
        if len(self.shapes) == self.fail_after:
            raise KeyboardInterrupt
        self.shapes.append(images.shape[1:3])
        return np.concatenate(self.autoencoder.encode(images), axis=-1)

    def prepare(self, folder, cache, buckets, mirrored=True):
        self.shapes = []
        return prepare_latents(
            open_catalog(folder, cache.parent / "catalog", quiet=True),
            cache,
            vae_digest="a",
            load_autoencoder=lambda: self.autoencoder,
            resolution=buckets,
            mirrored=mirrored,
            batch_size=2,
            dtype="float32",
        )


def check_moments(cache, folder, encoder):
    """Every image, at its shape, as the autoencoder has it."""
    for start, shape in enumerate(CROPS):
        numbers = range(start, 15, 3)
        pixels = np.stack([read_image(folder / f"{number:02}.png", shape) for number in numbers])
        images = pixels / np.float32(127.5) - 1
        kept = cache.shaped(shape[0] // 2, shape[1] // 2)
        assert kept.latent_shape == (shape[0] // 2, shape[1] // 2, 4)
        for side in (1, -1):
            found = kept.gather([number + 15 * (side < 0) for number in numbers])
            expected = encoder.autoencoder.encode(images[:, :, ::side])
            for part, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(
                    part, wanted, atol=1e-4, err_msg=f"moments at {shape}, read by {side}"
                )


def test_the_cache_holds_each_image_at_its_shape(folder, tmp_path, monkeypatch, capsys):
    """Also after an interruption; it is opened without encoding, and only at these shapes."""
    encoder, buckets = Encoder(monkeypatch), buckets_of(DiffusionData(**DATA))
    encoder.fail_after = 7
    monkeypatch.setattr(encode, "SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        encoder.prepare(folder, tmp_path / "cache", buckets)
    encoder.fail_after = None
    cache = encoder.prepare(folder, tmp_path / "cache", buckets)
    assert "9 of 15 images to encode, 6 were already" in capsys.readouterr().err
    check_moments(cache, folder, encoder)

    encoder.prepare(folder, tmp_path / "cache", buckets)
    assert not encoder.shapes, f"a cache that fits was encoded again: {encoder.shapes}"
    encoder.prepare(folder, tmp_path / "cache", make_buckets(32, 8, 2.0))
    assert "made with other aspect-ratio buckets" in capsys.readouterr().err
    encoder.prepare(folder, tmp_path / "cache", 32)
    assert "made with other aspect-ratio buckets" in capsys.readouterr().err
    assert set(encoder.shapes) == {(32, 32)}, "expected squares without buckets"


def test_a_changed_folder_is_encoded_where_it_changed(folder, tmp_path, monkeypatch):
    encoder, buckets = Encoder(monkeypatch), buckets_of(DiffusionData(**DATA))
    few = tmp_path / "few"
    shutil.copytree(folder, few, ignore=shutil.ignore_patterns("07.*"))
    encoder.prepare(few, tmp_path / "cache", buckets)
    shutil.copy(folder / "07.png", few)
    cache = encoder.prepare(few, tmp_path / "cache", buckets)
    assert encoder.shapes == [(16, 48)] * 2, "expected the new image and its mirrored copy alone"
    check_moments(cache, folder, encoder)


def run(steps=6, **data):
    """The settings of a few steps of a small network."""
    settings = {
        "data": {**DATA, "validation_fraction": 0.3, "flip": True, **data},
        "unet": {
            "channels": 8,
            "channel_multipliers": [1, 2],
            "num_res_blocks": 1,
            "attention_levels": [1],
            "num_heads": 2,
            "norm_groups": 4,
        },
        "training": {
            "precision": "float32",
            "num_steps": steps,
            "batch_size": 3,
            "warmup_steps": 0,
            "log_every": 1,
            "validate_every": 3,
            "checkpoint_every": 3,
        },
        "samples": {"num_steps": 1, "images_per_prompt": 1},
    }
    return parse_config(DiffusionRun, settings)


@pytest.mark.slow  # traces the step once a shape
def test_fit_takes_a_batch_of_each_shape(folder, tmp_path, monkeypatch):
    """Training and validation: one trace, shapes in turns, every held-back image once."""
    config = run()
    catalog = open_catalog(folder, tmp_path / "catalog", quiet=True)
    buckets = buckets_of(config.data)
    training, validation = (
        buckets.parts(images, catalog) for images in split_catalog(catalog, config.data)
    )
    assert set(training) == set(validation) == set(CROPS), "expected all shapes in both"
    said = table(training, validation, 3)
    for (height, width), images in training.items():
        line = rf"{width} × {height} +{len(images)} +{len(validation[height, width])}"
        assert re.search(line, said), f"expected {line} in {said}"

    cache = Encoder(monkeypatch).prepare(folder, tmp_path / "cache", buckets)
    images = training, validation
    batches = LatentBatches(images, cache, NoiseSchedule(), LatentSpace(1.0), None, config)
    shapes = [target.shape for _, target in batches.training(0, 6)]
    turns = BucketSchedule([len(images) for images in training.values()])
    expected = [list(training)[turns.bucket(step)] for step in range(6)]
    assert shapes == [(3, height // 2, width // 2, 4) for height, width in expected]
    held = [target.shape[0] for _, target in batches.validation()]
    assert sum(held) == sum(map(len, validation.values())), f"validation batches of {held}"

    sizes = {"channels": 4, "channel_multipliers": (1, 1), "num_res_blocks": 1, "norm_groups": 2}
    unet = UNet(**sizes, attention_levels=(1,), num_heads=1)
    trainer = DenoisingTrainer(unet, NoiseSchedule())
    trainer.compile("sgd")
    trainer.fit(batches.training(0, 6), steps_per_epoch=6, verbose=0, shuffle=False)
    loss = trainer.evaluate(batches.validation(), verbose=0, return_dict=True)["loss"]
    errors = [
        float(np.mean(np.square(unet(inputs) - target), axis=(1, 2, 3)).sum())
        for inputs, target in batches.validation()
    ]
    assert loss == pytest.approx(sum(errors) / sum(held), rel=1e-4), "the mean over all images"


def test_other_buckets_are_another_run():
    before = Contract.of(run(), {})
    for change, said in (
        ({"bucket_max_ratio": 4.0}, "data.bucket_max_ratio 3.0 → 4.0"),
        ({"aspect_buckets": False}, "data.aspect_buckets true → false"),
    ):
        assert compare(before, Contract.of(run(**change), {}), 3)[0] == [said]


def test_a_step_that_the_networks_cannot_halve_is_named():
    with pytest.raises(UserError, match=r"bucket_step 10 is not a multiple of 4.*8 or 12"):
        check_sides(run(bucket_step=10).data, 4)


@pytest.mark.slow
def test_a_resumed_run_is_the_run_of_one_go(folder, tmp_path, capsys):
    vae = tmp_path / "vae"
    LatentDiffusion(small_autoencoder(), None, None, image_size=(32, 32)).save(vae)

    def train(out, config, resume=False):
        place = {"latents": tmp_path / "latents"}
        model = train_diffusion(config, folder, vae, tmp_path / out, **place, resume=resume)
        lines = read_json_lines(tmp_path / out / "log.jsonl")
        timed = ("examples_per_second", "images_per_second", "steps_per_second")
        log = [{k: v for k, v in line.items() if k not in timed} for line in lines]
        return model.unet.get_weights(), log, capsys.readouterr().err

    whole, log, said = train("whole", run())
    assert "15 of 15 images to encode" in said
    assert re.search(r"48 × 16 +\d+ +\d", said), f"no table of buckets in {said}"
    assert [line["step"] for line in log if "loss" in line] == list(range(1, 7))
    train("parts", run(3))
    with pytest.raises(UserError, match=r"data.aspect_buckets true → false"):
        train("parts", run(aspect_buckets=False), resume=True)
    parts, other, said = train("parts", run(), resume=True)
    assert "to encode" not in said, "expected the cache to be used again"
    assert other == log, "expected the same log after a resume"
    for mine, wanted in zip(parts, whole, strict=True):
        np.testing.assert_array_equal(mine, wanted, "other weights after a resume")
