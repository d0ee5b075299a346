"""Consistency distillation: its solver, its closed form, its recipe, and a LoRA of it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from analytic import exact_solution, normal, to_numpy
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tiny import (
    QUICK_UNET,
    UNET,
    few_emoji,
    perturb,
    quick_model,
    step_by_step,
    tiny_autoencoder,
    tiny_lora,
    tiny_model,
)

from latentddpm.cli import main
from latentddpm.conditions.classes import ClassCondition
from latentddpm.conditions.conditions import Conditions
from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.data.examples import noisy_examples
from latentddpm.diffusion import NoiseSchedule, samplers
from latentddpm.diffusion.guidance import ClassifierFreeGuidance
from latentddpm.diffusion.samplers.lcm import boundary_scalings, solver_timesteps
from latentddpm.errors import UserError
from latentddpm.generation.loras import Lora, lora_defaults, read_loras, remembered_loras
from latentddpm.interop.lora import add_lora, save_lora
from latentddpm.interop.lora_file import lora_settings
from latentddpm.interop.lora_merge import merge_lora
from latentddpm.models.denoisers.base import Denoiser, denoiser_inputs
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.settings import ModelFacts
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.inherit import check_distillation
from latentddpm.training.plan.sources import read_sources
from latentddpm.training.run.checkpoint import _variables
from latentddpm.training.step.consistency_trainer import ConsistencyTrainer
from latentddpm.training.step.optimizer import FlatAdamW, WarmLion
from latentddpm.utils.files import file_digest
from latentddpm.utils.pixels import read_metadata

MEAN, STD = 0.4, 0.5


def quick_unet(**changes):
    keras.utils.set_random_seed(0)
    unet = UNet(**{**UNET, **QUICK_UNET, **changes})
    perturb(unet)
    return unet


@keras.saving.register_keras_serializable(package="test")
class Rates(keras.layers.Layer):
    """x̂0 = a_t x + b_t, with a and b of each timestep from a table that is trained."""

    def __init__(self, tables, **kwargs):
        super().__init__(**kwargs)
        self.tables = [
            self.add_weight(shape=table.shape, initializer="zeros", name=f"table_{number}")
            for number, table in enumerate(tables)
        ]
        for weight, table in zip(self.tables, tables, strict=True):
            weight.assign(table)

    def call(self, latents, timesteps):
        slope, shift = (
            keras.ops.take(table, timesteps)[:, None, None, None] for table in self.tables
        )
        return slope * latents + shift


class Line(Denoiser):
    """The best network for x0 ~ N(MEAN, STD²), which is a line in x at each timestep."""

    def __init__(self, schedule):
        bar = schedule.alphas_cumprod
        pull = np.sqrt(bar) * STD**2 / (bar * STD**2 + 1 - bar)
        inputs = denoiser_inputs(4, 2, None)
        layer = Rates([pull, MEAN - pull * np.sqrt(bar) * MEAN])
        outputs = layer(inputs["noisy_latents"], keras.ops.cast(inputs["timesteps"], "int32"))
        super().__init__(inputs, outputs, {"latent_channels": 4})


def drawn(schedule, solver_steps, batch_size=32):
    """Batches of the recipe, of data that is one Gaussian."""
    latents = MEAN + STD * normal(0, (256, 1, 1, 4))
    grid = solver_timesteps(schedule.num_train_timesteps, solver_steps)
    return noisy_examples(latents, schedule, batch_size=batch_size, timesteps=grid)


def compiled(trainer, rate=1e-3, momentum=0.5):
    optimizer = FlatAdamW(rate, weight_decay=0, use_ema=True, ema_momentum=momentum)
    trainer.compile(optimizer)
    return trainer


@pytest.fixture(scope="module")
def model():
    """A model that takes words."""
    return quick_model()


# --- The solver and the two estimates ----------------------------------------------------------


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_is_f_after_a_step_of_the_ddim_sampler(prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    unet = quick_unet()
    trainer = ConsistencyTrainer(unet, schedule, stride=20)
    sampler = samplers.DDIMSampler(schedule, 50, "trailing")
    latents = normal(0, (1, 8, 8, 4))

    def network(latents, timestep):
        inputs = {"noisy_latents": to_numpy(latents), "timesteps": np.array([timestep], "int32")}
        return unet(inputs)

    for step in (0, 20, 48):
        t, earlier = sampler.timesteps[step : step + 2]

        def denoise(latents, index):
            return schedule.split(
                network(latents, sampler.timesteps[index]), latents, *sampler.rates(index)
            )

        solved, _, _ = sampler.step(step, latents, denoise, None, None)
        found, target = trainer({"noisy_latents": latents, "timesteps": np.array([t], "int32")})
        for estimate, x, time in ((found, latents, t), (target, solved, earlier)):
            skip, out = boundary_scalings(float(time))
            x0 = schedule.predict_x0(to_numpy(network(x, time)), to_numpy(x), int(time))
            expected = skip * x + out * x0
            scale = np.abs(expected).max()
            np.testing.assert_allclose(
                to_numpy(estimate) / scale, expected / scale, atol=1e-5, err_msg=f"f at t={time}"
            )
    last = {"noisy_latents": latents, "timesteps": np.array([19], "int32")}
    x0, epsilon = schedule.split(
        to_numpy(network(latents, 19)), latents, schedule.signal_rate[19], schedule.noise_rate[19]
    )
    np.testing.assert_allclose(
        to_numpy(trainer(last)[1]),
        schedule.signal_rate[0] * x0 + schedule.noise_rate[0] * epsilon,
        atol=1e-5,
        err_msg="at t = 0 the boundary condition makes f the solver's own result",
    )


def guided_alike(trainer, inputs, given, without):
    """Guidance of two examples, each of its own scale, held to that of the samplers."""
    latents, timesteps = tf.constant(normal(0, (2, 8, 8, 4))), tf.constant([999, 999])
    scales = tf.constant([1.0, 6.0])
    told, untold = trainer._told({name: tf.constant(one) for name, one in inputs.items()})
    found = to_numpy(trainer._guided(latents, timesteps, told, untold, scales))

    def network(latents, timesteps, told):
        return trainer.unet({"noisy_latents": latents, "timesteps": timesteps, **told})

    for number, scale in enumerate((1.0, 6.0)):
        part = slice(number, number + 1)
        halves = (
            {name: tf.constant(one[part]) for name, one in half.items()}
            for half in (given, without)
        )
        guided = ClassifierFreeGuidance(network, *halves, scale)
        expected = to_numpy(guided(latents[part], timesteps[part]))
        np.testing.assert_allclose(found[part], expected, atol=1e-5, err_msg=f"scale {scale}")


def test_the_teacher_is_guided_by_each_examples_own_scale(model):
    null = np.asarray(model.tokenizer([""]))[0]
    trainer = ConsistencyTrainer(model.unet, model.schedule, 20, 1e-3, model.text_encoder, null)
    words = (["red apple", "cat"], ["", ""])
    ids = [np.asarray(model.tokenizer(texts)) for texts in words]
    given, without = ({"context": model.text_encoder({"token_ids": one})} for one in ids)
    guided_alike(trainer, {"token_ids": ids[0]}, given, without)


@pytest.mark.parametrize("text", [True, False], ids=["with text", "of conditions alone"])
def test_the_teacher_is_guided_away_from_what_tells_nothing(text):
    """Of two conditions one is always told, in both halves."""
    digit = ClassCondition("digit", words=("0", "1", "2"))
    side = ClassCondition("side", null=False, words=("left", "right"))
    conditions = Conditions((digit, side))
    words = {"digit": ["2", "0"], "side": ["right", "left"]}
    told = {one.name: one.arrays(words[one.name])[one.name] for one in conditions}
    untold = {**told, "digit": digit.arrays([None, None])["digit"]}
    unet = quick_unet(context_dim=16 if text else None, conditions=conditions.specs())
    model = quick_model()
    null = np.asarray(model.tokenizer([""]))[0]
    of_text = (model.text_encoder, null) if text else (None, None)
    trainer = ConsistencyTrainer(unet, NoiseSchedule(), 20, 1e-3, *of_text, conditions.untold())
    inputs = dict(told)
    if text:
        ids = [np.asarray(model.tokenizer(texts)) for texts in (["red apple", "cat"], ["", ""])]
        inputs["token_ids"] = ids[0]
        told["context"], untold["context"] = (model.text_encoder({"token_ids": o}) for o in ids)
    guided_alike(trainer, inputs, told, untold)


def test_the_loss_is_the_pseudo_huber_distance():
    trainer = ConsistencyTrainer(
        Line(NoiseSchedule(prediction_type="sample")), NoiseSchedule(), 20
    )
    one, other = normal(0, (3, 2, 2, 4)), normal(1, (3, 2, 2, 4))
    x = {"timesteps": np.array([0, 400, 999])}
    terms = trainer.loss_terms(x, None, (one, other), None, True)
    c = 0.001 * np.sqrt(16)
    norms = np.sqrt(((one - other) ** 2).sum((1, 2, 3)) + c**2) - c
    expected = norms / np.sqrt(16)
    assert float(terms["loss"]) == pytest.approx(expected.mean(), rel=1e-5), "another distance"
    quarters = [float(terms[f"loss_q{number}"][0]) for number in (1, 2, 3, 4)]
    assert quarters == pytest.approx([*expected[:2], 0, expected[2]], rel=1e-5), f"{quarters}"


# --- Training ----------------------------------------------------------------------------------


def test_it_learns_the_solution_of_the_ode():
    """Data that is one Gaussian: f is known, x0 = μ + s (x − √ᾱ μ) / √(ᾱ s² + 1 − ᾱ).

    The teacher's own x̂0 is the mean of what x may come from, far from it. With the solver's few
    steps f is that of its steps of DDIM; with one call the images have the data's spread.
    """
    schedule = NoiseSchedule(prediction_type="sample")
    keras.utils.set_random_seed(0)
    network = Line(schedule)
    steps, latents = 8, normal(1, (4096, 1, 1, 4))
    once = samplers.LCMSampler(schedule, 1, original_steps=steps)

    def spread(network):
        denoise = lambda x, t: network({"noisy_latents": x, "timesteps": t})  # noqa: E731
        return to_numpy(once.sample(denoise, latents)), denoise

    before, denoise = spread(network)
    assert before.std() < 0.1, "expected the teacher to know no more than the mean"
    solver = samplers.DDIMSampler(schedule, steps, "trailing")
    limit = to_numpy(solver.sample(denoise, latents))
    trainer = compiled(ConsistencyTrainer(network, schedule, 1000 // steps), 0.02, 0.9)
    trainer.fit(drawn(schedule, steps), steps_per_epoch=300, verbose=0, shuffle=False)
    after, _ = spread(network)
    np.testing.assert_allclose(
        after, limit, atol=0.12, err_msg="expected the end of the solver's path in one call"
    )
    exact = exact_solution(latents, MEAN, STD, schedule.alphas_cumprod[999])
    assert np.corrcoef(after.ravel(), exact.ravel())[0, 1] > 0.999, "expected the path of the ODE"
    assert after.std() == pytest.approx(limit.std(), rel=0.1), "expected the data's spread"


@pytest.mark.parametrize("optimizer", [FlatAdamW, WarmLion])
def test_the_target_is_the_average_and_the_teacher_stays(optimizer):
    schedule = NoiseSchedule(prediction_type="sample")
    trainer = ConsistencyTrainer(Line(schedule), schedule, stride=20)
    trainer.compile(optimizer(0.1, use_ema=True, ema_momentum=0.5))
    start = [to_numpy(value) for value in trainer.student]
    with step_by_step():
        trainer.fit(drawn(schedule, 50), steps_per_epoch=3, verbose=0, shuffle=False)
    for value, first, teacher in zip(trainer.student, start, trainer.teacher, strict=True):
        assert not np.array_equal(to_numpy(value), first), "expected the student to train"
        np.testing.assert_array_equal(to_numpy(teacher), first, "expected the teacher to stay")
    averages = [to_numpy(value) for value in trainer._averages()]
    trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
    for value, average in zip(trainer.student, averages, strict=True):
        np.testing.assert_array_equal(to_numpy(value), average, "expected the EMA that is saved")
    saved = {id(variable) for variable in _variables(trainer).values()}
    assert not saved & {id(value) for value in trainer.teacher}, "the teacher is in checkpoints"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "expected one for a conditional UNet"),
        ({"text_encoder": "its own"}, "null_token_ids: expected"),
    ],
)
def test_what_a_conditional_unet_needs_is_asked_for(model, arguments, message):
    if arguments:
        arguments = {"text_encoder": model.text_encoder}
    with pytest.raises(ValueError, match=message):
        ConsistencyTrainer(model.unet, model.schedule, 20, **arguments)


def test_examples_are_of_the_solvers_timesteps_and_guidance(model):
    batches = noisy_examples(
        normal(0, (8, 4, 4, 4)),
        model.schedule,
        batch_size=64,
        captions=["apple"] * 8,
        tokenizer=model.tokenizer,
        timesteps=np.array([249, 499, 999]),
        guidance_scales=(2.0, 6.0),
    )
    inputs, _ = next(iter(batches))
    assert set(inputs["timesteps"].numpy()) == {249, 499, 999}, "other timesteps than the solver's"
    scales = inputs["guidance_scale"].numpy()
    assert 2 <= scales.min() < 2.5 < 5.5 < scales.max() < 6, "expected the range of the scales"


# --- Runs --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    lab = tmp_path_factory.mktemp("lab")
    few_emoji(lab / "data")
    model = tiny_model()
    model.autoencoder = tiny_autoencoder(channel_multipliers=(1, 2))
    model.save(lab / "base")
    return lab


RECIPE = {
    "distill": {"kind": "lcm", "solver_steps": 20},
    "lora": {"rank": 2, "targets": ["query", "conv1", "conv2"]},
    "training": {
        "num_steps": 2,
        "batch_size": 4,
        "learning_rate": 0.05,
        "warmup_steps": 0,
        "precision": "float32",
    },
    "samples": {"images_per_prompt": 1, "prompts": ["red apple"]},
}


def run(lab, out, steps, **options):
    recipe = {**RECIPE, "init": str(lab / "base")}
    recipe["training"] = {**recipe["training"], "num_steps": steps}
    with step_by_step():
        train_diffusion(
            recipe, lab / "data", None, out, latents=lab / "latents", quiet=True, **options
        )
    return load_file(out / "lora.safetensors")


@pytest.mark.slow
def test_a_lora_resumes_exactly_and_says_how_it_is_used(lab, tmp_path):
    whole = run(lab, tmp_path / "whole", 2)
    run(lab, tmp_path / "parts", 1)
    parts = run(lab, tmp_path / "parts", 2, resume=True)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(parts[name], value, f"{name}: expected the same run")
    stem = "lora_unet_mid_block_resnets_0_conv1"
    assert whole[f"{stem}.lora_down.weight"].shape == (2, 32, 3, 3), "expected LoCon's shapes"
    assert whole[f"{stem}.lora_up.weight"].shape == (32, 2, 1, 1), "expected LoCon's shapes"

    out = tmp_path / "apple.png"
    base, lora = str(lab / "base"), str(tmp_path / "whole")
    arguments = ["--prompt", "red apple", "--seed", "0", "--out", str(out)]
    with step_by_step():
        result = CliRunner().invoke(
            main, ["generate", "--model", base, "--lora", lora, *arguments]
        )
    assert result.exit_code == 0, result.output
    made = read_metadata(out)
    wanted = {"sampler": "lcm", "num_steps": 4, "guidance_scale": 1.0}
    wanted["sampler_options"] = {"original_steps": 20}
    found = {name: made[name] for name in wanted}
    assert found == wanted, f"{found}, expected the settings of the LoRA"
    model = LatentDiffusion.load(base)
    merge_lora(model, tmp_path / "whole" / "lora.safetensors")
    assert model.settings().sampler == "lcm", "expected its settings as the model's defaults"
    assert model.settings(sampler="ddim").sampler_options == {}, "options of another sampler"


def test_a_lora_of_convolutions_merges_to_what_was_trained(tmp_path):
    unet, changed = quick_unet(num_res_blocks=1), quick_unet(num_res_blocks=1)
    model = LatentDiffusion(None, unet, NoiseSchedule())
    add_lora(changed, 2, 4.0, ["conv1", "conv2", "query"])
    for number, variable in enumerate(changed.trainable_variables):
        variable.assign(0.1 * normal(number, variable.shape))
    path = tmp_path / "lora.safetensors"
    save_lora(changed, path, {}, "float16")
    size = path.stat().st_size
    save_lora(changed, path, {})
    assert size < 0.7 * path.stat().st_size, "expected float16 to be smaller"
    merge_lora(model, path)
    inputs = {"noisy_latents": normal(0, (2, 8, 8, 4)), "timesteps": np.array([3, 900])}
    expected = to_numpy(changed(inputs))
    np.testing.assert_allclose(
        to_numpy(unet(inputs)), expected, atol=1e-4, err_msg="another network when merged"
    )


def test_settings_of_a_lora_come_before_those_of_the_model(tmp_path):
    path = tiny_lora(tmp_path / "lora.safetensors")
    assert lora_settings(path) == {}, "expected none in an ordinary file"
    settings = {"sampler": "lcm", "num_steps": 4, "guidance_scale": 1.0}
    save_file(load_file(path), path, {"generation_settings": json.dumps(settings)})
    facts = ModelFacts(({"sampler": "ddim", "num_steps": 20},), (32, 32), True, 1000, 8)
    facts = facts.with_defaults(lora_defaults([Lora(path, 1.0)]))
    found = facts.settings()
    assert (found.sampler, found.num_steps, found.guidance_scale) == ("lcm", 4, 1.0), f"{found}"
    assert facts.settings(num_steps=8).num_steps == 8, "expected what is given to come first"


@pytest.mark.parametrize("text", ["[1]", "nonsense", '{"smapler": "lcm"}', '{"num_steps": "4"}'])
def test_settings_of_a_lora_that_are_malformed_are_refused(tmp_path, text):
    path = tiny_lora(tmp_path / "lora.safetensors")
    save_file(load_file(path), path, {"generation_settings": text})
    with pytest.raises(UserError, match="generation_settings in its header") as caught:
        lora_settings(path)
    assert "\n" not in str(caught.value), "expected one line"


def test_a_distillation_has_defaults_of_its_own(lab):
    config, _ = read_sources(
        load_config(DiffusionRun, None, ("distill.kind=lcm",), init=lab / "base"), None
    )
    check_distillation(config)
    assert config.distill.guidance_scale == [3.0, 3.0], "expected the model's own guidance"
    found = config.samples.sampler, config.samples.num_steps, config.samples.guidance_scale
    assert found == ("lcm", 4, 1.0), f"{found}"
    assert (config.training.ema_momentum, config.training.condition_dropout) == (0.95, 0.0)
    assert {"conv1", "ff_in"} < {*config.lora.targets}, f"{config.lora.targets}"
    given = ("distill.kind=lcm", "samples.num_steps=2", "training.ema_momentum=0.9")
    config, _ = read_sources(load_config(DiffusionRun, None, given, init=lab / "base"), None)
    assert (config.samples.num_steps, config.training.ema_momentum) == (2, 0.9), "not those given"


def test_a_lora_that_comes_with_a_model_has_a_name(tmp_path):
    path = tiny_lora(tmp_path / "lcm.safetensors")
    (found,) = read_loras(["lcm:0.5"], tmp_path)
    assert found == Lora(path, 0.5), f"{found}"
    trace = {"file": path.name, "sha256": file_digest(path), "scale": 0.5}
    again = remembered_loras(tmp_path / "elsewhere" / "a.png", [trace], tmp_path)
    assert again == [found], f"{again}, expected it in the model's folder"
    with pytest.raises(UserError, match="lmc: no such file"):
        read_loras(["lmc"], tmp_path)
