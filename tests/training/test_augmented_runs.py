"""Runs with augmentation: told while training, folded away at the end. The warning on copies."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tiny import step_by_step

from latentddpm.conditions.conditions import Conditions
from latentddpm.config import DiffusionRun
from latentddpm.config.augment import STRENGTHS
from latentddpm.config_file import parse_config
from latentddpm.data.dataset import open_dataset
from latentddpm.errors import UserError
from latentddpm.info import describe
from latentddpm.models.archive import weights_digest
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.checkpoint_model import checkpoint_model
from latentddpm.training.copies import Copies, unlikely
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.augment import augment_notes
from latentddpm.training.plan.settle import settle_diffusion
from latentddpm.training.run.curves import Curve

UNET = {
    "channels": 8,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "attention_levels": [],
    "norm_groups": 4,
}
TRAINING = {
    "num_steps": 2,
    "batch_size": 4,
    "precision": "float32",
    "checkpoint_every": 1,
    "validate_every": 2,
    "log_every": 1,
}
AUGMENT = {"probability": 0.7, "variants": 3}


def config(augment=AUGMENT, **sections):
    data = {"resolution": 8, "validation_fraction": 0.2, "flip": True}
    own = {
        "data": {**data, **({"augment": augment} if augment else {})},
        "unet": UNET,
        "text": {"source": "none"},
        "training": TRAINING,
        "samples": {"images_per_prompt": 1, "num_steps": 1},
    }
    return parse_config(DiffusionRun, {**own, **sections})


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder of 16 images, a run of them that is augmented, and one that is not."""
    lab = tmp_path_factory.mktemp("augmented")
    (lab / "data").mkdir()
    for k in range(16):
        pixels = np.random.default_rng(k).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(lab / "data" / f"{k}.png")
    with step_by_step():
        train_diffusion(config(), lab / "data", "none", lab / "told", quiet=True)
        train_diffusion(config(None), lab / "data", "none", lab / "plain", quiet=True)
    return lab


def state(run, step=2):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


# --- Told, and folded away -------------------------------------------------------------------


@step_by_step()
def test_the_finished_model_is_told_nothing_and_draws_as_the_trained_one(lab):
    model = LatentDiffusion.load(lab / "told" / "model")
    assert model.conditions == Conditions(), "generating has nothing to say"
    assert model.unet.conditions == []
    told, plain = (len(state(lab / one)) for one in ("told", "plain"))
    assert told > plain, "the run itself has the layers of the condition"
    assert model.generate(seed=0, num_steps=1).shape == (1, 8, 8, 3)
    same = checkpoint_model(lab / "told" / "checkpoints" / "step-00000002")
    drawn = [one.generate(seed=0, num_steps=2) for one in (model, same)]
    np.testing.assert_array_equal(*drawn, "the newest checkpoint is the finished model")


@step_by_step()
def test_a_run_that_goes_on_ends_in_the_same_weights(lab, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(lab / "told", run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    train_diffusion(config(), lab / "data", "none", run, resume=True, quiet=True)
    found = state(run)
    for name, array in state(lab / "told").items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    digests = [
        weights_digest(LatentDiffusion.load(one / "model").unet) for one in (lab / "told", run)
    ]
    assert digests[0] == digests[1], "another model"


def test_other_strengths_are_noticed_when_a_run_goes_on(lab, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(lab / "told", run)
    shutil.rmtree(run / "model")
    with pytest.raises(UserError, match=r"data\.augment\.rotation 10\.0 → 20\.0"):
        train_diffusion(
            config({**AUGMENT, "rotation": 20}), lab / "data", "none", run, resume=True, quiet=True
        )


@pytest.mark.slow
@step_by_step()
def test_a_finished_model_is_trained_further_with_augmentation(lab, tmp_path):
    given = {
        "init": str(lab / "plain" / "model"),
        "training": TRAINING,
        "data": {"augment": AUGMENT},
    }
    given = parse_config(DiffusionRun, {**given, "samples": {"images_per_prompt": 1}})
    model = train_diffusion(given, lab / "data", None, tmp_path / "run", quiet=True)
    assert model.conditions == Conditions()


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"unet": {"kind": "classic"}}, "unet.kind=classic"),
        ({"lora": {"rank": 2}}, "lora.rank"),
        ({"conditions": {"lines": {"kind": "edges"}}}, "conditions.lines"),
        ({"conditions": {"changes": {"kind": "class"}}}, "conditions.changes"),
    ],
)
def test_what_augmentation_does_not_go_with_is_refused(lab, sections, words):
    init = {"init": str(lab / "plain" / "model")} if "lora" in sections else {}
    given = config(**init, **sections)
    with pytest.raises(UserError) as caught:
        settle_diffusion(given, None if init else "none")
    assert f"data.augment.probability: 0.7 beside {words}" in str(caught.value), caught.value


def test_what_would_have_no_effect_is_said_or_refused():
    strengths = dict.fromkeys(STRENGTHS, 0)
    with pytest.raises(UserError, match=r"data\.augment: .*nothing would be changed"):
        config({**AUGMENT, **strengths})
    (line,) = augment_notes(config({"rotation": 20}).data.augment)
    assert "off" in line, line
    assert "data.augment.rotation has no effect" in line
    assert augment_notes(config(None).data.augment) == []
    (line,) = augment_notes(config().data.augment)
    assert "70% of the examples" in line


def test_info_says_how_a_run_is_augmented(lab):
    shown = describe(lab / "told")
    assert "augment    70% of the examples, one of 3 variants: crop 0.1, " in shown, shown
    assert "\naugment" not in describe(lab / "plain")


# --- Copies ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Sixty smooth pictures, which differ as drawings do, at 32 pixels."""
    folder = tmp_path_factory.mktemp("copies")
    (folder / "data").mkdir()
    for k in range(60):
        Image.fromarray(blob(k)).save(folder / "data" / f"{k}.png")
    settings = {"resolution": 32, "validation_fraction": 0.4}
    return open_dataset(folder / "data", folder / "catalog", settings, quiet=True)


def blob(seed):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8))
    return np.asarray(small.resize((32, 32), Image.Resampling.BICUBIC))


def copies_of(dataset, **data):
    sections = {"data": {"resolution": 32, "validation_fraction": 0.4, **data}}
    return Copies(dataset, parse_config(DiffusionRun, sections))


def training_images(dataset, count):
    rows = dataset.training.rows(np.arange(count))
    return np.stack([dataset.catalog.image(int(row), 32) for row in rows])


@pytest.mark.parametrize("flip", [False, True])
def test_copies_are_seen_and_new_or_blurred_drawings_are_none(dataset, flip):
    copies = copies_of(dataset, flip=flip)
    noise = np.random.default_rng(0).normal(0, 12, (8, 32, 32, 3))
    copied = training_images(dataset, 8)
    if flip:
        copied = copied[:, :, ::-1]
    copied = np.clip(copied + noise, 0, 255).astype(np.uint8)
    new = np.stack([blob(1000 + k) for k in range(16)])
    mean = training_images(dataset, 30).mean(axis=0)
    blurred = np.stack([mean + (one - mean) * 0.2 for one in new]).astype(np.uint8)
    assert copies.look(100, new) <= 0.2
    assert copies.look(200, blurred) <= 0.2, "a blurred drawing is near to all, and a copy of none"
    assert copies.first is None
    assert copies.warning(None) == ""
    assert copies.look(300, copied) == 1
    assert copies.first == 300
    said = copies.warning(Curve(np.array([100, 200, 300]), np.array([0.5, 0.3, 0.4])))
    for part in ("8 of 8", "step 300", "data.augment.probability=0.5", "step 200", "keep_best"):
        assert part in said, f"expected {part} in {said!r}"
    assert "\n" not in said
    assert copies.look(400, new) <= 0.2
    assert copies.warning(None) == "", "the last drawings decide at the end"


def test_few_validation_images_are_helped_out_by_the_training_images(dataset):
    few = open_dataset(
        dataset.catalog.source.place,
        dataset.catalog.folder.parent,
        {"resolution": 32, "validation_fraction": 0.0},
        quiet=True,
    )
    copies = copies_of(few, flip=True)
    assert copies.look(1, training_images(few, 8)) == 1
    assert copies.look(2, np.stack([blob(1000 + k) for k in range(16)])) <= 0.2


def test_a_warning_is_rarer_than_one_in_a_thousand_by_chance():
    assert [unlikely(count) for count in (1, 2, 4, 8, 16, 32)] == [2, 3, 3, 4, 5, 7]


def test_what_is_near_is_logged_and_large_or_told_data_is_not_looked_at(lab, dataset):
    lines = map(json.loads, (lab / "plain" / "log.jsonl").read_text("utf-8").splitlines())
    near = [line["validation_near"] for line in lines if "validation_near" in line]
    assert len(near) == 1, "one validation"
    assert 0 <= near[0] <= 1
    told = parse_config(DiffusionRun, {"conditions": {"lines": {"kind": "edges"}}})
    assert Copies(dataset, told).look(1, training_images(dataset, 2)) is None
