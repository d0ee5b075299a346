"""Runs that train a ControlNet: what learns, what they write, exact resume, refusals."""

import json

import keras
import numpy as np
import pytest
from circles import SIDE, few_circles, pixel_model
from click.testing import CliRunner
from PIL import Image
from safetensors.numpy import load_file
from tiny import few_emoji, quick_model, step_by_step

from latentddpm.cli import main
from latentddpm.conditions.control import ControlCondition, line_art
from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.conditions.control import ControlPictures
from latentddpm.data.examples import noisy_examples
from latentddpm.diffusion import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.denoisers.control import ControlNet
from latentddpm.pipeline.control.control import Control
from latentddpm.pipeline.control.folder import load_control, read_control_folder
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.control import add_control
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.sources import read_sources
from latentddpm.training.run.checkpoint import _variables
from latentddpm.training.step.denoising_trainer import DenoisingTrainer

RECIPE = {
    "control": {"kind": "edges"},
    "training": {
        "num_steps": 2,
        "batch_size": 4,
        "learning_rate": 0.01,
        "warmup_steps": 0,
        "ema_momentum": 0.5,
        "precision": "float32",
    },
    "samples": {"images_per_prompt": 1},
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data` (eight circles) and `base` (a model of their pixels)."""
    lab = tmp_path_factory.mktemp("lab")
    few_circles(lab / "data")
    pixel_model(num_res_blocks=0).save(lab / "base")
    return lab


def run(lab, out, steps=2, control=None, **options):
    recipe = {**RECIPE, "init": str(lab / "base")}
    recipe["training"] = {**recipe["training"], "num_steps": steps}
    recipe["control"] = control or recipe["control"]
    with step_by_step():
        return train_diffusion(recipe, lab / "data", None, out, quiet=True, **options)


def settings(lab, *overrides):
    return load_config(DiffusionRun, None, overrides, init=lab / "base")


def weights(folder):
    return load_control(folder).get_weights()


@pytest.fixture(scope="module")
def trained(lab):
    model = run(lab, lab / "run", steps=2)
    return model, lab / "run"


# --- Runs ----------------------------------------------------------------------------------


def test_only_the_control_net_learns(lab, trained):
    model, out = trained
    base = LatentDiffusion.load(lab / "base")
    for one, other in zip(model.unet.get_weights(), base.unet.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other, "the base was trained")
    control, start = load_control(out), ControlNet.from_unet(base.unet, hint_channels=[16])
    sizes = {key: value for key, value in control.get_config().items() if key != "dtype"}
    assert sizes.items() <= start.get_config().items()
    moved = [
        not np.array_equal(one, other)
        for one, other in zip(control.get_weights(), start.get_weights(), strict=True)
    ]
    assert np.mean(moved) > 0.9, "expected nearly all of the ControlNet to learn"
    stored = load_file(next(out.glob("checkpoints/step-*/state.safetensors")))
    largest = sum(array.size for name, array in stored.items() if name.startswith("model/"))
    assert largest < 1.05 * control.count_params(), "the base is in checkpoints"


def test_a_run_writes_what_identifies_its_control_net(lab, trained):
    _, out = trained
    folder = read_control_folder(out)
    assert folder.path == out / "control"
    assert (folder.base_model, folder.base_digest) == (
        "base",
        LatentDiffusion.load(lab / "base").digest,
    )
    assert folder.condition == {"kind": "edges"}
    assert not (out / "model").exists(), "a model, beside the ControlNet that was asked for"
    with Image.open(next((out / "samples").glob("*.png"))) as grid:
        assert grid.width >= 2 * SIDE, "expected line art beside the sample"


@pytest.mark.slow
def test_a_run_goes_on_exactly_where_it_stopped(lab, trained, tmp_path):
    parts = tmp_path / "parts"
    run(lab, parts, 1)
    run(lab, parts, 2, resume=True)
    for one, other in zip(weights(parts), weights(trained[1]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_a_run_on_pairs_tells_them_and_goes_into_its_contract(lab, tmp_path):
    run(lab, tmp_path / "run", control={"column": "outline"})
    folder = read_control_folder(tmp_path / "run")
    assert folder.condition == {"kind": "picture", "column": "outline"}
    contract = json.loads(
        next((tmp_path / "run").glob("checkpoints/step-*/run.json")).read_text("utf-8")
    )
    assert contract["config"]["control"]["column"] == "outline"
    assert "captions" in contract["data"], "another table of pictures would go unnoticed"


@pytest.mark.slow
def test_a_run_of_the_command_line_names_the_folder_and_generates(lab, tmp_path):
    common = ["--set", "training.precision=float32", "--set", "training.num_steps=1"]
    out = tmp_path / "run"
    answer = CliRunner().invoke(
        main,
        [
            *("train-diffusion", "--init", str(lab / "base"), "--data", str(lab / "data")),
            *("--set", "control.column=outline", "--out", str(out), "--quiet", *common),
        ],
    )
    assert answer.exit_code == 0, answer.output
    assert answer.output.strip().splitlines()[-1] == str(out / "control")
    info = CliRunner().invoke(main, ["info", str(out), str(out / "control")])
    assert "a ControlNet" in info.output
    assert "hint_channels: [16]" in info.output


@pytest.mark.slow
def test_a_run_on_latents_with_text_is_drawn_with(tmp_path):
    few_emoji(tmp_path / "data")
    base = quick_model()
    base.save(tmp_path / "base")
    recipe = {**RECIPE, "init": str(tmp_path / "base")}
    recipe["training"] = {**recipe["training"], "num_steps": 1}
    recipe["samples"] = {**recipe["samples"], "prompts": ["red apple"]}
    with step_by_step():
        train_diffusion(recipe, tmp_path / "data", None, tmp_path / "run", quiet=True)
        assert load_control(tmp_path / "run").image_factor == 2, "not of its autoencoder"
        how = {"num_steps": 1, "seed": 0, "output": "latents"}
        picture = line_art(np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype("uint8"))
        free, drawn = (
            base.generate("red apple", controls=controls, **how)
            for controls in ([], [Control(tmp_path / "run", picture)])
        )
    assert np.abs(free - drawn).max() > 1e-4


@pytest.mark.slow
def test_it_learns_to_use_the_picture_that_it_sees():
    """Images of one colour, which the picture tells: another one misleads."""
    keras.utils.set_random_seed(0)
    numbers = np.random.default_rng(0)
    latents = np.repeat(numbers.choice([-1.0, 1.0], (64, 1, 1, 3)), 8, 1).repeat(8, 2)
    schedule = NoiseSchedule(prediction_type="sample")
    controlled = add_control(pixel_model().unet, 1)
    trainer = DenoisingTrainer(controlled, schedule)
    trainer.compile(keras.optimizers.Adam(3e-3))

    def batches(shown, seed):
        how = {"batch_size": 16, "seed": seed, "conditions": [ArrayPictures(shown)]}
        return noisy_examples(latents, schedule, **how)

    def loss(shown):
        found = trainer.evaluate(batches(shown, 1), steps=8, verbose=0, return_dict=True)
        return found["loss"]

    before = loss(latents)
    trainer.fit(batches(latents, 0), steps_per_epoch=150, shuffle=False, verbose=0)
    right, wrong = loss(latents), loss(-latents)
    assert right < 0.65 * before, f"from {before} to {right}"
    assert right < 0.65 * wrong, f"{right} with the picture, {wrong} with its negative"
    saved = {id(variable) for variable in _variables(trainer).values()}
    assert not saved & {id(one) for one in controlled.unet.weights}


class ArrayPictures:
    """The images themselves as the pictures that tell them."""

    condition = ControlCondition()

    def __init__(self, latents):
        self.pictures = (latents.astype("float32") + 1) / 2

    def batch(self, images, mirrored, dropped, bits):
        return [self.pictures[images]]


# --- Pictures ------------------------------------------------------------------------------


def test_pictures_are_those_of_the_images_and_mirrored_with_them(lab):
    catalog = open_catalog(lab / "data", lab / "catalog", quiet=True)
    images, mirrored = np.array([3, 0, 3]), np.array([False, False, True])
    pairs = ControlPictures.of(ControlCondition(column="outline"), catalog, (SIDE, SIDE))
    for _ in range(2):  # read, then kept
        (found,) = pairs.batch(images, mirrored)
        assert found.shape == (3, SIDE, SIDE, 3)
        assert found.dtype == np.float32
        for one, image in zip(found, (3, 0), strict=False):
            file = lab / "data" / ".outlines" / f"{image}.png"
            np.testing.assert_allclose(one * 255, np.asarray(Image.open(file).convert("RGB")))
        np.testing.assert_array_equal(found[2], found[0][:, ::-1])
    edges = ControlPictures.of(ControlCondition(source="edges"), catalog, (SIDE, SIDE))
    (lines,) = edges.batch(images, mirrored)
    np.testing.assert_array_equal(lines[1] * 255, line_art(catalog.image(0, SIDE)))
    assert set(np.unique(lines)) == {0.0, 1.0}


def test_missing_pictures_are_counted_before_the_first_step(lab, tmp_path):
    few_circles(tmp_path / "data")
    (tmp_path / "data" / ".outlines" / "5.png").unlink()
    catalog = open_catalog(tmp_path / "data", tmp_path / "catalog", quiet=True)
    outline = ControlCondition(column="outline")
    with pytest.raises(UserError, match=r"control: 1 of 8 images have no picture, .*5\.png"):
        ControlPictures.of(outline, catalog, (SIDE, SIDE))
    with pytest.raises(UserError, match="no column 'outlines'"):
        ControlPictures.of(ControlCondition(column="outlines"), catalog, (SIDE, SIDE))
    Image.new("RGB", (16, 24)).save(tmp_path / "data" / ".outlines" / "5.png")
    with pytest.raises(UserError, match="1 of 8 pictures have another shape than their image"):
        ControlPictures.of(outline, catalog, (SIDE, SIDE))


# --- Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["control.kind=edges", "lora.rank=2"], "lora.rank: not beside control"),
        (["control.kind=edges", "distill.kind=lcm"], "distill.kind: not beside control"),
        (["control.kind=edges", "data.aspect_buckets=true"], "data.aspect_buckets: not beside"),
    ],
)
def test_what_does_not_go_with_a_control_net_is_refused(lab, overrides, message):
    with pytest.raises(UserError, match=message):
        read_sources(settings(lab, *overrides), None)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["control.kind=edges", "control.column=a"], "column is a setting of kind picture"),
        (["control.column=a", "control.suffix=.b.png"], "column or suffix, not both"),
        (["control.kind=canny"], "control.kind"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(lab, overrides, message):
    with pytest.raises(UserError, match=message):
        settings(lab, *overrides)


@step_by_step()
def test_a_control_net_needs_a_finished_model_of_images(lab, tmp_path):
    config = load_config(DiffusionRun, None, ["control.kind=edges"])
    with pytest.raises(UserError, match="name it with --init"):
        read_sources(config, "none")
    other = tmp_path / "classic"
    train_diffusion(
        {
            "unet": {"kind": "basic"},
            "data": {"resolution": SIDE},
            "training": {"num_steps": 1, "batch_size": 2, "precision": "float32"},
            "samples": {"images_per_prompt": 1, "num_steps": 1},
        },
        *(lab / "data", "none", other),
        quiet=True,
    )
    config = load_config(DiffusionRun, None, ["control.kind=edges"], init=other)
    with pytest.raises(
        UserError, match=r"for a network of kind unet of images, and .* is of basic"
    ):
        read_sources(config, None)


def test_a_run_without_control_is_what_it_was():
    assert DiffusionRun().control.kind == "none"
    assert not DiffusionRun().control.trained
