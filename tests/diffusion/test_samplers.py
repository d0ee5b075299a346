"""What all samplers share: the loop, purity, starting in the middle, and refusals."""

import keras
import numpy as np
import pytest
from analytic import GaussianDenoiser, alphas_cumprod_at, normal, step_noise, to_numpy

from latentddpm.choices import SAMPLERS
from latentddpm.diffusion import NoiseSchedule, samplers
from latentddpm.diffusion.samplers import TIMESTEP_SPACINGS, DDIMSampler, DDPMSampler, Sampler
from latentddpm.errors import UserError

SCHEDULE = NoiseSchedule()
SHAPE = (2, 2, 2, 4)
IN_SIGMA = ("dpmpp_2m", "dpmpp_2m_sde", "euler", "euler_ancestral", "heun", "unipc")
FRACTIONAL = ("euler", "euler_ancestral", "heun")
SKIP_LOWEST = (
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "unipc",
)  # space n + 1 timesteps, and leave out the lowest


def run(sampler, seed=0, shape=SHAPE, denoiser=None, **arguments):
    denoiser = denoiser or GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    return to_numpy(sampler.sample(denoiser, normal(seed, shape), step_noise(shape), **arguments))


def num_calls(name, steps):
    """Calls of the network in so many steps, by the papers of Heun's and of PNDM's method."""
    more = {"heun": steps - 1, "pc": steps, "pndm": 1 if steps > 1 else 0}.get(name, 0)
    return max(steps + more, 0)


# ---- the loop


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("name", samplers.NAMES)
def test_denoiser_and_callback_see_the_documented_arguments(name, spacing):
    seen, reached = [], []

    def denoiser(noisy_latents, timesteps):
        seen.append((noisy_latents, timesteps))
        return keras.ops.cast(noisy_latents, "float16") * 0.5  # as under mixed precision

    sampler = samplers.get(name)(SCHEDULE, 5, spacing)
    result = sampler.sample(
        denoiser,
        normal(0, SHAPE).astype("float64"),
        step_noise(SHAPE),
        lambda *a: reached.append(a),
    )
    fractional = name in FRACTIONAL and spacing == "linspace"
    assert len(seen) == num_calls(name, 5), "expected other calls of the network"
    for latents, timesteps in seen:
        assert keras.backend.standardize_dtype(latents.dtype) == "float32", "expected float32"
        dtype = keras.backend.standardize_dtype(timesteps.dtype)
        assert dtype == ("float32" if fractional else "int32"), f"unexpected {dtype} timesteps"
        assert tuple(timesteps.shape) == (2,), "expected a timestep for each example"
        assert to_numpy(timesteps)[0] in sampler.timesteps, "expected a visited timestep"
    told = list(dict.fromkeys(to_numpy(timesteps)[0].item() for _, timesteps in seen))
    assert told == list(sampler.timesteps), "expected every timestep, in order"
    assert [call[0] for call in reached] == [0, 1, 2, 3, 4], "expected the indices of the steps"
    assert [call[1] for call in reached] == list(sampler.timesteps), "expected the timesteps"
    kind = float if fractional else int
    assert all(type(call[1]) is kind for call in reached), f"expected Python's {kind.__name__}"
    assert keras.backend.standardize_dtype(result.dtype) == "float32", "expected float32 latents"
    np.testing.assert_array_equal(
        to_numpy(result), to_numpy(reached[-1][2]), "expected the last step's latents"
    )


@pytest.mark.parametrize("name", [name for name in samplers.NAMES if name != "pndm"])
def test_the_last_step_returns_x0_itself(name):
    """No noise is left at the end (PNDM: that of its combined ε, which is not its last one's)."""
    reached = []
    sampler = samplers.get(name)(SCHEDULE, 4)
    result = run(sampler, callback=lambda *a: reached.append(a))
    np.testing.assert_allclose(
        result, to_numpy(reached[-1][3]), rtol=1e-6, atol=1e-6, err_msg="expected x0"
    )


@pytest.mark.parametrize("name", samplers.NAMES)
def test_the_network_is_called_so_many_times(name):
    for count in (1, 2, 5):
        sampler = samplers.get(name)(SCHEDULE, count)
        for first_step in range(count + 1):
            calls = []

            def denoiser(latents, timesteps, calls=calls):
                calls.append(timesteps)
                return 0.5 * latents

            run(sampler, denoiser=denoiser, first_step=first_step)
            expected = num_calls(name, count - first_step)
            assert len(calls) == expected, (
                f"{len(calls)} calls for steps {first_step} … {count}, expected {expected}"
            )


@pytest.mark.parametrize("name", samplers.NAMES)
def test_samplers_keep_no_state(name):
    """Twice the same bits, also when another run takes place inside each call of the network."""
    sampler = samplers.get(name)(SCHEDULE, 5)
    before = dict(vars(sampler))
    first = run(sampler)
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)

    def interleaved(latents, timesteps):
        run(sampler, seed=1, shape=(3, 1, 1, 4))
        return denoiser(latents, timesteps)

    again = run(sampler, denoiser=interleaved)
    np.testing.assert_array_equal(first, again, "expected the same bits")
    assert vars(sampler) == before, "expected the sampler to be left as it was"
    for table in (sampler.timesteps, sampler.alphas_cumprod):
        with pytest.raises(ValueError, match="read-only"):
            table[0] = 0


@pytest.mark.parametrize("name", samplers.NAMES)
def test_an_image_does_not_depend_on_its_batch(name):
    shape = (5, 2, 2, 4)
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    sampler = samplers.get(name)(SCHEDULE, 6)
    latents, noise = normal(0, shape), step_noise(shape)
    whole = sampler.sample(denoiser, latents, noise)
    one = sampler.sample(denoiser, latents[3:4], lambda *which: noise(*which)[3:4])
    np.testing.assert_allclose(
        to_numpy(one), to_numpy(whole)[3:4], rtol=1e-6, atol=1e-6, err_msg="expected image 3"
    )


@pytest.mark.parametrize("name", ["ddpm", "dpmpp_2m_sde", "euler_ancestral"])
def test_noise_is_asked_once_a_step_and_decides_the_result(name):
    sampler, asked = samplers.get(name)(SCHEDULE, 6), []

    def noise(step_index):
        asked.append(step_index)
        return step_noise(SHAPE)(step_index)

    denoiser, latents = GaussianDenoiser(SCHEDULE, 0.3, 0.5), normal(0, SHAPE)
    first = to_numpy(sampler.sample(denoiser, latents, noise))
    assert asked == [0, 1, 2, 3, 4], "expected noise in each step but the last, which adds none"
    same = to_numpy(sampler.sample(denoiser, latents, noise))
    np.testing.assert_array_equal(first, same, "expected the same noise to give the same bits")
    other = to_numpy(sampler.sample(denoiser, latents, lambda index: noise(index + 1)))
    assert np.abs(other - first).max() > 0.01, "expected other noise to give other latents"


def test_history_lives_within_one_call():
    """A multistep method needs only a `step`: second-order Adams–Bashforth on ε."""

    class TwoStep(Sampler):
        def step(self, step_index, latents, denoise, noise, history):
            x0, epsilon = denoise(latents, step_index)
            assert (history is None) == (step_index == 0), "expected history from step 1 on"
            mixed = epsilon if history is None else 1.5 * epsilon - 0.5 * history
            bar, after = self.alphas_cumprod_at(step_index)
            clean = (latents - (1 - bar) ** 0.5 * mixed) / bar**0.5
            return after**0.5 * clean + (1 - after) ** 0.5 * mixed, x0, epsilon

    sampler = TwoStep(SCHEDULE, 20)
    first, again = run(sampler), run(sampler)
    np.testing.assert_array_equal(first, again, "expected no history to leak into a second call")
    exact, plain = run(DDIMSampler(SCHEDULE, 250)), run(DDIMSampler(SCHEDULE, 20))
    assert np.abs(first - exact).max() < np.abs(plain - exact).max(), (
        "expected second order to come nearer to the limit than DDIM"
    )


# ---- starting in the middle


@pytest.mark.parametrize("name", samplers.NAMES)
def test_first_step_goes_on_where_a_run_was(name):
    """Without memory the second half is the second half; with it, a start of its own is near."""
    reached = {}
    sampler = samplers.get(name)(SCHEDULE, 20)
    whole = run(sampler, callback=lambda index, t, latents, x0: reached.update({index: latents}))
    denoiser, noise = GaussianDenoiser(SCHEDULE, 0.3, 0.5), step_noise(SHAPE)
    half = to_numpy(sampler.sample(denoiser, reached[9], noise, first_step=10))
    tolerance = 0.02 if name in ("dpmpp_2m", "dpmpp_2m_sde", "pndm", "unipc") else 0
    np.testing.assert_allclose(
        half, whole, rtol=0, atol=tolerance, err_msg="expected the same latents"
    )
    end = sampler.sample(denoiser, whole, noise, first_step=20)
    np.testing.assert_array_equal(to_numpy(end), whole, "expected nothing to be done")


@pytest.mark.parametrize("options", [{}, {"sigma_spacing": "karras"}], ids=["plain", "karras"])
@pytest.mark.parametrize("spacing", TIMESTEP_SPACINGS)
@pytest.mark.parametrize("name", samplers.NAMES)
def test_add_noise_reaches_the_level_of_a_step(name, spacing, options):
    """At each step's level the network sees what it was trained on; past the last, no noise."""
    if options and name not in IN_SIGMA:
        pytest.skip("has no Karras sigmas")
    latents, noise = normal(0, SHAPE), normal(1, SHAPE)
    sampler = samplers.get(name)(SCHEDULE, 7, spacing, **options)
    for step_index, timestep in enumerate(sampler.timesteps):
        bar = alphas_cumprod_at(SCHEDULE, np.array(timestep))
        expected = np.sqrt(bar) * latents + np.sqrt(1 - bar) * noise
        actual = to_numpy(sampler.add_noise(latents, noise, step_index))
        # Rounded Karras timesteps are half a timestep off at most, which is most at t = 0.
        tolerance = 1e-2 if options and name in SKIP_LOWEST else 1e-4
        np.testing.assert_allclose(
            actual, expected, rtol=0, atol=tolerance, err_msg=f"expected the level of t={timestep}"
        )
    clean = sampler.add_noise(latents, noise, 7)
    np.testing.assert_array_equal(to_numpy(clean), latents, "expected no noise at the end")


@pytest.mark.parametrize("name", [name for name in samplers.NAMES if name != "lcm"])
def test_noised_latents_come_back(name):
    """Image to image: clean latents, noised to the level of a step and sampled from there."""
    # A Langevin step is as long as the norms over many numbers of one image say.
    clean = 0.3 + 0.5 * normal(0, (1, 32, 16, 4) if name == "pc" else (512, 1, 1, 4))
    sampler = samplers.get(name)(SCHEDULE, 100)
    noisy = sampler.add_noise(clean, normal(1, clean.shape), 93)
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    result = to_numpy(sampler.sample(denoiser, noisy, step_noise(clean.shape), first_step=93))
    # What is drawn on the way is not of the picture, and Langevin steps draw much.
    least = {"dpmpp_2m_sde": 0.75, "pc": 0.4}.get(name, 0.8)
    assert np.corrcoef(result.ravel(), clean.ravel())[0, 1] > least, "expected the same picture"
    assert result.mean() == pytest.approx(0.3, abs=0.05), "expected the data's mean"
    assert result.std() == pytest.approx(0.5, rel=0.1), "expected the data's deviation"


@pytest.mark.parametrize("step", [-1, 6, 2.0, None])
def test_a_first_step_out_of_range_is_refused(step):
    sampler = DDIMSampler(SCHEDULE, 5)
    with pytest.raises(UserError, match="first_step: expected a whole number from 0 to 5, got"):
        run(sampler, first_step=step)
    with pytest.raises(UserError, match="step_index: expected a whole number from 0 to 5, got"):
        sampler.add_noise(normal(0, SHAPE), normal(0, SHAPE), step)


# ---- names and errors


def test_get_knows_every_name():
    expected = {
        "ddpm": samplers.DDPMSampler,
        "ddim": samplers.DDIMSampler,
        "dpmpp_2m": samplers.DPMSolverMultistepSampler,
        "dpmpp_2m_sde": samplers.DPMSolverMultistepSDESampler,
        "euler": samplers.EulerSampler,
        "euler_ancestral": samplers.EulerAncestralSampler,
        "heun": samplers.HeunSampler,
        "lcm": samplers.LCMSampler,
        "pc": samplers.PredictorCorrectorSampler,
        "pndm": samplers.PNDMSampler,
        "unipc": samplers.UniPCSampler,
    }
    assert {name: samplers.get(name) for name in samplers.NAMES} == expected
    with pytest.raises(UserError, match=r"'dimm' is not known \(did you mean 'ddim'\?\)"):
        samplers.get("dimm")


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("ddim", {"num_steps": 0}, "num_steps: expected a whole number from 1 to 1000, got 0"),
        ("ddim", {"num_steps": 1001}, "num_steps.*1001"),
        ("ddim", {"num_steps": 2.5}, "num_steps.*2.5"),
        ("ddim", {"timestep_spacing": "traling"}, "did you mean 'trailing'"),
        ("ddim", {"steps_offset": 200}, "steps_offset.*from 0 to 199 for 5 of 1000"),
        ("dpmpp_2m", {"steps_offset": 170}, "steps_offset.*from 0 to 169 for 5 of 1000"),
        ("ddim", {"steps_offset": -1}, "steps_offset.*got -1"),
        ("euler", {"steps_offset": 1, "timestep_spacing": "trailing"}, "only 'leading' spacing"),
        ("ddim", {"eta": 1.5}, "eta: expected 0"),
        ("ddim", {"eta": -0.1}, "eta: expected 0"),
        ("ddim", {"eta": [1.0, 0.5]}, "eta: 2 values for 5 steps; expected one for each"),
        ("ddim", {"eta": [1.0, 0.5, 0, 0, 2]}, "eta: expected 0 .* got 2"),
        ("ddim", {"variance": "large"}, "variance: 'large' with eta 0, .*; expected eta 1"),
        ("ddim", {"variance": "learned_range", "eta": 1.0}, "variance: .* 'small', 'large'$"),
        ("ddpm", {"variance": "larg"}, "variance.*did you mean 'large'"),
        ("lcm", {"original_steps": 4}, "original_steps: 4, expected at least the 5 of num_steps"),
        ("lcm", {"original_steps": 1001}, "original_steps: 1001, expected at most 1000"),
        ("pc", {"corrector_steps": -1}, "corrector_steps: expected a whole number of at least 0"),
        ("pc", {"snr": 0.0}, "snr: expected above 0"),
        ("heun", {"sigma_spacing": "karas"}, "sigma_spacing.*did you mean 'karras'"),
    ],
)
def test_bad_arguments_are_one_clear_line(name, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        samplers.get(name)(SCHEDULE, **{"num_steps": 5, **arguments})
    assert "\n" not in str(error.value), "expected a message of one line"


def test_a_stochastic_sampler_asks_for_noise():
    latents = normal(0, SHAPE)
    denoiser = GaussianDenoiser(SCHEDULE, 0.3, 0.5)
    made = {name: samplers.get(name)(SCHEDULE, 5) for name in samplers.NAMES}
    stochastic = [name for name, sampler in made.items() if sampler.stochastic]
    assert stochastic == ["ddpm", "dpmpp_2m_sde", "euler_ancestral", "lcm", "pc"], (
        "expected the others to be deterministic"
    )
    for sampler in (*map(made.get, stochastic), DDIMSampler(SCHEDULE, 5, eta=0.1)):
        assert sampler.stochastic, "expected DDIM with eta > 0 to be stochastic"
        with pytest.raises(UserError, match=r"noise: .*Sampler draws noise"):
            sampler.sample(denoiser, latents)


def test_wrong_shapes_are_refused_not_broadcast():
    latents = normal(0, SHAPE)
    with pytest.raises(UserError, match=r"prediction: expected .*\(2, 2, 2, 4\), got .*1\)"):
        DDIMSampler(SCHEDULE, 5).sample(lambda x, t: x[..., :1], latents)
    with pytest.raises(UserError, match=r"noise.*expected .*\(2, 2, 2, 4\), got \(1,"):
        DDPMSampler(SCHEDULE, 5).sample(lambda x, t: x, latents, step_noise((1, 2, 2, 4)))


def test_the_base_class_has_no_step():
    with pytest.raises(NotImplementedError, match="Sampler has no step"):
        Sampler(SCHEDULE, 5).sample(lambda x, t: x, normal(0, (1, 1, 1, 4)))


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_take_signals_and_volumes(name):
    """With a denoiser of single numbers the result is that of images, in another shape."""
    results = []
    for shape in ((2, 4, 6, 3), (2, 24, 3), (2, 2, 2, 6, 3)):
        latents = np.random.default_rng(0).normal(size=shape).astype("float32")

        def noise(*step, shape=shape):
            return np.random.default_rng(step).normal(size=shape).astype("float32")

        sampler = samplers.get(name)(NoiseSchedule(), 4)
        found = sampler.sample(lambda noisy, timesteps: 0.5 * noisy, latents, noise)
        assert found.shape == shape
        results.append(np.asarray(found).ravel())
    for other in results[1:]:
        np.testing.assert_allclose(other, results[0], rtol=1e-5, atol=1e-6)
