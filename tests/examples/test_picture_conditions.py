"""`examples/picture_conditions.py`: what it measures is what was drawn."""

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import perturb

from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.edges import EdgesCondition
from latentddpm.conditions.inpainting import InpaintingCondition
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "picture_conditions.py"
SIDE = 16


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("picture_conditions", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def model_of(*conditions):
    keras.utils.set_random_seed(0)
    conditions = Conditions(conditions)
    unet = UNet(
        8,
        channel_multipliers=(1,),
        num_res_blocks=1,
        attention_levels=(),
        num_heads=2,
        latent_channels=3,
        norm_groups=4,
        conditions=conditions.specs() or None,
    )
    perturb(unet)
    defaults = {"num_steps": 2, "guidance_scale": 1.0}
    parts = (PixelSpace(3), unet, NoiseSchedule())
    return LatentDiffusion(
        *parts, image_size=(SIDE, SIDE), defaults=defaults, conditions=conditions
    )


def images(*seeds):
    cells = [np.random.default_rng(k).integers(0, 256, (4, 4, 3), np.uint8) for k in seeds]
    return np.stack(cells).repeat(4, axis=1).repeat(4, axis=2)


def test_line_art_is_compared_with_its_own_and_with_another(example):
    model = model_of(EdgesCondition("lines", channels=1))
    numbers, rows = example.line_art(model, images(1, 1), 0)
    assert numbers["f1_between_line_arts"] == 1, "both images are the same"
    assert numbers["f1"] == pytest.approx(numbers["f1_of_other_line_art"])
    other, _ = example.line_art(model, images(1, 2), 0)
    assert other["f1_between_line_arts"] < 0.9
    assert [row.shape for row in rows] == [(2, SIDE, SIDE, 3)] * 3


def test_holes_are_measured_inside_and_the_rest_stays(example):
    model = model_of(InpaintingCondition("hole", channels=4, through_pixels=True))
    pictures = images(1, 2, 3)
    numbers, (holed, told, same) = example.inpainted(model, pictures, 0, None)
    assert set(numbers) == {"hole", "error_told", "error_same_network"}
    outside = (holed == pictures).all(axis=-1)
    assert 0.3 < outside.mean() < 0.98
    for made in (told, same):
        np.testing.assert_array_equal(made[outside], pictures[outside])
        inside = (made - pictures.astype(float))[~outside] / 255
        assert np.sqrt(np.square(inside).mean()) > 0.1, "an untrained network hits nothing"
    assert 0.1 < numbers["error_told"] < 1
