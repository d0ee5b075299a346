"""Models that diffuse pixels: the same pipeline, with the identity as first stage."""

import json
import shutil

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from latentddpm import LatentDiffusion
from latentddpm.cli import main
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.autoencoder.tiling import decode, encode
from latentddpm.pipeline.model_facts import facts_of
from latentddpm.pipeline.model_folder import read_model_folder
from tests.support.tiny import few_emoji, pixel_model, step_by_step


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


def command(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pixels") / "model"
    pixel_model(3, num_steps=2).save(folder)
    return folder


@step_by_step()
def test_generate_from_a_picture_and_inside_it(saved, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (12, 12, 3), "uint8")
    mask = np.zeros((12, 12), bool)
    mask[:, 7:] = True  # not a multiple of any factor
    for name, pixels in (("picture", picture), ("mask", mask)):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    out = tmp_path / "out.png"
    inputs = ("--init-image", tmp_path / "picture.png", "--mask", tmp_path / "mask.png")
    options = (*inputs, "--seed", 0, "--tile", 8, "--strategy", "one", "--out", out)
    done = command("generate", "--model", saved, *options)
    assert done.exit_code == 0, done.stderr
    assert "--tile: of no effect, since this model has no autoencoder" in done.stderr
    found = np.asarray(Image.open(out))
    np.testing.assert_array_equal(found[:, :7], picture[:, :7], "what is kept changed")
    assert (found[:, 7:] != picture[:, 7:]).mean() > 0.5, "nothing was repainted"
    again = command("generate", "--from", out, "--out", tmp_path / "again.png")
    assert again.exit_code == 0, again.stderr
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "again.png")), found)


def test_info_says_that_there_is_no_autoencoder(saved):
    said = command("info", saved).stdout
    assert "no vae     the UNet denoises the pixels" in said, said
    assert "convert --to" not in said, "that is for a UNet alone"
    with pytest.raises(UserError, match=r"a model of pixels, has no vae\.keras"):
        read_model_folder(saved).file("vae")


@pytest.mark.slow
@step_by_step()
def test_evaluate_measures_what_there_is(saved, tmp_path):
    """The bound by default, and pictures of pixels and generated images; no reconstructions."""
    few_emoji(tmp_path / "data", 40)
    options = ("--model", saved, "--data", tmp_path / "data", "--quiet")
    done = command("evaluate", *options, "--limit", 2, "--nll-timesteps", 5, "--json")
    assert done.exit_code == 0, done.stderr
    bound = json.loads(done.stdout)["bound"]
    assert (bound["levels"], bound["dimensions"]) == (256, 12 * 12 * 3)
    for variance in ("posterior", "beta"):
        values = bound[variance]
        assert np.isfinite(list(values.values())).all(), f"{variance}: {values}"
        assert values["l0"] > 0, "a probability is below one"
        assert values["rate"] == values["bound"], "there is no posterior beside it"

    keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalMaxPooling2D()]).save(
        tmp_path / "colours.keras"
    )
    out = tmp_path / "out"
    kinds = ("--generator", "--latents", "--extractor", tmp_path / "colours.keras")
    done = command("evaluate", *options, *kinds, "--num-images", 12, "--out", out)
    assert done.exit_code == 0, done.stderr
    assert " pixels of 432 numbers" in done.stdout, done.stdout
    results = json.loads((out / "evaluation.json").read_text("utf-8"))
    assert results["generator"]["settings"][0]["count"] == 12
    assert {path.name for path in out.glob("*.png")} >= {"latents.png", "nearest.png"}

    manifest = json.loads((saved / "pipeline.json").read_text("utf-8"))
    flow = shutil.copytree(saved, tmp_path / "flow") / "pipeline.json"
    flow.write_text(json.dumps({**manifest, "schedule": {"kind": "flow"}}), "utf-8")
    done = command("evaluate", "--model", flow.parent, *options[2:])
    assert done.exit_code == 2
    assert "--nll: the bound is that of DDPM's steps" in done.stderr, done.stderr

    done = command("evaluate", *options, "--autoencoder")
    assert done.exit_code == 2
    assert "--autoencoder: this model diffuses pixels and has no autoencoder" in done.stderr


def test_a_first_stage_that_is_not_known_is_refused(tmp_path):
    model = pixel_model()
    model.save(tmp_path / "model")
    manifest = tmp_path / "model" / "pipeline.json"
    manifest.write_text(manifest.read_text().replace('"none"', '"nona"'))
    with pytest.raises(UserError, match=r"first_stage.*'nona'.*'none'"):
        read_model_folder(tmp_path / "model")
