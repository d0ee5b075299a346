"""The recipe: what weights, offset noise, input perturbation and the average's warm-up do."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from latentddpm.config import DiffusionTraining
from latentddpm.data.batches import RECIPE
from latentddpm.data.catalog.split import Selection
from latentddpm.data.examples import diffusion_examples
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.data.random import RandomStream, TimestepDensity
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.schedule import PREDICTION_TYPES, NoiseSchedule
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.training.run.loop import make_optimizer
from latentddpm.training.step.optimizer import FlatAdamW

SHAPE = (4, 6, 3)


@pytest.fixture(scope="module")
def cache():
    """Five images' moments, of a posterior with some spread."""
    moments = np.random.default_rng(0).standard_normal((5, *SHAPE[:2], 2 * SHAPE[2]))
    return LatentsCache(5, moments.astype("float32"), False)


def stream(cache, stop=8, batch_size=16, schedule=None, first=0, images=5, **recipe):
    """Examples as one dict of arrays, the weights (if any) among them."""
    batches = diffusion_examples(
        cache,
        Selection(images),
        schedule or NoiseSchedule(),
        LatentSpace(1.0),
        batch_size=batch_size,
        stream=RandomStream(3, "train"),
        positions=tf.data.Dataset.range(first, stop * batch_size),
        **recipe,
    )
    names = ("target", "weight")
    found = [{**x, **dict(zip(names, rest, strict=False))} for x, *rest in batches]
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


# --- min-SNR-γ -----------------------------------------------------------------------------


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_are_the_papers(prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    weights = schedule.min_snr_weights(5.0)
    alphas_cumprod = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    for t, alpha in enumerate(alphas_cumprod):
        snr = alpha / (1 - alpha)
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
        expected = min(snr, 5.0) / divisor
        assert weights[t] == pytest.approx(expected, rel=1e-9), f"timestep {t}, snr {snr:.4g}"


def test_the_three_weights_are_one_loss():
    """The same error in x0, expressed in ε and in v, costs the same at every timestep."""
    snr = NoiseSchedule().snr
    in_x0, in_noise, in_v = (
        NoiseSchedule(prediction_type=kind).min_snr_weights(5.0)
        for kind in ("sample", "epsilon", "v_prediction")
    )
    np.testing.assert_allclose(in_noise * snr, in_x0, err_msg="an error in ε is snr that in x0")
    np.testing.assert_allclose(in_v * (snr + 1), in_x0, err_msg="an error in v is snr + 1 times")


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_pure_noise_is_trained_too(prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type, rescale_zero_terminal_snr=True)
    weights = schedule.min_snr_weights(5.0)
    assert np.isfinite(weights).all(), "a weight is not finite"
    assert schedule.snr[-1] == 0, "expected zero terminal SNR"
    assert weights[-1] == 1, f"pure noise counts {weights[-1]}, expected 1"


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_examples_carry_the_weight_of_their_timestep(cache, prediction_type):
    schedule = NoiseSchedule(prediction_type=prediction_type)
    plain = stream(cache, schedule=schedule)
    assert "weight" not in plain, "weights without min_snr_gamma"
    found = stream(cache, schedule=schedule, min_snr_gamma=5.0)
    assert found["weight"].shape == (128, 1, 1), f"weights are {found['weight'].shape}"
    np.testing.assert_allclose(
        found["weight"][:, 0, 0],
        schedule.min_snr_weights(5.0)[plain["timesteps"]],
        rtol=1e-6,
        err_msg="expected the table at the example's timestep",
    )
    for name, array in plain.items():
        np.testing.assert_array_equal(found[name], array, err_msg=f"weights changed {name}")


# --- Noise ---------------------------------------------------------------------------------


def test_offset_noise_shifts_whole_channels(cache):
    plain, found = stream(cache, 200), stream(cache, 200, offset_noise=0.3)
    shift = found["target"] - plain["target"]  # epsilon: the target is the noise
    spread = np.ptp(shift, axis=(1, 2)).max()
    assert spread < 1e-5, f"inside a channel the shift varies by {spread}"
    numbers = shift[:, 0, 0]  # (examples, channels)
    bound = 4 / np.sqrt(numbers.size)
    assert abs(numbers.mean()) < 0.3 * bound, f"shifts have mean {numbers.mean():.4f}"
    assert abs(numbers.std() / 0.3 - 1) < bound, f"shifts have std {numbers.std():.4f}, not 0.3"
    correlation = np.corrcoef(numbers.T) - np.eye(SHAPE[-1])
    assert np.abs(correlation).max() < 4 / np.sqrt(len(numbers)), "channels shift together"
    level = NoiseSchedule().noise_rate[found["timesteps"]][:, None, None, None]
    np.testing.assert_allclose(
        found["noisy_latents"] - plain["noisy_latents"],
        level * shift,
        atol=1e-5,
        err_msg="expected the same shift in the noisy latents",
    )


def test_the_target_does_not_know_of_input_perturbation(cache):
    plain, found = stream(cache, 40), stream(cache, 40, input_perturbation=0.1)
    np.testing.assert_array_equal(found["target"], plain["target"], err_msg="another target")
    level = NoiseSchedule().noise_rate[found["timesteps"]][:, None, None, None]
    extra = (found["noisy_latents"] - plain["noisy_latents"]) / level
    bound = 5 / np.sqrt(extra.size)
    assert abs(extra.std() / 0.1 - 1) < bound, f"extra noise has std {extra.std():.4f}, not 0.1"
    between = np.corrcoef(extra.ravel(), plain["target"].ravel())[0, 1]
    assert abs(between) < bound, f"extra noise and noise correlate: {between:.4f}"


def test_the_recipe_is_drawn_from_positions(cache):
    recipe = {"min_snr_gamma": 5.0, "offset_noise": 0.3, "input_perturbation": 0.1}
    whole, small = stream(cache, **recipe), stream(cache, 16, 8, **recipe)
    for name, array in whole.items():
        np.testing.assert_array_equal(small[name], array, err_msg=f"{name} in batches of 8")


def test_every_name_of_the_recipe_is_a_setting_that_is_off_or_known():
    settings = DiffusionTraining()
    found = {name: getattr(settings, name) for name in RECIPE}
    expected = dict.fromkeys(RECIPE, 0.0) | {"condition_dropout": 0.1}
    assert found == expected, f"defaults {found}, expected {expected}"


# --- The average's warm-up -----------------------------------------------------------------


def averaged(steps, momentum, warmup):
    """Weights after each step of gradient descent, and the optimizer's average at the end."""
    variable = keras.Variable(np.array([2.0, -1.0, 0.5], "float32"), name="kernel")
    optimizer = FlatAdamW(
        0.1, weight_decay=0.0, use_ema=True, ema_momentum=momentum, ema_warmup=warmup
    )
    history = []
    for step in range(steps):
        optimizer.apply([keras.ops.sin(variable * (step + 1))], [variable])
        history.append(np.asarray(variable, "float64"))
    return history, np.asarray(optimizer.moving_averages()[0])


@pytest.mark.parametrize("momentum", [0.3, 0.9999])
def test_the_average_warms_up(momentum):
    history, found = averaged(30, momentum, True)
    average = history[0]
    for done, weights in enumerate(history[1:], start=2):
        decay = min(momentum, done / (done + 9))
        average = decay * average + (1 - decay) * weights
    np.testing.assert_allclose(found, average, rtol=1e-5, err_msg="not the formula's average")


def test_without_warm_up_the_momentum_is_constant():
    history, found = averaged(30, 0.9, False)
    average = history[0]
    for weights in history[1:]:
        average = 0.9 * average + 0.1 * weights
    np.testing.assert_allclose(found, average, rtol=1e-5, err_msg="not the plain average")


@pytest.mark.reference
def test_the_warm_up_is_that_of_diffusers():
    pytest.importorskip("diffusers")
    from diffusers.training_utils import EMAModel

    theirs = EMAModel([], decay=0.9999, min_decay=0.0)
    for step in (2, 3, 10, 1000, 100_000):
        expected = min(0.9999, step / (step + 9))
        assert theirs.get_decay(step) == pytest.approx(expected), f"step {step}"


def test_runs_warm_up_by_default():
    optimizer = make_optimizer(DiffusionTraining())
    assert optimizer.ema_warmup, "expected the average of a run to warm up"
    assert optimizer.get_config()["ema_warmup"] is True, "a copy of the optimizer would not"


# --- The learning rate ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 10])
def test_the_rate_rises_and_then_stays_or_falls(kind, warmup):
    settings = DiffusionTraining(
        num_steps=110, warmup_steps=warmup, learning_rate=1e-3, learning_rate_schedule=kind
    )
    rate = make_optimizer(settings)._learning_rate
    for step in (0, 5, 10, 60, 110):
        done = max(step - warmup, 0) / (110 - warmup)
        expected = 1e-3 * (1.0 if kind == "constant" else (1 + np.cos(np.pi * done)) / 2)
        if step < warmup:
            expected = 1e-3 * step / warmup
        assert float(rate(step)) == pytest.approx(expected, abs=1e-9), f"step {step}"


# --- Densities of the timesteps ------------------------------------------------------------------

MIDDLE = TimestepDensity("logit_normal", logit_mean=0.5, logit_std=0.8)


P = np.array([0.05, 0.25, 0.5, 0.75, 0.95])
OF_THE_NORMAL = np.array([-1.6448536, -0.6744898, 0, 0.6744898, 1.6448536])
QUANTILES = {
    "uniform": P,
    "logit_normal": 1 / (1 + np.exp(-0.5 - 0.8 * OF_THE_NORMAL)),
    # It falls with p, so the quantile p of the result is that of 1 − p.
    "mode": P - 1.29 * (np.cos(np.pi / 2 * (1 - P)) ** 2 - P),
}


@pytest.mark.parametrize("kind", QUANTILES)
def test_densities_have_the_quantiles_of_the_paper(kind):
    """In closed form: of Esser 2024, eq. 19 and 20."""
    found = np.sort(TimestepDensity(kind, 0.5, 0.8).quantile(tf.constant(P, tf.float32)))
    np.testing.assert_allclose(found, QUANTILES[kind], atol=1e-5, err_msg=kind)


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [
        ("uniform", FlowSchedule(shift=3.0)),
        ("logit_normal", FlowSchedule()),
        ("logit_normal", NoiseSchedule()),
    ],
)
def test_timesteps_are_drawn_from_their_density(kind, schedule):
    """A shift s takes a share q to s q / (1 + (s − 1) q) (Esser 2024, eq. 23)."""
    count = 2000
    latents = LatentsCache(1, np.zeros((1, 1, 1, 2), "float32"), False)
    density = TimestepDensity(kind, 0.5, 0.8)
    drawn = stream(latents, 4, count // 4, schedule, images=1, density=density)["timesteps"]
    assert drawn.min() >= 0, f"{kind}: a timestep below 0"
    assert drawn.max() <= schedule.last_timestep, f"{kind}: a timestep above {schedule}'s last"
    shift = getattr(schedule, "shift", 1.0)
    expected = shift * QUANTILES[kind] / (1 + (shift - 1) * QUANTILES[kind])
    below = [(drawn / 1000 < share).mean() for share in expected]
    np.testing.assert_allclose(below, P, atol=0.035, err_msg=f"{kind}: shares below quantiles")


@pytest.mark.reference
def test_densities_are_those_of_diffusers():
    training_utils = pytest.importorskip("diffusers.training_utils")
    torch = pytest.importorskip("torch")
    p = np.linspace(0.05, 0.95, 19)
    for kind in ("uniform", "logit_normal", "mode"):
        theirs = training_utils.compute_density_for_timestep_sampling(
            "none" if kind == "uniform" else kind,
            40_000,
            logit_mean=0.5,
            logit_std=0.8,
            mode_scale=1.29,
            generator=torch.Generator().manual_seed(0),
        ).numpy()
        density = TimestepDensity(kind, logit_mean=0.5, logit_std=0.8)
        ours = np.sort(density.quantile(tf.constant(p, tf.float32)))
        np.testing.assert_allclose(ours, np.quantile(theirs, p), atol=0.012, err_msg=kind)


def test_flow_examples_follow_from_their_position(cache):
    """Any part of a run sees what the whole run saw, and the pieces of an example fit."""
    schedule = FlowSchedule(shift=2.0)
    whole = stream(cache, 4, 8, schedule, density=MIDDLE)
    tail = stream(cache, 4, 8, schedule, density=MIDDLE, first=16)
    for name, values in tail.items():
        np.testing.assert_array_equal(values, whole[name][16:], err_msg=f"{name} of the tail")
    timesteps = whole["timesteps"]
    assert timesteps.dtype == np.float32, f"timesteps are {timesteps.dtype}"
    assert len(set(timesteps)) == len(timesteps), "expected numbers, not whole timesteps"
    x0 = schedule.predict_x0(whole["target"], whole["noisy_latents"], timesteps)
    noise = schedule.predict_noise(whole["target"], whole["noisy_latents"], timesteps)
    np.testing.assert_allclose(noise - x0, whole["target"], atol=1e-5, err_msg="ε − x0")
    plain = stream(cache, 4, 8, NoiseSchedule(prediction_type="epsilon"))
    np.testing.assert_allclose(noise, plain["target"], atol=1e-4, err_msg="another noise")
