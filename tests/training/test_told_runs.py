"""Runs that are told conditions: what they learn, how they resume, and starts from models."""

import json
import shutil

import keras
import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.numpy import load_file
from tiny import step_by_step

from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.conditions.number import NumberCondition
from latentddpm.config import DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.data.conditions.rows import ConditionRows
from latentddpm.data.examples import noisy_examples
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.info import describe
from latentddpm.interop.lora_merge import merge_lora
from latentddpm.models.archive import weights_digest
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.diffusion_networks import build_networks
from latentddpm.training.plan.plan import plan_diffusion
from latentddpm.training.plan.settle import settle_diffusion
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.training.step.optimizer import FlatAdamW
from latentddpm.utils.pixels import read_metadata

UNET = {
    "channels": 8,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "attention_levels": [],
    "num_heads": 2,
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
COLOUR = {"colour": {"kind": "class"}}
SIZE = {"size": {"kind": "number", "column": "size"}}
COLOURS = ("blue", "green", "red")


def config(conditions=COLOUR, **sections):
    own = {
        "data": {"resolution": 8, "validation_fraction": 0.2},
        "unet": UNET,
        "text": {"source": "none"},
        "training": TRAINING,
        "samples": {"images_per_prompt": 1, "num_steps": 1},
    }
    return parse_config(DiffusionRun, {**own, "conditions": conditions, **sections})


def started(base, conditions, **sections):
    """Configuration of a run that starts from a model."""
    given = {"init": str(base), "training": TRAINING, "conditions": conditions, **sections}
    return parse_config(DiffusionRun, {"samples": {"images_per_prompt": 1}, **given})


def pictures(folder, *colours, count=4):
    """A folder for each colour, with a size for each image."""
    rows = []
    for colour in colours:
        (folder / colour).mkdir(parents=True)
        for k in range(count):
            name = f"{colour}/{k}.png"
            Image.new("RGB", (8, 8), (colour if colour in COLOURS else "gray")).save(folder / name)
            rows.append(json.dumps({"file_name": name, "size": k + 1}))
    (folder / "metadata.jsonl").write_text("\n".join(rows), "utf-8")
    return folder


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data` of three colours, a run `told` of them, and a run `plain`."""
    lab = tmp_path_factory.mktemp("lab")
    pictures(lab / "data", *COLOURS)
    with step_by_step():
        train_diffusion(config(), lab / "data", "none", lab / "told", quiet=True)
        train_diffusion(config({}), lab / "data", "none", lab / "plain", quiet=True)
    return lab


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value), f"expected one line, got {caught.value}"
    return str(caught.value)


# --- What is learned -----------------------------------------------------------------------


def test_what_only_conditions_tell_is_learned():
    """Each channel is −1 or 1, seen through noise alone: one by the word, one by the number."""
    bits = np.array([(0, 0), (0, 1), (1, 0), (1, 1)])
    word = ClassCondition("word", words=("low", "high"))
    number = NumberCondition("number", mean=(0.5,), std=(0.5,), range=(0.0, 1.0))
    told = [
        ConditionRows.of(word, [word.words[bit] for bit in bits[:, 0]]),
        ConditionRows.of(number, bits[:, 1].astype(float)),
    ]
    latents = np.broadcast_to(2.0 * bits[:, None, None] - 1, (4, 4, 4, 2))
    schedule = NoiseSchedule(prediction_type="sample")

    def final_loss(*sources):
        keras.utils.set_random_seed(0)
        specs = Conditions(tuple(one.condition for one in sources)).specs()
        small = {**UNET, "num_res_blocks": 0}
        trainer = DenoisingTrainer(UNet(**small, latent_channels=2, conditions=specs), schedule)
        trainer.compile(FlatAdamW(1e-2, weight_decay=0.0), jit_compile=False)
        batches = noisy_examples(
            latents,
            schedule,
            batch_size=16,
            condition_dropout=0,
            timesteps=np.array([999]),
            conditions=sources,
        )
        history = trainer.fit(batches, steps_per_epoch=20, epochs=4, verbose=0, shuffle=False)
        return history.history["loss"][-1]

    assert final_loss(*told) < 0.15, "not learned"
    assert final_loss() > 0.7, "it can be told from the noise"


def test_a_run_keeps_its_words_and_shows_one_row_for_each(lab):
    model = LatentDiffusion.load(lab / "told" / "model")
    assert model.conditions == Conditions((ClassCondition("colour", words=COLOURS),))
    assert model.unet.conditions == model.conditions.specs()
    (grid,) = (lab / "told" / "samples").glob("*.png")
    assert read_metadata(grid)["labels"] == [{"colour": word} for word in COLOURS]
    text = (lab / "told" / "config.yaml").read_text("utf-8")
    assert "conditions:\n  colour:\n    kind: class\n    column: folder\n" in text
    shown = describe(lab / "told")
    assert "condition  colour (class): column folder, dropped alone from 0.05 of" in shown, shown
    plain = (lab / "plain" / "config.yaml").read_text("utf-8")
    assert "conditions: {}" in plain
    shares = [yaml.safe_load(one)["text"]["dropout"] for one in (text, plain)]
    assert shares == [0.05, 0.0], "text is dropped alone where there are conditions"
    manifest = json.loads((lab / "plain" / "model" / "pipeline.json").read_text("utf-8"))
    assert "conditions" not in manifest, "a model without conditions has another manifest"


@step_by_step()
def test_a_run_that_goes_on_ends_in_the_same_weights(lab, tmp_path):
    """As after a kill: what came behind the checkpoint of step 1 is gone."""
    run = tmp_path / "run"
    shutil.copytree(lab / "told", run)
    shutil.rmtree(run / "model")
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    assert [one.name for one in run.glob("checkpoints/step-*")] == ["step-00000001"]
    train_diffusion(config(), lab / "data", "none", run, resume=True, quiet=True)
    known, found = (
        load_file(one / "checkpoints" / "step-00000002" / "state.safetensors")
        for one in (lab / "told", run)
    )
    for name, array in known.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    digests = [
        weights_digest(LatentDiffusion.load(one / "model").unet) for one in (lab / "told", run)
    ]
    assert digests[0] == digests[1], "another model"


def test_other_words_of_the_data_are_noticed_when_a_run_goes_on(lab, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(lab / "told", run)
    shutil.rmtree(run / "model")
    data = pictures(tmp_path / "data", "blue", "green", "pink")
    with pytest.raises(UserError):
        train_diffusion(config(), data, "none", run, resume=True, quiet=True)


# --- Runs that start from a model ----------------------------------------------------------


def planned(lab, base, conditions, out, data=None, **sections):
    given = started(lab / base / "model", conditions, **sections)
    return plan_diffusion(given, data or lab / "data", None, out, quiet=True)


@pytest.mark.slow
@step_by_step()
def test_a_conditioned_model_keeps_its_words_in_another_run(lab, tmp_path):
    data = pictures(tmp_path / "data", "green", "red")
    plan = planned(lab, "told", COLOUR, tmp_path / "run", data)
    (source,) = plan.conditions
    assert source.condition.words == COLOURS, "expected the model's words, not those of the data"
    given = started(lab / "told" / "model", COLOUR)
    model = train_diffusion(given, data, None, tmp_path / "run", quiet=True)
    assert model.conditions == LatentDiffusion.load(lab / "told" / "model").conditions


@pytest.mark.parametrize(
    ("conditions", "colours", "words"),
    [
        (COLOUR, ("green", "gren"), ["gren", "did you mean 'green'", "blue, green, red"]),
        ({"colour": {"kind": "labels"}}, COLOURS, ["colour.kind", "'labels'", "'class'"]),
        ({}, COLOURS, ["conditions.colour", "class", "--set conditions.colour.column="]),
        (SIZE, COLOURS, ["conditions.colour"]),
    ],
    ids=["unknown word", "other kind", "left out", "another instead"],
)
def test_what_does_not_fit_the_model_is_refused(lab, tmp_path, conditions, colours, words):
    data = pictures(tmp_path / "data", *colours)
    said = message(planned, lab, "told", conditions, tmp_path / "run", data)
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


@pytest.mark.parametrize("base", ["plain", "told"])
def test_a_model_with_further_conditions_begins_as_it_was(lab, tmp_path, base):
    conditions = SIZE if base == "plain" else {**SIZE, **COLOUR}
    plan = planned(lab, base, conditions, tmp_path / "run")
    own = Conditions(tuple(one.condition for one in plan.conditions))
    assert own.names == (["size"] if base == "plain" else ["colour", "size"]), "the model's first"
    unet, _, _ = build_networks(plan.run.config, plan.sources, own)
    before = LatentDiffusion.load(lab / base / "model").unet
    numbers = np.random.default_rng(0)
    inputs = {
        "noisy_latents": numbers.normal(size=(3, 8, 8, 3)).astype("float32"),
        "timesteps": np.array([0, 500, 999], "int32"),
    }
    rows = [{"colour": word, "size": (k,)} for k, word in enumerate(COLOURS)]
    told = own.vector_arrays(rows)
    known = {one["name"]: told[one["name"]] for one in before.conditions}
    expected = np.asarray(before({**inputs, **known}))
    np.testing.assert_array_equal(np.asarray(unet({**inputs, **told})), expected)


@pytest.mark.slow
@step_by_step()
def test_a_lora_of_a_conditioned_model_is_told_the_same(lab, tmp_path):
    lora, run = {"rank": 2}, tmp_path / "run"
    given = started(lab / "told" / "model", COLOUR, lora=lora)
    model = train_diffusion(given, lab / "data", None, run, quiet=True)
    assert model.conditions.names == ["colour"]
    base = LatentDiffusion.load(lab / "told" / "model")
    merged = LatentDiffusion.load(lab / "told" / "model")
    merge_lora(merged, run / "lora.safetensors")
    drawn = [
        one.generate(conditions={"colour": "red"}, seed=0, num_steps=1) for one in (base, merged)
    ]
    assert drawn[0].shape == drawn[1].shape == (1, 8, 8, 3)
    said = message(planned, lab, "told", {**COLOUR, **SIZE}, tmp_path / "other", lora=lora)
    assert "conditions.size" in said, said
    assert "LoRA" in said, said


@pytest.mark.slow
@step_by_step()
def test_a_distillation_is_guided_by_the_conditions(lab, tmp_path):
    given = started(lab / "told" / "model", COLOUR, distill={"kind": "lcm"})
    settled, _ = settle_diffusion(given, None)
    assert settled.distill.guidance_scale is not None, "expected guidance away from not told"
    model = train_diffusion(given, lab / "data", None, tmp_path / "run", quiet=True)
    assert model.conditions.names == ["colour"]
    losses = [
        json.loads(line)["loss"]
        for line in (tmp_path / "run" / "log.jsonl").read_text("utf-8").splitlines()
        if "loss" in json.loads(line)
    ]
    assert np.isfinite(losses).all(), f"losses {losses}"
    plain = started(lab / "plain" / "model", {}, distill={"kind": "lcm"})
    assert settle_diffusion(plain, None)[0].distill.guidance_scale is None


# --- Settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ({"colour": {"kind": "clas"}}, ["conditions.colour.kind", "class"]),
        ({"colour": {"kind": "number", "words": ["a"]}}, ["conditions.colour.words", "number"]),
        ({"colour": {"colum": "a"}}, ["conditions.colour.colum", "did you mean 'column'"]),
        ({"colour": {"dropout": 1.5}}, ["conditions.colour.dropout"]),
        ({"colour": "class"}, ["conditions.colour"]),
        ({"time": {}}, ["conditions", "'time'", "the network has it"]),
        ({"my colour": {}}, ["conditions", "'my colour'", "letters, digits and _"]),
        ({"a=b": {}}, ["conditions", "'a=b'", "letters, digits and _"]),
    ],
)
def test_a_bad_setting_is_named(conditions, words):
    said = message(parse_config, DiffusionRun, {"conditions": conditions})
    missing = [word for word in words if word not in said]
    assert not missing, f"expected {missing} in {said!r}"


@pytest.mark.parametrize("kind", ["classic", "basic"])
def test_a_network_that_takes_no_conditions_refuses_them(lab, tmp_path, kind):
    given = config(unet={"kind": kind})
    said = message(plan_diffusion, given, lab / "data", "none", tmp_path / "run", quiet=True)
    assert said == f"conditions: unet.kind={kind} takes none; expected unet"
