"""Masks of the loss: found beside images, scaled, cropped and mirrored with them, and used."""

import json

import keras
import nasty
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from latentddpm.config import DataConfig, DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.data.catalog.split import Selection
from latentddpm.data.conditions.loss_masks import plan_masks
from latentddpm.data.dataset import open_dataset
from latentddpm.data.examples import diffusion_examples
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.data.random import RandomStream
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.training.plan.inherit import check_distillation
from latentddpm.training.plan.signals import check_of_images
from latentddpm.training.step.denoising_trainer import DenoisingTrainer

SUFFIX = {"mask": {"suffix": ".mask.png"}}
SIDE, FACTOR = 16, 4
LEFT = np.zeros((SIDE, SIDE), np.uint8)
LEFT[:, : SIDE // 2] = 255


@pytest.fixture
def folder(tmp_path):
    """Three images of 16 pixels: 0 with a mask of its left half, 1 gray, 2 with none."""
    for k in range(3):
        nasty.solid("RGB", (k, 0, 0), SIDE).save(tmp_path / f"{k}.png")
    Image.fromarray(LEFT).save(tmp_path / "0.mask.png")
    Image.fromarray(np.full((SIDE, SIDE), 51, np.uint8)).save(tmp_path / "1.mask.png")
    return tmp_path


def masks_of(folder, factor=FACTOR, **settings):
    config = parse_config(DataConfig, settings or SUFFIX)
    dataset = open_dataset(folder, folder.parent / "catalog", config, quiet=True)
    return plan_masks(config, dataset.catalog, factor, folder.parent / "masks")


def batch(masks, images, mirrored=None, size=(4, 4)):
    mirrored = np.zeros(len(images), bool) if mirrored is None else np.array(mirrored)
    return masks.batch(np.array(images), mirrored, size)


def test_masks_are_no_images_and_are_counted(folder):
    masks = masks_of(folder)
    assert masks.given.tolist() == [True, True, False], "two of three images have one"
    (line,) = masks.lines()
    assert "of 2 of 3 images; the others count everywhere" in line, "said in one line"
    assert masks_of(folder, captions="files") is None, "no setting, no masks"


def test_weights_are_the_mean_of_the_mask_over_each_position(folder):
    found = batch(masks_of(folder), [0, 1, 2])
    assert found.dtype == np.float32, "float32"
    np.testing.assert_array_equal(found[0], np.repeat([[1, 1, 0, 0]], 4, 0), "left half is white")
    np.testing.assert_allclose(found[1], 0.2, rtol=1e-3, err_msg="gray counts in part")
    np.testing.assert_array_equal(found[2], 1, "without a mask everything counts")
    thirds = batch(masks_of(folder, factor=16), [0], size=(1, 1))
    np.testing.assert_allclose(thirds, 0.5, rtol=1e-3, err_msg="a mean by area")


def test_black_has_the_unmasked_weight(folder):
    masks = masks_of(folder, mask={"suffix": ".mask.png", "unmasked_weight": 0.1})
    found = batch(masks, [0, 1])
    np.testing.assert_allclose(found[0, 0], [1, 1, 0.1, 0.1], rtol=1e-5, err_msg="u + (1 − u) m")
    np.testing.assert_allclose(found[1], 0.1 + 0.9 * 0.2, rtol=1e-3, err_msg="u + (1 − u) m")


def test_masks_are_mirrored_and_cropped_with_their_image(folder):
    wide = np.zeros((SIDE, 2 * SIDE), np.uint8)
    wide[:, : SIDE // 2 + 4] = 255  # of the middle square its left 4 pixels
    nasty.solid("RGB", (9, 9, 9), SIDE).resize((2 * SIDE, SIDE)).save(folder / "3.png")
    Image.fromarray(wide).resize((4 * SIDE, 2 * SIDE), 0).save(folder / "3.mask.png")
    masks = masks_of(folder)
    one, other = batch(masks, [3, 3], [False, True])
    np.testing.assert_allclose(one[0], [1, 0, 0, 0], atol=0.05, err_msg="cropped to the middle")
    np.testing.assert_array_equal(other, one[:, ::-1], "mirrored with the image")
    whole = batch(masks, [3], size=(4, 8))
    assert whole[0, 0, 2] > 0.9, "in a bucket of another shape it is cropped to that"
    assert whole[0, 0, 3] < 0.1, "in a bucket of another shape it is cropped to that"


def test_a_column_names_masks_relative_to_its_table(folder):
    (folder / "masks").mkdir()
    (folder / "0.mask.png").rename(folder / "masks/a.png")
    (folder / "1.mask.png").unlink()
    rows = [{"file_name": "0.png", "mask": "masks/a.png"}, {"file_name": "1.png", "mask": None}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    masks = masks_of(folder, mask={"column": "mask"})
    assert masks.given.tolist() == [True, False, False], "no value: no mask"
    np.testing.assert_array_equal(batch(masks, [0])[0, 0], [1, 1, 0, 0], "the same mask")


def test_masks_of_several_places_are_found_in_their_own(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    nasty.solid("RGB", (7, 7, 7), SIDE).save(other / "0.png")
    config = parse_config(DataConfig, SUFFIX)
    places = [f"{folder}:2", f"{other}"]
    dataset = open_dataset(places, other.parent / "c", config, quiet=True)
    masks = plan_masks(config, dataset.catalog, FACTOR, None)
    names = [dataset.catalog.name(i) for i in range(len(dataset))]
    given = {name: bool(has) for name, has in zip(names, masks.given, strict=True)}
    assert given[f"{folder.name}/0.png"], "the mask of its own place"
    assert not given[f"{other.name}/0.png"], "and not of another"


def test_what_is_wrong_with_masks_names_the_file(folder):
    Image.fromarray(LEFT[:8]).save(folder / "1.mask.png")
    with pytest.raises(UserError, match=r"1 of 3 masks .*1\.mask\.png: 16×8 pixels"):
        masks_of(folder)
    (folder / "1.mask.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"masks cannot be read, such as .*1\.mask\.png"):
        masks_of(folder)
    for k in range(2):
        (folder / f"{k}.mask.png").unlink()
    with pytest.raises(UserError, match=r"none of 3 images has a mask, such as .*0\.mask\.png"):
        masks_of(folder)
    Image.fromarray((LEFT > 0).astype(np.uint8)).save(folder / "0.mask.png")
    with pytest.raises(UserError, match=r"0\.mask\.png: has no pixel above 1"):
        batch(masks_of(folder), [0])


def test_settings_that_do_not_go_together_are_refused():
    both = {"mask": {"suffix": ".mask.png", "column": "mask"}}
    with pytest.raises(UserError, match="either suffix or column"):
        parse_config(DataConfig, both)
    with pytest.raises(UserError, match=r"mask\.suffix"):
        parse_config(DataConfig, {"mask": {"suffix": "mask"}})
    with pytest.raises(UserError, match=r"data\.mask"):
        check_of_images(parse_config(DiffusionRun, {"data": {"spatial_dims": 1, **SUFFIX}}))
    distilled = {"data": SUFFIX, "distill": {"kind": "lcm"}, "init": "model"}
    with pytest.raises(UserError, match=r"data\.mask: a distillation"):
        check_distillation(parse_config(DiffusionRun, distilled))


def examples(masks, **settings):
    moments = np.random.default_rng(0).normal(size=(3, 4, 4, 4)).astype(np.float32)
    return diffusion_examples(
        LatentsCache(3, np.concatenate([moments, moments])[:, :, :, :], mirrored=True),
        Selection(3),
        NoiseSchedule(),
        LatentSpace(1.0),
        batch_size=6,
        stream=RandomStream(0, "train-diffusion"),
        positions=tf.data.Dataset.range(6),
        masks=masks,
        **settings,
    )


def test_examples_have_weights_by_position_and_nothing_else_changes(folder):
    masks = masks_of(folder)
    plain, snr = (next(examples(None, **more).as_numpy_iterator()) for more in ({}, SNR))
    with_masks, both = (next(examples(masks, **more).as_numpy_iterator()) for more in ({}, SNR))
    assert len(plain) == 2, "without masks and weights there are two parts, as ever"
    for name, value in plain[0].items():
        np.testing.assert_array_equal(with_masks[0][name], value, f"{name} is the same")
    assert with_masks[2].shape == (6, 4, 4), "weights (B, h, w)"
    np.testing.assert_allclose(both[2], snr[2] * with_masks[2], rtol=1e-6, err_msg="a product")


SNR = {"min_snr_gamma": 5.0}


def test_nothing_is_learned_where_the_mask_is_black(folder):
    """The loss and its gradient are those of the white half alone."""
    keras.utils.set_random_seed(0)
    unet = UNet(
        8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_levels=(),
        norm_groups=4,
        latent_channels=2,
        zero_init=False,
    )
    trainer = DenoisingTrainer(unet, NoiseSchedule())
    trainer.compile("sgd", run_eagerly=True)
    inputs, target, weights = next(iter(examples(masks_of(folder))))
    prediction = unet(inputs).numpy()
    errors = ((prediction - target) ** 2).numpy().mean(-1)
    expected = (errors * weights.numpy()).mean()
    logs = trainer.test_on_batch(inputs, target, weights, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5, err_msg="mean of w · e²")
    black = np.where(weights.numpy()[..., None] > 0, target.numpy(), 1e3)
    logs = trainer.test_on_batch(inputs, black, weights, return_dict=True)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-5, err_msg="black counts nothing")
