"""The sums and means that diffusers' own scheduler tests publish, from our samplers.

Their loop: ten steps, betas linear, offset 0, the "network" is x · t / (t + 1), the sample is
0 .. 767 over 768; they allow 1e-2 for a sum and 1e-3 for a mean. Some of these loops run a
scheduler as nobody would: clipped, stopped before the end, or fed latents in the wrong scale.
That belongs to the tests here and not to the package.
"""

import keras
import numpy as np
import pytest
from analytic import to_numpy

from latentddpm.diffusion import NoiseSchedule, samplers
from latentddpm.diffusion.samplers import DDIMSampler, EulerSampler, PNDMSampler

LINEAR = {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
SAMPLE = np.arange(768, dtype="float32").reshape(3, 8, 8, 4) / 768  # (C, H, W, B)
SAMPLE = SAMPLE.transpose(3, 1, 2, 0)  # (B, H, W, C)


def model(noisy_latents, timesteps):
    t = keras.ops.cast(timesteps, "float32")[:, None, None, None]
    return noisy_latents * t / (t + 1)


def result(sampler, sample=SAMPLE):
    return np.abs(to_numpy(sampler.sample(model, sample)).astype("float64"))


def ending_at_the_first_timestep(sampler):
    """Let the last step go to ᾱ_0: `final_sigmas_type="sigma_min"`."""
    first = sampler.schedule.alphas_cumprod[0]
    sampler.alphas_cumprod = np.append(sampler.alphas_cumprod[:-1], first)
    return sampler


class ClippedDDIM(DDIMSampler):
    """DDIM as diffusers runs it with `clip_sample=True`: x0 is clipped, ε stays as predicted."""

    def step(self, step_index, latents, denoise, noise, history):
        def clipped(latents, step_index):
            x0, epsilon = denoise(latents, step_index)
            return keras.ops.clip(x0, -1.0, 1.0), epsilon

        return super().step(step_index, latents, clipped, noise, history)


@pytest.mark.parametrize(
    ("config", "to_one", "expected"),
    [
        ({}, True, 172.0067),
        ({"prediction_type": "v_prediction"}, True, 52.5302),
        ({"beta_start": 0.01}, True, 149.8295),
        ({"beta_start": 0.01}, False, 149.0784),
    ],
)
def test_ddim(config, to_one, expected):
    sampler = ClippedDDIM(NoiseSchedule(**{**LINEAR, **config}), 10, steps_offset=0)
    if not to_one:
        sampler = ending_at_the_first_timestep(sampler)
    assert result(sampler).sum() == pytest.approx(expected, abs=2e-4), f"expected {expected}"


class StoppedDPMSolver(samplers.DPMSolverMultistepSampler):
    """Space eleven timesteps and leave out none: the tenth step goes to the lowest of them.

    What diffusers does with `final_sigmas_type="sigma_min"`, `lower_order_final=False`.
    """

    skip_lowest = False


@pytest.mark.parametrize(
    ("prediction_type", "expected"), [("epsilon", 0.3301), ("v_prediction", 0.2251)]
)
def test_dpm_solver(prediction_type, expected):
    schedule, reached = NoiseSchedule(**LINEAR, prediction_type=prediction_type), []
    sampler = StoppedDPMSolver(schedule, 11, "linspace")
    sampler.sample(model, SAMPLE, callback=lambda index, t, x, x0: reached.append(to_numpy(x)))
    mean = np.abs(reached[9]).mean()
    assert mean == pytest.approx(expected, abs=1e-4), f"expected {expected}"


@pytest.mark.parametrize(
    ("prediction_type", "sigma_spacing", "expected"),
    [
        ("epsilon", "timesteps", 0.2464),
        ("v_prediction", "timesteps", 0.1014),
        ("epsilon", "karras", 0.2925),
        ("v_prediction", "karras", 0.1962),  # published as 0.1966; what 0.42 answers
    ],
)
def test_unipc(prediction_type, sigma_spacing, expected):
    schedule = NoiseSchedule(**LINEAR, prediction_type=prediction_type)
    sampler = samplers.get("unipc")(schedule, 10, "linspace", sigma_spacing=sigma_spacing)
    mean = result(ending_at_the_first_timestep(sampler)).mean()
    assert mean == pytest.approx(expected, abs=1e-4), f"expected {expected}"


class MisfedEuler(EulerSampler):
    """diffusers' test hands `step` the latents scaled for the network, x, in place of x̂.

    Here x̂ = x / √ᾱ is made of the latents, so the same comes of latents that are √ᾱ · x.
    """

    def step(self, step_index, latents, denoise, noise, history):
        def misfed(_, step_index):
            _, epsilon = denoise(latents, step_index)
            return latents - self.sigma(step_index) * epsilon, epsilon

        return super().step(step_index, latents, misfed, noise, history)


@pytest.mark.parametrize(
    ("sigma_spacing", "expected"), [("timesteps", 10.0807), ("karras", 124.5230)]
)
def test_euler(sigma_spacing, expected):
    schedule = NoiseSchedule(**LINEAR, num_train_timesteps=1100)
    sampler = MisfedEuler(schedule, 10, "linspace", sigma_spacing=sigma_spacing)
    start = sampler.rates(0)[1] * SAMPLE  # σ · sample, scaled for the network
    total = result(sampler, start).sum()
    assert total == pytest.approx(expected, abs=1e-2), f"expected {expected}"


class RungeKuttaPNDM(PNDMSampler):
    """PNDM with the paper's start, three steps of Runge and Kutta: `skip_prk_steps=False`."""

    def step(self, step_index, latents, denoise, noise, history):
        if step_index >= 3:
            return super().step(step_index, latents, denoise, noise, history)
        start = self.timesteps[step_index]
        middle, end = start - 50, start - 100  # half a stride, a stride
        e1 = model(latents, np.full(4, start))
        e2 = model(self.along(latents, e1, start, middle), np.full(4, middle))
        e3 = model(self.along(latents, e2, start, middle), np.full(4, middle))
        e4 = model(self.along(latents, e3, start, end), np.full(4, end))
        mean = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        return self.along(latents, mean, start, end), latents, [e1, *(history or [])]

    def along(self, latents, epsilon, t, next_t):
        """DDIM's step between any two timesteps."""
        signal, noise = self.schedule.signal_rate, self.schedule.noise_rate
        x0 = (latents - float(noise[t]) * epsilon) / float(signal[t])
        return float(signal[next_t]) * x0 + float(noise[next_t]) * epsilon


@pytest.mark.parametrize(
    ("config", "to_one", "expected"),
    [
        ({}, False, 198.1318),
        ({"beta_start": 0.01}, True, 230.0399),
        ({"beta_start": 0.01}, False, 186.9482),
    ],
)
def test_pndm(config, to_one, expected):
    sampler = RungeKuttaPNDM(NoiseSchedule(**{**LINEAR, **config}), 10, steps_offset=0)
    if not to_one:
        sampler = ending_at_the_first_timestep(sampler)
    assert result(sampler).sum() == pytest.approx(expected, abs=1e-2), f"expected {expected}"
