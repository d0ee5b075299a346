"""The autoencoder's step against a discriminator: two optimizers that leave each other alone."""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import environment
from tiny import step_by_step, tiny_autoencoder
from train_small import apart, descended

from latentddpm.models.discriminator import PatchDiscriminator
from latentddpm.models.perceptual import PerceptualDistance
from latentddpm.training.step.adversarial import TERMS, Adversary, adaptive_weight
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
from latentddpm.training.step.optimizer import FlatAdamW

KL_WEIGHT = 1e-3
RATE = 0.05


def batch(number=4, seed=0):
    numbers = np.random.default_rng(seed)
    return {
        "images": np.tanh(numbers.normal(size=(number, 16, 16, 3))).astype("float32"),
        "noise": numbers.normal(size=(number, 16, 16, 4)).astype("float32"),
    }


def autoencoder(**options):
    """Of one level, and few layers: what is traced of a step grows with them."""
    return tiny_autoencoder(seed=3, channel_multipliers=(1,), num_res_blocks=0, **options)


def build(optimizer=None, judge=None, dtype="float32", perceptual=None, steps=1, **options):
    """A tiny autoencoder against a tiny discriminator, by default on plain gradient descent."""
    model = autoencoder(dtype=dtype)
    discriminator = PatchDiscriminator(8, 2, norm_groups=4, dtype=dtype)
    adversary = Adversary(discriminator, judge or keras.optimizers.SGD(RATE), **options)
    trainer = AutoencoderTrainer(
        model, kl_weight=KL_WEIGHT, perceptual=perceptual, adversary=adversary
    )
    trainer.compile(optimizer or keras.optimizers.SGD(RATE), accumulation_steps=steps)
    return trainer


def fit(model, *batches, graph=False):
    """The weights before and after, of the autoencoder and of the discriminator; and the logs.

    Without a graph, which takes ten times as long to trace as these few steps to run.
    """
    models = model, model.adversary.discriminator
    before = [one.get_weights() for one in models]
    stacked = {name: np.stack([one[name] for one in batches]) for name in batches[0]}
    data = tf.data.Dataset.from_tensor_slices(stacked)
    with contextlib.nullcontext() if graph else step_by_step():
        logs = model.fit(data, verbose=0, shuffle=False).history
    return before, [one.get_weights() for one in models], {k: v[-1] for k, v in logs.items()}


def moved(before, after):
    return [bool((b != a).any()) for b, a in zip(before, after, strict=True)]


@pytest.fixture(scope="module")
def perceptual():
    keras.utils.set_random_seed(0)
    return PerceptualDistance("Random (vgg16)", (0.0, 0.0, 0.0), (0.5, 0.5, 0.5))


# --- What the step computes ----------------------------------------------------------------


@pytest.mark.parametrize(("loss", "graph"), [("hinge", True), ("vanilla", False)])
def test_a_step_equals_its_formulas(perceptual, loss, graph):
    """One tape over everything, λ from the whole loss at the last layer, two plain updates."""
    options = {"weight": 0.7, "loss": loss, "r1_weight": 0.3}
    model = build(perceptual=perceptual, **options)
    (start, judge_start), (found, judge_found), logs = fit(model, batch(), graph=graph)

    model.set_weights(start)
    discriminator = model.adversary.discriminator
    discriminator.set_weights(judge_start)
    images = tf.constant(batch()["images"])
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(images)
        outputs = model(batch(), training=True)
        decoded = outputs["reconstruction"]
        near = tf.reduce_mean(tf.abs(images - decoded))
        near += tf.reduce_mean(perceptual(decoded, images))
        fake, real = discriminator(decoded), discriminator(images)
        slopes = tape.gradient(tf.reduce_mean(real, axis=(1, 2, 3)), images)
        if loss == "hinge":
            generator = -tf.reduce_mean(fake)
            judged = tf.reduce_mean(tf.nn.relu(1 - real)) + tf.reduce_mean(tf.nn.relu(1 + fake))
        else:
            generator = tf.reduce_mean(tf.math.softplus(-fake))
            judged = tf.reduce_mean(tf.math.softplus(-real) + tf.math.softplus(fake))
        judged = 0.5 * judged + 0.15 * tf.reduce_mean(tf.reduce_sum(slopes**2, (1, 2, 3)))
        mean, logvar = outputs["mean"], outputs["logvar"]
        kl = tf.reduce_sum(0.5 * (mean**2 + tf.exp(logvar) - 1 - logvar)) / len(mean)
    last = model.autoencoder.decoder.layers[-1].conv.kernel.value
    weight = adaptive_weight(tape.gradient(near, last), tape.gradient(generator, last))
    with tape:
        total = near + KL_WEIGHT * kl + weight * 0.7 * generator
    for network, loss_of, weights in (
        (model, total, found),
        (discriminator, judged, judge_found),
    ):
        values = [v.value for v in network.trainable_variables]
        gradients = tape.gradient(loss_of, values)
        for variable, gradient, end in zip(
            network.trainable_variables, gradients, weights, strict=True
        ):
            expected = np.asarray(variable) - RATE * gradient.numpy()
            np.testing.assert_allclose(end, expected, atol=2e-5, err_msg=variable.path)

    expected = {"generator": generator, "kl": kl, "adaptive_weight": weight, "loss": total}
    expected |= {"logits_real": tf.reduce_mean(real), "logits_fake": tf.reduce_mean(fake)}
    for name, value in expected.items():
        np.testing.assert_allclose(logs[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    assert set(TERMS) <= set(logs), f"not logged: {set(TERMS) - set(logs)}"
    assert logs["random_vgg16"] > 0, "the perceptual term is not logged"


@pytest.mark.slow
def test_the_discriminator_gets_its_say_little_by_little():
    """A step of plain descent is linear in the weight: a quarter of it is a quarter of the way."""
    adversary = build(start_step=3, warmup_steps=4, adaptive=False).adversary
    shares = [float(adversary.share(step)) for step in range(9)]
    assert shares == [0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1], f"got {shares}"

    def kernel(**options):
        model = build(adaptive=False, **options)
        fit(model, batch())
        return np.asarray(model.autoencoder.decoder.last_kernel)

    without, whole, quarter = (
        kernel(weight=0.0),
        kernel(weight=0.8),
        kernel(warmup_steps=4, weight=0.8),
    )
    np.testing.assert_allclose(quarter - without, (whole - without) / 4, atol=1e-6)
    assert np.abs(whole - without).max() > 1e-4, "the adversarial term moves nothing"


@pytest.mark.slow
def test_the_terms_move_the_autoencoder(perceptual):
    """diffusers' script takes the perceptual loss without gradients: there it moves nothing."""
    plain, watched, played = (
        fit(build(**options), batch())[1][0]
        for options in (
            {"start_step": 1},
            {"start_step": 1, "perceptual": perceptual},
            {"adaptive": False, "weight": 0.2},
        )
    )
    assert any(moved(plain, watched)), "the perceptual term changes no weight"
    assert any(moved(plain, played)), "the adversarial term changes no weight"


@pytest.mark.parametrize("term", ["perceptual", "generator"])
def test_terms_fall_along_their_gradient(perceptual, term):
    """Finite difference: a small step of the decoder's last kernel down a term's gradient."""
    model = build(perceptual=perceptual)
    kernel = model.autoencoder.decoder.last_kernel

    def value():
        decoded = model(batch())["reconstruction"]
        if term == "perceptual":
            return tf.reduce_mean(perceptual(decoded, batch()["images"]))
        adversary = model.adversary
        return tf.reduce_mean(adversary.generator_loss(adversary.discriminator(decoded)))

    with tf.GradientTape() as tape:
        start = value()
    gradient = tape.gradient(start, kernel.value).numpy()
    step = 1e-2 * gradient / np.linalg.norm(gradient)
    values = []
    for change in (step, -2 * step):
        kernel.assign_add(change)
        values.append(float(value()))
    expected = 2 * float((gradient * step).sum())
    np.testing.assert_allclose(values[0] - values[1], expected, rtol=0.05)
    assert expected > 0, f"the {term} term has no gradient at the last layer"


def test_neither_step_touches_the_other():
    still = keras.optimizers.SGD(0.0)
    before, after, _ = fit(build(optimizer=still), batch())
    assert not any(moved(before[0], after[0])), "the discriminator's step moved the autoencoder"
    assert any(moved(before[1], after[1])), "the discriminator stood still"
    together = fit(build(), batch())[1][0]

    before, after, _ = fit(build(judge=keras.optimizers.SGD(0.0)), batch())
    assert not any(moved(before[1], after[1])), "the autoencoder's step moved the discriminator"
    for alone, both in zip(after[0], together, strict=True):
        np.testing.assert_array_equal(
            alone, both, "the discriminator's gradients leak into the autoencoder's"
        )


def test_nothing_leaks_into_the_next_step():
    """diffusers' script leaves gradients of one loss in the other's buffers."""
    pair = batch(seed=0), batch(seed=1)
    first = build()
    fit(first, pair[0])
    again = build()
    again.set_weights(first.get_weights())
    again.adversary.discriminator.set_weights(first.adversary.discriminator.get_weights())
    _, fresh, _ = fit(again, pair[1])
    _, going_on, _ = fit(first, pair[1])
    for one, other in zip(fresh[0] + fresh[1], going_on[0] + going_on[1], strict=True):
        np.testing.assert_array_equal(one, other, "the second step remembers the first")


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_it_starts_later(graph):
    judge = keras.optimizers.LossScaleOptimizer(FlatAdamW(1e-3))
    model = build(start_step=2, judge=judge)
    before, after, logs = fit(model, batch(), batch(seed=1), graph=graph)
    assert not any(moved(before[1], after[1])), "the discriminator learned before its time"
    assert int(judge.iterations) == 0, "its optimizer took a step"
    assert float(judge.dynamic_scale) == judge.initial_scale, "its loss scale was changed"
    assert {name: logs[name] for name in TERMS} == dict.fromkeys(TERMS, 0.0), "expected zeros"

    alone = AutoencoderTrainer(autoencoder(), kl_weight=KL_WEIGHT)
    alone.compile(keras.optimizers.SGD(RATE))
    for data in (batch(), batch(seed=1)):
        with step_by_step():
            alone.train_on_batch(data)
    for ours, theirs in zip(after[0], alone.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg="not a plain step")

    before, after, logs = fit(model, batch(seed=2), graph=graph)
    assert any(moved(before[1], after[1])), "the discriminator did not start"
    assert logs["adaptive_weight"] > 0, "the adversary has no weight"


def test_only_the_decoder():
    """As sd-vae-ft-mse was made: what latents mean stays the same."""
    trainer = build()
    model = trainer.autoencoder
    model.encoder.trainable = False
    images = batch()["images"]
    mean = np.asarray(model.encode(images)[0])
    decoder = model.decoder.get_weights()
    fit(trainer, batch())
    np.testing.assert_array_equal(model.encode(images)[0], mean, "the encoder moved")
    assert all(moved(decoder, model.decoder.get_weights())), "some of the decoder stood still"


def test_a_step_that_is_not_finite_changes_nothing():
    bad = batch()
    bad["images"][1, 3, 3] = np.nan
    model = build(optimizer=FlatAdamW(1e-3), judge=FlatAdamW(1e-3))
    fit(model, batch())
    states = [*model.optimizer.variables, *model.adversary.optimizer.variables]
    kept = [np.asarray(state) for state in states]
    before, after, logs = fit(model, bad)
    assert not any(moved(before[0] + before[1], after[0] + after[1])), "weights were changed"
    assert not any(moved(kept, [np.asarray(s) for s in states])), "optimizers were changed"
    assert logs["skipped"] == 1, "the log does not say that the step was skipped"


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 3])
def test_micro_batches_equal_one_batch(steps):
    def end(steps):
        model = build(steps=steps, r1_weight=0.1)
        return fit(model, batch(5), batch(5, seed=1), graph=True)

    (_, whole, logs), (_, parts, logs_of_parts) = end(1), end(steps)
    for one, other in zip(whole[0] + whole[1], parts[0] + parts[1], strict=True):
        np.testing.assert_allclose(other, one, atol=2e-5, err_msg="other weights")
    for name, value in logs.items():
        np.testing.assert_allclose(logs_of_parts[name], value, rtol=1e-3, atol=1e-6, err_msg=name)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(dtype):
    """On the spot, at rate 0: a loss scale in float16 first has to come down to where it fits."""
    still = {"optimizer": keras.optimizers.SGD(0.0), "judge": keras.optimizers.SGD(0.0)}
    full = fit(build(), batch())
    half = fit(build(dtype=dtype, **still), *[batch()] * 12, graph=True)
    for name in ("adaptive_weight", "gradient_norm", "discriminator_gradient_norm"):
        np.testing.assert_allclose(half[2][name], full[2][name], rtol=0.2, err_msg=name)
    assert half[2]["skipped"] == 0, "the last step was skipped"


def test_the_adversary_is_no_part_of_the_model(tmp_path):
    plain, model = AutoencoderTrainer(autoencoder()), build()
    plain.compile("sgd")
    assert len(model.weights) == len(plain.weights), "the discriminator counts as the model's"
    own = {"model", "optimizer"}
    assert set(plain.checkpoint_groups()) == own, "another network's state in a plain checkpoint"
    more = {"discriminator", "discriminator_optimizer"}
    assert set(model.checkpoint_groups()) == own | more, "the adversary's state would be lost"
    logs = model.evaluate(tf.data.Dataset.from_tensors(batch()), verbose=0, return_dict=True)
    assert set(logs) == {"loss", "reconstruction", "kl", "mse"}, f"validation measures {set(logs)}"


# --- Replicas ------------------------------------------------------------------------------


def train_on(devices, batch_size=5):
    """Of steps with Adam, spectral norm, R1 and an uneven batch: the first one's gradients, the
    weights after three, and the logs.
    """
    strategy = tf.distribute.get_strategy()
    if devices > 1:
        strategy = tf.distribute.MirroredStrategy(
            [f"CPU:{i}" for i in range(devices)],
            cross_device_ops=tf.distribute.ReductionToOneDevice(),
        )
    with strategy.scope():
        model = autoencoder()
        discriminator = PatchDiscriminator(8, 2, norm_groups=4, spectral_norm=True)
        adversary = Adversary(discriminator, FlatAdamW(1e-3), r1_weight=0.1)
        model = AutoencoderTrainer(model, adversary=adversary)
        model.compile(FlatAdamW(1e-3, global_clipnorm=0.5))
    data = tf.data.Dataset.from_tensor_slices(batch(3 * batch_size)).batch(batch_size)
    model.fit(data.take(1), verbose=0, shuffle=False)
    gradients = {
        name: [part.tolist() for part in descended(optimizer)]
        for name, optimizer in (
            ("autoencoder", model.optimizer),
            ("discriminator", adversary.optimizer),
        )
    }
    logs = model.fit(data.skip(1), verbose=0, shuffle=False).history
    weights = [w.tolist() for w in model.get_weights() + discriminator.get_weights()]
    logs = {key: value[-1] for key, value in logs.items()}
    return {"gradients": gradients, "weights": weights, "logs": logs}


@pytest.mark.slow
def test_two_replicas_equal_one_device():
    code = (
        "import conftest, json, tensorflow as tf\n"
        "cpu = tf.config.list_physical_devices('CPU')[0]\n"
        "one = tf.config.LogicalDeviceConfiguration()\n"
        "tf.config.set_logical_device_configuration(cpu, [one, one])\n"
        "from test_adversarial_step import train_on\n"
        "print(json.dumps([train_on(1), train_on(2)]))\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    one, two = json.loads(answer.stdout.splitlines()[-1])
    for name, expected in one["gradients"].items():
        whole, worst = apart(expected, two["gradients"][name])
        assert whole < 2e-6, f"the {name}'s gradient is off by {whole} of its norm"
        assert worst < 2e-5, f"of the {name} a variable's gradient is off by {worst}"
    for ours, theirs in zip(two["weights"], one["weights"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5, err_msg="two replicas differ")
    for name, value in one["logs"].items():
        np.testing.assert_allclose(two["logs"][name], value, rtol=1e-3, atol=1e-5, err_msg=name)
