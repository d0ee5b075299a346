"""Models that diffuse pixels: the same pipeline, with the identity as first stage."""

import numpy as np
import pytest

from latentddpm import LatentDiffusion
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.autoencoder.tiling import decode, encode
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import read_model_folder
from tests.support.tiny import pixel_model, step_by_step


def test_pixel_space_is_the_identity():
    images = np.random.default_rng(0).uniform(-1, 1, (2, 5, 7, 3)).astype("float32")
    space = PixelSpace(3)
    mean, logvar = encode(space, images)
    noise = np.ones_like(images)
    np.testing.assert_array_equal(decode(space, space.to_latents(mean, logvar, noise)), images)
    with pytest.raises(ArithmeticError, match="not finite"):
        decode(space, np.full((1, 2, 2, 3), np.nan))


@step_by_step()
def test_a_model_of_pixels_draws_the_same_after_save_and_load(tmp_path):
    model = pixel_model()
    model.save(tmp_path / "model")
    assert not (tmp_path / "model" / "vae.keras").exists()
    settings = {"seed": 3, "num_steps": 2, "num_images": 2}
    images = model.generate(**settings)
    assert images.shape[1:3] == (12, 12)
    loaded = LatentDiffusion.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.generate(**settings), images)
    assert "no autoencoder" in repr(loaded)

    facts = facts_of(read_model_folder(tmp_path / "model"))
    assert facts == loaded.facts
    assert facts.downsample_factor == 1

    picture = np.zeros((12, 12, 3), np.uint8)
    again = pixel_model(3).generate(init_image=picture, strength=0.5, seed=0, num_steps=2)
    assert again.shape == (1, 12, 12, 3)


def test_a_first_stage_that_is_not_known_is_refused(tmp_path):
    model = pixel_model()
    model.save(tmp_path / "model")
    manifest = tmp_path / "model" / "pipeline.json"
    manifest.write_text(manifest.read_text().replace('"none"', '"nona"'))
    with pytest.raises(UserError, match=r"first_stage.*'nona'.*'none'"):
        read_model_folder(tmp_path / "model")
