"""Runs that are told pictures: what only the picture tells is learned; models that draw from them;
pairs that are missing or change are said before the first step."""

import shutil
import warnings

import keras
import numpy as np
import pytest
from conftest import age
from PIL import Image
from tiny import perturb, step_by_step, tiny_autoencoder

from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.edges import edges_of
from latentddpm.conditions.kinds import KINDS
from latentddpm.conditions.picture import Stage
from latentddpm.config import ConditionConfig, DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.conditions.pictures import Frame, plan_maps
from latentddpm.data.examples import noisy_examples
from latentddpm.data.sources.walk import SECOND, Second
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.plan import plan_diffusion
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.utils.images.pixel_format import RGB

SIDE, COUNT = 16, 6
UNET = {
    "channels": 8,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "attention_levels": [],
    "num_heads": 2,
    "norm_groups": 4,
}
TRAINING = {
    **{"num_steps": 2, "batch_size": 4, "precision": "float32"},
    **{"checkpoint_every": 1, "validate_every": 2, "log_every": 1},
}
CONDITIONS = {
    "pair": {"kind": "picture"},
    "lines": {"kind": "edges"},
    "low": {"kind": "low_resolution", "factor": 2, "noise": 0.2},
    "hole": {"kind": "inpainting", "masks": 2},
}


def config(conditions=CONDITIONS, **sections):
    own = {
        "data": {"resolution": SIDE, "validation_fraction": 0.3, "flip": True},
        "unet": UNET,
        "text": {"source": "none"},
        "training": TRAINING,
        "samples": {"images_per_prompt": 1, "num_steps": 1},
    }
    return parse_config(DiffusionRun, {**own, "conditions": conditions, **sections})


def pictures(folder, side=SIDE, count=COUNT):
    """Random blocks, each with its negative as second picture."""
    folder.mkdir(parents=True)
    for k in range(count):
        cells = np.random.default_rng(k).integers(0, 256, (side // 4, side // 4, 3), np.uint8)
        image = cells.repeat(4, axis=0).repeat(4, axis=1)
        Image.fromarray(image).save(folder / f"{k}.png")
        Image.fromarray(255 - image).save(folder / f"{k}{SECOND}")
        for name in (f"{k}.png", f"{k}{SECOND}"):
            age(folder / name)
    return folder


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value), f"expected one line, got {caught.value}"
    return str(caught.value)


# --- What is learned -----------------------------------------------------------------------------


@pytest.mark.slow
def test_what_only_the_picture_tells_is_learned(tmp_path):
    """Images are seen through noise alone, and their second picture is the negative."""
    data, side = pictures(tmp_path / "data", 8, 32), 8
    catalog = open_catalog(data, tmp_path / "catalog", quiet=True, second=Second((SECOND,)))
    settings = ConditionConfig(kind="picture", through="pixels")
    stage = Stage(1, 3, 3, False)
    condition = KINDS["picture"].of_stage("pair", settings, stage, True)
    frame = Frame((side, side), RGB, stage, False, LatentSpace(1.0))
    maps = plan_maps(condition, settings, catalog, None).open(frame, tmp_path)
    images = [catalog.image(row, side) for row in range(len(catalog))]
    latents = np.stack(images).astype("float32") / 127.5 - 1
    schedule = NoiseSchedule(prediction_type="sample")

    def final_loss(*sources):
        keras.utils.set_random_seed(0)
        specs = Conditions(tuple(one.condition for one in sources)).specs()
        unet = UNet(**UNET, latent_channels=3, conditions=specs)
        trainer = DenoisingTrainer(unet, schedule)
        trainer.compile(keras.optimizers.Adam(1e-2), jit_compile=False)
        batches = noisy_examples(
            latents,
            schedule,
            batch_size=16,
            condition_dropout=0,
            timesteps=np.array([999]),
            conditions=sources,
        )
        history = trainer.fit(batches, steps_per_epoch=25, epochs=3, verbose=0, shuffle=False)
        return history.history["loss"][-1]

    told, mean = final_loss(maps), latents.var(axis=0).mean()
    assert told < 0.25 * mean, f"loss {told:.3f}; by heart or by the mean it is {mean:.3f}"
    assert final_loss() > 0.7 * mean, "the noise alone tells it"


# --- Whole runs ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data`, an autoencoder `vae`, and a run told all kinds of pictures."""
    lab = tmp_path_factory.mktemp("lab")
    pictures(lab / "data")
    small = tiny_autoencoder(channel_multipliers=(1, 1, 1), num_res_blocks=0)
    LatentDiffusion(small, None, None, image_size=(SIDE, SIDE)).save(lab / "vae")
    with step_by_step():
        train_diffusion(config(), lab / "data", lab / "vae", lab / "run", quiet=True)
    return lab


def trained(lab):
    """The model of the run, with weights that let everything show."""
    model = LatentDiffusion.load(lab / "run" / "model")
    perturb(model.unet)
    return model


def picture(seed=0, side=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


@step_by_step()
def test_a_model_keeps_its_pictures_and_draws_from_them(lab):
    model = trained(lab)
    names = [one["name"] for one in model.conditions.specs()]
    assert names == ["pair", "lines", "low", "low_level", "hole"]
    sizes = {one["name"]: one["size"] for one in model.conditions.specs()}
    assert sizes == {"pair": 4, "lines": 16, "low": 12, "low_level": 1, "hole": 5}
    assert not model.conditions["hole"].null
    assert model.conditions["pair"].null
    settings = {"seed": 3, "num_steps": 2, "guidance_scale": 1}
    told = {"pair": picture(1), "lines": picture(2)[..., 0], "low": picture(3, SIDE // 2)}
    plain, drawn = (model.generate(conditions=one, **settings) for one in ({}, told))
    assert (plain != drawn).any()
    np.testing.assert_array_equal(drawn, model.generate(conditions=told, **settings))
    for name in told:
        fewer = {key: one for key, one in told.items() if key != name}
        other = model.generate(conditions=fewer, **settings)
        assert (other != drawn).any(), f"{name} changes nothing"
    rows = model.generate(conditions=[told, {}], seed=[3, 3], num_steps=2, guidance_scale=1)
    assert np.abs(rows[:1].astype(int) - drawn).max() <= 1
    assert np.abs(rows[1:].astype(int) - plain).max() <= 1


@step_by_step()
def test_inpainting_keeps_the_rest_and_depends_on_it(lab):
    model = trained(lab)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[4:12, 4:12] = True
    settings = {"seed": 0, "num_steps": 2, "guidance_scale": 1}
    first, second = (
        model.generate(init_image=picture(k), mask=mask, **settings)[0] for k in (1, 2)
    )
    np.testing.assert_array_equal(first[~mask], picture(1)[~mask])
    np.testing.assert_array_equal(second[~mask], picture(2)[~mask])
    assert (first[mask] != second[mask]).any(), "the network sees what is around the hole"
    # The steps begin with the noise itself, so with no picture around only the map differs.
    gray = np.full((SIDE, SIDE, 3), 128, np.uint8)
    everything = model.generate(init_image=gray, mask=np.ones_like(mask), **settings)[0]
    plain = model.generate(**settings)[0]
    assert np.abs(everything.astype(int) - plain).max() <= 1
    text = message(model.generate, conditions={"hole": picture()})
    assert "hole: is told by the picture to start from and its mask" in text


def test_pictures_of_another_size(lab):
    model = LatentDiffusion.load(lab / "run" / "model")
    wide = picture()[:8]
    text = message(model.generate, conditions={"lines": wide})
    assert text.startswith("lines: an array of 16×8 pixels for a picture of 16×16 pixels")
    with pytest.warns(UserWarning, match="lines: 16×8 pixels, scaled and cropped to 16×16"):
        model.generate(conditions={"lines": Image.fromarray(wide)}, num_steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate(conditions={"low": Image.fromarray(picture(0, 64))}, num_steps=1)
    assert "line: is no condition of this model" in message(
        model.generate, conditions={"line": picture()}
    )


def test_caches_of_pictures_lie_beside_that_of_the_images(lab):
    latents = lab / "run" / "latents"
    shapes = {
        name: np.load(latents / name / "moments.npy").shape[0] for name in (".", "pair", "hole")
    }
    assert shapes == {".": 2 * COUNT, "pair": 2 * COUNT, "hole": 2 * 2 * COUNT}
    assert not (latents / "lines").exists(), "edges are made when they are used"


@step_by_step()
def test_a_run_that_goes_on_wants_the_same_pictures(lab, tmp_path):
    data, run = tmp_path / "data", tmp_path / "run"
    shutil.copytree(lab / "data", data)
    shutil.copytree(lab / "run", run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    plan_diffusion(config(), data, lab / "vae", run, resume=True, quiet=True)
    Image.fromarray(picture(9)).save(data / f"0{SECOND}")
    text = message(plan_diffusion, config(), data, lab / "vae", run, resume=True, quiet=True)
    assert "pictures of pair" in text, text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"data": {"aspect_buckets": True, "bucket_step": 4}},
            "data.aspect_buckets: true beside conditions.pair",
        ),
        ({"data": {"background": "random"}}, "data.background: random beside conditions.pair"),
        ({"conditions": {"c": {"kind": "edges", "low": 0.5}}}, "conditions.c.low: 0.5, expected"),
        ({"conditions": {"c": {"kind": "edges", "factor": 4}}}, "not a setting of kind edges"),
        ({"conditions": {"c": {"kind": "picture", "suffix": ".png"}}}, "conditions.c.suffix"),
    ],
)
def test_settings_that_pictures_cannot_have(lab, tmp_path, change, expected):
    data = {"resolution": SIDE, "validation_fraction": 0.3} | change.get("data", {})

    def plan():
        settings = config(change.get("conditions", CONDITIONS), data=data)
        plan_diffusion(settings, lab / "data", lab / "vae", tmp_path / "run", quiet=True)

    assert expected in message(plan)


def test_missing_pairs_are_said_before_the_first_step(lab, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(lab / "data", data)
    (data / f"2{SECOND}").unlink()
    (data / f"4{SECOND}").unlink()
    pair = config({"pair": {"kind": "picture"}})
    text = message(plan_diffusion, pair, data, "none", tmp_path / "run", quiet=True)
    assert text.startswith("conditions.pair: 2 of 6 images have no picture, such as "), text
    assert f"2{SECOND}: no such file" in text


@pytest.mark.slow
@step_by_step()
def test_a_model_of_pixels_is_told_pictures_and_goes_on_with_them(lab, tmp_path):
    given = config({"lines": {"kind": "edges"}, "hole": {"kind": "inpainting"}})
    train_diffusion(given, lab / "data", "none", tmp_path / "run", quiet=True)
    model = LatentDiffusion.load(tmp_path / "run")
    sizes = [one["size"] for one in model.conditions.specs()]
    assert sizes == [1, 4]
    lines = edges_of(picture().astype("float32") / 127.5 - 1)[..., 0] > 0
    images = model.generate(conditions={"lines": lines}, num_steps=1)
    assert images.shape == (1, SIDE, SIDE, 3)
    more = {
        "lines": {"kind": "edges"},
        "hole": {"kind": "inpainting"},
        "pair": {"kind": "picture"},
    }
    again = parse_config(
        DiffusionRun,
        {
            "init": str(tmp_path / "run"),
            "conditions": more,
            "training": TRAINING,
            "samples": {"images_per_prompt": 1},
        },
    )
    tuned = train_diffusion(again, lab / "data", None, tmp_path / "tuned", quiet=True)
    assert tuned.conditions.names == ["lines", "hole", "pair"]
    assert tuned.conditions["lines"] == model.conditions["lines"]
