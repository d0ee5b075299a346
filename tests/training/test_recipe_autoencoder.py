"""`train-vae` with perceptual distance and discriminator, as a run: it resumes, splits, halves.

What runs step by step, without graphs, takes a third of the time; the slow tests compile.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import environment
from safetensors.numpy import load_file
from tiny import few_emoji, step_by_step, tiny_autoencoder, tiny_model

from latentddpm.config import AutoencoderRun
from latentddpm.config_file import parse_config
from latentddpm.errors import UserError
from latentddpm.info import describe
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.perceptual import PerceptualDistance
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.autoencoder import train_vae, whole_model
from latentddpm.training.autoencoder_networks import (
    build_adversary,
    build_perceptual,
)
from latentddpm.training.plan.settle import settle_vae
from latentddpm.training.run.contract import Contract
from latentddpm.training.step.adversarial import TERMS
from latentddpm.utils.files import read_json_lines

START, STEPS = 1, 3
CONFIG = {
    "data": {"resolution": 16, "validation_fraction": 0.25},
    "autoencoder": {
        "channels": 4,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "norm_groups": 2,
    },
    "adversarial": {"weight": 0.5, "start_step": START},
    "discriminator": {"channels": 4, "num_layers": 1, "norm_groups": 2, "learning_rate": 0.01},
    "training": {
        "precision": "float32",
        "num_steps": STEPS,
        "batch_size": 3,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "ema_momentum": 0.5,
        "log_every": 1,
        "validate_every": 1,
        "checkpoint_every": 1,
        "keep_checkpoints": STEPS,
    },
}


def settings(**changes):
    config = {name: dict(section) for name, section in CONFIG.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        config.setdefault(section, {})
        config = {**config, section: {**config[section], name: value} if name else value}
    return parse_config(AutoencoderRun, config)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    few_emoji(folder)
    return folder


def train(data, out, config, **options):
    return train_vae(config, data, out, quiet=True, **options)


def train_step_by_step(*arguments, **options):
    with step_by_step():
        return train(*arguments, **options)


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    train_step_by_step(data, out, settings())
    return out


def state(out, step=STEPS):
    return load_file(out / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


def changed(before, after, group):
    """Whether any variable of a group of checkpoints differs."""
    names = [name for name in before if name.rpartition("/")[0] == group]
    assert names, f"the checkpoint holds no {group}"
    return any(before[name].tobytes() != after[name].tobytes() for name in names)


def assert_same_run(out, other):
    """Every number of the last checkpoint and of the log."""
    one, two = state(out), state(other)
    unequal = [name for name in one if one[name].tobytes() != two[name].tobytes()]
    assert not unequal, f"after resuming {unequal[:5]} differ"
    logs = [read_json_lines(folder / "log.jsonl") for folder in (out, other)]
    for line in [*logs[0], *logs[1]]:
        line.pop("examples_per_second", None)
    assert logs[0] == logs[1], "the logs differ"
    best, again = (sorted((folder / "checkpoints" / "best").iterdir()) for folder in (out, other))
    assert [path.name for path in best] == [path.name for path in again], "another one is best"


def weights(one, other):
    return list(zip(one.get_weights(), other.get_weights(), strict=True))


def copy_until(out, step, other):
    """The run as it would be, had it been killed after `step`."""
    shutil.copytree(out, other)
    for later in range(step + 1, STEPS + 1):
        shutil.rmtree(other / "checkpoints" / f"step-{later:08d}")
        (other / "samples" / f"step-{later:08d}.png").unlink(missing_ok=True)
    shutil.rmtree(other / "model")
    return other


# --- The run -------------------------------------------------------------------------------


def test_the_discriminator_joins_and_all_is_logged(run):
    lines = read_json_lines(run / "log.jsonl")
    first, last = ([line for line in lines if "loss" in line][place] for place in (0, -1))
    assert {*TERMS, "reconstruction", "kl", "loss", "gradient_norm"} <= set(last), "not logged"
    assert not any(first[name] for name in TERMS), f"it started at once: {first}"
    assert last["adaptive_weight"] > 0, f"the adversary has no weight: {last}"
    assert last["discriminator_gradient_norm"] > 0, f"the discriminator stands still: {last}"
    for group in ("discriminator", "discriminator_optimizer"):
        assert changed(state(run, START), state(run, START + 1), group), f"{group} stands still"


@pytest.mark.parametrize("step", [pytest.param(START, marks=pytest.mark.slow), START + 1])
def test_it_goes_on_as_if_it_had_not_been_stopped(run, step, data, tmp_path):
    """Before the discriminator's first step, and after it."""
    again = copy_until(run, step, tmp_path / "again")
    train_step_by_step(data, again, settings(), resume=True)
    assert_same_run(run, again)


def test_validation_measures_likeness(run):
    last = read_json_lines(run / "log.jsonl")[-1]
    assert -1 < last["validation_ssim"] < 1, f"no SSIM among {last}"
    assert 0 < last["validation_psnr"] < 60, f"no PSNR among {last}"
    assert not {f"validation_{name}" for name in TERMS} & set(last), "the adversary is validated"


def test_the_finished_model_may_be_the_best_one(run, data, tmp_path):
    """A run that is done, of which the log says that step 1 was best, is finished with that."""
    again = tmp_path / "again"
    shutil.copytree(run, again)
    lines = read_json_lines(again / "log.jsonl")
    for line in lines:
        if line["step"] == 1 and "validation_loss" in line:
            line["validation_loss"] = 0.01
    (again / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")
    best = again / "checkpoints" / "best"
    shutil.rmtree(best)
    shutil.copytree(again / "checkpoints" / "step-00000001", best / "step-00000001")
    config = settings(training__keep_best=True, training__latent_normalization="channels")
    train_step_by_step(data, again, config, resume=True, allow_changes=True)
    model = load_archive(again / "model" / "vae.keras", Autoencoder)
    found, statistics = model.get_weights(), model.latent_statistics
    assert model.shift_factor == statistics["channel_mean"], "expected the channels' means"
    assert model.scaling_factor == pytest.approx([1 / std for std in statistics["channel_std"]])
    # After one step the average of the weights are the weights.
    for place, weight in enumerate(found):
        np.testing.assert_array_equal(weight, state(run, 1)[f"model/{place}"])
    assert "best       step 1, in checkpoints/best/step-00000001" in describe(again)


@pytest.mark.slow
def test_the_decoder_alone(run, data, tmp_path):
    """As sd-vae-ft-mse was made: latents keep their meaning to the byte."""
    config = settings(
        init=str(run), training__train="decoder", training__num_steps=1, adversarial__start_step=0
    )
    train_step_by_step(data, tmp_path / "run", config)
    before, after = (
        load_archive(out / "model" / "vae.keras", Autoencoder) for out in (run, tmp_path / "run")
    )
    for one, other in weights(before.encoder, after.encoder):
        assert one.tobytes() == other.tobytes(), "the encoder was trained"
    moved = [(one != other).any() for one, other in weights(before.decoder, after.decoder)]
    assert all(moved), f"{moved.count(False)} weights of the decoder stood still"
    assert after.scaling_factor == before.scaling_factor, "other latents"
    assert after.latent_statistics == before.latent_statistics, "other statistics"


@pytest.mark.slow
def test_a_new_decoder_comes_with_the_rest_of_its_model(tmp_path):
    model = tiny_model(text=False)
    model.save(tmp_path / "model")
    config = settings(init=str(tmp_path / "model"), training__train="decoder")
    changed = tiny_autoencoder(seed=1)
    whole_model(config, changed).save(tmp_path / "new")
    found = LatentDiffusion.load(tmp_path / "new")
    for one, other in weights(changed, found.autoencoder):
        np.testing.assert_array_equal(other, one, "the autoencoder is not the new one")
    for one, other in weights(model.unet, found.unet):
        np.testing.assert_array_equal(other, one, "the UNet is not that of the model")
    assert found.image_size == model.image_size, "the model's image size was not kept"
    assert found.defaults == model.defaults, "the model's defaults were not kept"


# --- What is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"training__train": "decoder"}, ("training.train=decoder", "init")),
        (
            {"training__train": "decoder", "training__latent_normalization": "channels"},
            ("training.latent_normalization=channels", "train=decoder", "training.train=all"),
        ),
        (
            {"training__best_metric": "perceptual"},
            ("training.best_metric=perceptual", "perceptual.source"),
        ),
        ({"discriminator__num_layers": 3}, ("num_layers", "at least 32", "16")),
        ({"discriminator__norm_groups": 3}, ("discriminator", "norm_groups=3")),
        ({"perceptual__source": "vgg"}, ("'vgg'", "'imagenet'", "no such file")),
        (
            {"perceptual__source": "hed", "data__resolution": 8},
            ("perceptual.source", "at least 16", "8"),
        ),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(changes, parts):
    with pytest.raises(UserError) as caught:
        settle_vae(settings(**changes))
    text = str(caught.value)
    assert "\n" not in text, f"expected one line, got {text!r}"
    missing = [part for part in parts if part not in text]
    assert not missing, f"{text!r} does not name {missing}"


def test_nothing_is_built_that_was_not_asked_for():
    config = parse_config(AutoencoderRun, {})
    assert build_adversary(config) is None, "a discriminator by default"
    assert build_perceptual(config) is None, "a perceptual distance by default"


def test_the_discriminator_has_an_optimizer_of_its_own():
    config = settings(training__precision="float16", training__learning_rate_schedule="cosine")
    adversary = build_adversary(config)
    scaled = adversary.optimizer
    assert isinstance(scaled, keras.optimizers.LossScaleOptimizer), "float16 without a loss scale"
    optimizer = scaled.inner_optimizer
    assert (optimizer.beta_1, optimizer.beta_2) == (0.5, 0.9), "not the betas of the field"
    assert not optimizer.use_ema, "averages that nobody looks at"
    rate = optimizer._learning_rate
    np.testing.assert_allclose([rate(0), rate(STEPS - START)], [0.01, 0.0], atol=1e-9)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"training__best_metric": "none"}, "training.best_metric"),
        ({"data__validation_fraction": 0}, "data.validation_fraction"),
    ],
)
def test_a_best_model_needs_something_to_be_best_at(changes, part, data, tmp_path):
    with pytest.raises(UserError, match=r"training\.keep_best") as caught:
        train(data, tmp_path / "run", settings(training__keep_best=True, **changes))
    assert part in str(caught.value), f"{caught.value}: does not name {part}"


# --- Compiled: precision, micro-batches, replicas, VGG16 -------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_compiled_it_goes_on_as_well(precision, data, tmp_path):
    """With micro-batches; in float16 the discriminator's loss scale waits for its first step."""
    config = settings(training__precision=precision, training__accumulation_steps=2)
    out = tmp_path / "run"
    train(data, out, config)
    again = copy_until(out, START + 1, tmp_path / "again")
    train(data, again, config, resume=True)
    assert_same_run(out, again)
    if precision == "float16":
        scales = [a.tolist() for name, a in state(out, START).items() if a.shape == ()]
        assert scales.count(2.0**15) >= 1, f"expected an untouched loss scale in {scales}"


@pytest.mark.slow
def test_a_perceptual_distance_goes_by_its_name(data, tmp_path):
    keras.utils.set_random_seed(0)
    distance = PerceptualDistance("Random (vgg16)", (0.0, 0.0, 0.0), (0.5, 0.5, 0.5))
    distance.save(tmp_path / "vgg.keras")
    config = settings(perceptual={"source": str(tmp_path / "vgg.keras"), "weight": 2.0})
    out = tmp_path / "run"
    train(data, out, config)
    lines = read_json_lines(out / "log.jsonl")
    trained, validated = lines[0], lines[-1]
    terms = 2 * trained["random_vgg16"] + trained["reconstruction"] + 1e-6 * trained["kl"]
    np.testing.assert_allclose(trained["loss"], terms, rtol=1e-5)
    assert validated["validation_random_vgg16"] > 0, f"not validated: {validated}"
    contract = Contract.parse((out / "checkpoints" / "step-00000003" / "run.json").read_bytes())
    known = contract.data["perceptual distance"]
    assert known.startswith("Random (vgg16), weights "), f"the run remembers {known}"
    distance.heads[0].assign(2 * distance.heads[0])
    distance.save(tmp_path / "vgg.keras")
    with pytest.raises(UserError, match="perceptual distance"):
        train(data, out, config, resume=True)


def train_on(devices, data, out):
    """The last checkpoint and log line, of spectral norm and R1 as well."""
    strategy = None
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(devices)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
    config = settings(discriminator__spectral_norm=True, adversarial__r1_weight=0.1)
    train(data, out, config, strategy=strategy)


@pytest.mark.slow
def test_two_replicas_equal_one_device(data, tmp_path):
    code = (
        "import sys, conftest, tensorflow as tf\n"
        "from pathlib import Path\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "one = tf.config.LogicalDeviceConfiguration()\n"
        "tf.config.set_logical_device_configuration(cpu, [one, one])\n"
        "from test_recipe_autoencoder import train_on\n"
        "data, out = map(Path, sys.argv[1:])\n"
        "for devices in (1, 2):\n"
        "    train_on(devices, data, out / str(devices))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code, data, tmp_path],
        cwd=Path(__file__).parent,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    one, two = (state(tmp_path / str(devices)) for devices in (1, 2))
    for name, array in one.items():
        np.testing.assert_allclose(two[name], array, atol=3e-5, err_msg=name)
    one, two = (read_json_lines(tmp_path / str(devices) / "log.jsonl") for devices in (1, 2))
    for ours, theirs in zip(two, one, strict=True):
        for name in theirs.keys() - {"examples_per_second"}:
            np.testing.assert_allclose(
                ours[name], theirs[name], rtol=1e-3, atol=1e-5, err_msg=f"{name}, {theirs}"
            )
