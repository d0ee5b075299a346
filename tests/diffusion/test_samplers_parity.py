"""Every sampler against diffusers' scheduler of the same method: whole trajectories."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from toy_denoiser import toy_denoiser, toy_etas, toy_noise, with_variance

from latentddpm.diffusion import NoiseSchedule, samplers

TESTS = Path(__file__).parents[1]
GOLDEN = load_file(TESTS / "golden" / "samplers.safetensors")
CASES = sorted(name for name in GOLDEN if not name.endswith("/timesteps"))
# Of latents of order 1, after every step. diffusers' Euler keeps x̂ in float32, which is of
# order 4096 where it starts from zero terminal SNR.
TOLERANCE, EULER_ZERO_TOLERANCE = 2e-5, 1e-4
OPTIONS = {
    "karras": {"sigma_spacing": "karras"},
    "eta=1": {"eta": 1.0},
    "last": {"set_alpha_to_one": False},
    "large": {"variance": "large"},
    "learned": {"variance": "learned_range"},
    "clip": {"clip_sample": True},
    "zero": {},
    "20": {"original_steps": 20},
    "": {},
}
NOT_IN_DIFFUSERS = {"pc"}  # with these levels; see below for the two halves of its step
OWN_TIMESTEPS = {"lcm"}  # whatever the spacing


def ours(case):
    """The latents after each step, and the timesteps, of a case named as in the golden file."""
    kind, spacing, prediction, count = case.split("/")
    name, _, option = kind.partition(" ")
    zero = option == "zero"
    schedule = NoiseSchedule(prediction_type=prediction, rescale_zero_terminal_snr=zero)
    options = {"eta": toy_etas(int(count))} if option == "etas" else OPTIONS[option]
    sampler = samplers.get(name)(schedule, int(count), spacing, **options)
    toy, reached = toy_denoiser(prediction, zero), []
    toy = with_variance(toy) if option == "learned" else toy
    sampler.sample(
        lambda x, t: toy(x, np.asarray(t)[0]),
        toy_noise(-1),
        toy_noise,
        lambda index, timestep, latents, x0: reached.append(np.asarray(latents)),
    )
    return np.stack(reached), sampler.timesteps


def check(case, trajectory, timesteps):
    reached, told = ours(case)
    np.testing.assert_allclose(
        told, timesteps, rtol=0, atol=2e-3, err_msg=f"{case}: expected diffusers' timesteps"
    )
    worst = np.abs(reached - trajectory).max(axis=(1, 2, 3, 4))
    loose = case.startswith(("euler zero", "euler_ancestral zero"))
    tolerance = EULER_ZERO_TOLERANCE if loose else TOLERANCE
    assert worst.max() <= tolerance, (
        f"{case}: expected diffusers' latents after every step to {tolerance}, "
        f"got {worst.max():.1e} in step {worst.argmax()}"
    )


def test_the_golden_file_holds_every_case():
    """Each sampler, each spacing, ε and v, 5, 10, 23 and 50 steps; lcm few steps."""
    plain = {case.rpartition("/")[0].split("/")[0] for case in CASES}
    names = sorted({*samplers.NAMES} - NOT_IN_DIFFUSERS)
    assert {name.split()[0] for name in plain} == {*names}, "expected every sampler"
    for name, spacing, prediction, count in itertools.product(
        {*names} - OWN_TIMESTEPS,
        samplers.TIMESTEP_SPACINGS,
        ("epsilon", "v_prediction"),
        (5, 10, 23, 50),
    ):
        assert f"{name}/{spacing}/{prediction}/{count}" in GOLDEN, "expected every combination"
    for name, prediction, count in itertools.product(
        OWN_TIMESTEPS, ("epsilon", "v_prediction"), (1, 2, 4, 8)
    ):
        assert f"{name}/trailing/{prediction}/{count}" in GOLDEN, "expected every combination"


@pytest.mark.parametrize("kind", sorted({case.split("/")[0] for case in CASES}))
def test_trajectories_are_those_of_diffusers(kind):
    for case in CASES:
        if case.split("/")[0] == kind:
            check(case, GOLDEN[case], GOLDEN[f"{case}/timesteps"])


@pytest.fixture
def reference(monkeypatch):
    """The script that makes the golden file: diffusers' side of the comparison, live."""
    pytest.importorskip("diffusers")
    monkeypatch.syspath_prepend(TESTS / "golden")
    import make_sampler_golden

    with make_sampler_golden.recorded_noise():
        yield make_sampler_golden


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_golden_file_is_what_diffusers_answers(reference):
    """The comparison itself, live: nothing was frozen that diffusers does not say today."""
    for case in reference.cases():
        trajectory, timesteps = reference.trajectory(*case)
        name = "/".join(map(str, case))
        # diffusers computes in float32, and rounds otherwise on another processor.
        np.testing.assert_allclose(
            trajectory, GOLDEN[name], rtol=1e-5, atol=1e-5, err_msg=f"{name}: expected the frozen"
        )
        check(name, trajectory, timesteps)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_where_diffusers_is_not_taken_as_it_comes(reference):
    """Only DDIM and PNDM, where T // n is not the way to the next timestep, and PNDM with v.

    `make_sampler_golden.drive` and `trajectory` say what is put right; everywhere else the
    schedulers run as they come, and these do too where they are right.
    """
    for name, spacing, prediction, count in itertools.product(
        ("ddim", "pndm"), samplers.TIMESTEP_SPACINGS, ("epsilon", "v_prediction"), (5, 10, 23, 50)
    ):
        case = f"{name}/{spacing}/{prediction}/{count}"
        as_it_comes, _ = reference.trajectory(name, spacing, prediction, count, as_it_comes=True)
        deviation = np.abs(as_it_comes - GOLDEN[case]).max()
        exact_stride = spacing == "leading" or (spacing == "trailing" and count != 23)
        if exact_stride and not (name == "pndm" and prediction == "v_prediction"):
            assert deviation <= 1e-5, f"{case}: expected no difference, got {deviation:.1e}"
        else:
            assert 1e-3 < deviation < 0.2, f"{case}: expected a small difference, {deviation:.1e}"
