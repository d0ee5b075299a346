"""`scheduler_config.json`: noise levels, the default sampler, and what has no counterpart."""

import warnings

import numpy as np
import pytest

from latentddpm.diffusion import FlowSchedule, samplers
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.interop.diffusers.scheduler import (
    KINDS,
    OTHERS,
    SchedulerNote,
    read_scheduler,
    scheduler_config,
)

SOURCE = "scheduler_config.json"
# What runwayml's Stable Diffusion 1.5 says.
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


OURS_ALONE = {"pc"}  # samplers that diffusers does not have: they become DDIM there


def test_stable_diffusions_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule, defaults = read_scheduler(STABLE_DIFFUSION, SOURCE)
    assert schedule.get_config() == NoiseSchedule().get_config(), f"schedule {schedule}"
    options = {"set_alpha_to_one": False}
    expected = {"sampler": "pndm", "timestep_spacing": "leading", "sampler_options": options}
    assert defaults == expected, f"defaults {defaults}, expected {expected}"


def test_every_scheduler_is_a_sampler_here():
    mapped = [kind.sampler for kind in KINDS.values()]
    mapped += [kind.stochastic for kind in KINDS.values() if kind.stochastic]
    here = [*{*samplers.NAMES} - OURS_ALONE]
    assert sorted(mapped) == sorted(here), f"mapped {mapped}, here {here}"


@pytest.mark.parametrize("spacing", samplers.TIMESTEP_SPACINGS)
@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_there_and_back(sampler, spacing):
    schedule = NoiseSchedule("cosine", prediction_type="v_prediction", num_train_timesteps=400)
    defaults = {"sampler": sampler, "timestep_spacing": spacing}
    config = scheduler_config(schedule, defaults)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, again = read_scheduler(config, SOURCE)
    assert found.get_config() == schedule.get_config(), f"{sampler}: schedule {found}"
    if sampler in OURS_ALONE:
        defaults["sampler"] = "ddim"
    assert again == defaults, f"{sampler}: defaults {again}, expected {defaults}"


@pytest.mark.parametrize("sampler", ["ddim", "pndm"])
def test_the_level_at_the_end_comes_back(sampler):
    options = {"set_alpha_to_one": False}
    defaults = {"sampler": sampler, "timestep_spacing": "leading", "sampler_options": options}
    config = scheduler_config(NoiseSchedule(), defaults)
    assert config["set_alpha_to_one"] is False, f"config {config}"
    assert read_scheduler(config, SOURCE)[1] == defaults, "other defaults after a round trip"


@pytest.mark.parametrize(
    ("sampler", "options", "theirs"),
    [
        ("ddpm", {"variance": "large"}, {"variance_type": "fixed_large"}),
        ("ddpm", {"variance": "learned_range"}, {"variance_type": "learned_range"}),
        ("ddpm", {"clip_sample": True}, {"clip_sample": True}),
        ("ddim", {"clip_sample": True}, {"clip_sample": True}),
        ("lcm", {"original_steps": 20}, {"original_inference_steps": 20}),
        ("dpmpp_2m_sde", {"steps_offset": 0}, {"algorithm_type": "sde-dpmsolver++"}),
    ],
)
def test_what_a_step_adds_and_clips_comes_back(sampler, options, theirs):
    defaults = {"sampler": sampler, "timestep_spacing": "leading", "sampler_options": options}
    config = scheduler_config(NoiseSchedule(), defaults)
    assert {key: config[key] for key in theirs} == theirs, f"config {config}"
    found = read_scheduler(config, SOURCE, pixels=True)[1]
    assert found == defaults, f"defaults {found}, expected {defaults}"


def test_lcm_has_defaults_of_its_own():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        schedule, defaults = read_scheduler({"_class_name": "LCMScheduler"}, SOURCE)
    assert schedule.get_config() == NoiseSchedule().get_config(), f"schedule {schedule}"
    assert defaults == {"sampler": "lcm", "timestep_spacing": "leading"}, f"defaults {defaults}"
    odd = {"_class_name": "LCMScheduler", "timestep_scaling": 5.0}
    with pytest.warns(SchedulerNote, match="timestep_scaling: 5.0"):
        read_scheduler(odd, SOURCE)


@pytest.mark.parametrize(("limit", "expected"), [(1.0, {"clip_sample": True}), (2.0, {})])
def test_a_model_of_pixels_clips_as_diffusers_does(limit, expected):
    config = {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample_range": limit}
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        _, defaults = read_scheduler(config, SOURCE, pixels=True)
    found = defaults.get("sampler_options", {})
    assert found == expected, f"options {found}, expected {expected}"
    said = [str(note.message) for note in notes]
    assert bool(said) == (limit != 1), f"{said}, expected one of a range that is not 1"


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "euler", "unipc"])
def test_karras_sigmas_and_an_offset_come_back(sampler):
    options = {"steps_offset": 0, "sigma_spacing": "karras"}
    defaults = {"sampler": sampler, "timestep_spacing": "leading", "sampler_options": options}
    config = scheduler_config(NoiseSchedule(), defaults)
    assert config["use_karras_sigmas"] is True, f"config {config}"
    assert read_scheduler(config, SOURCE)[1] == defaults, "other defaults after a round trip"


@pytest.mark.parametrize("sampler", samplers.NAMES)
def test_zero_terminal_snr_comes_back(sampler):
    """With DDIM where diffusers does not combine the two."""
    schedule = NoiseSchedule(prediction_type="v_prediction", rescale_zero_terminal_snr=True)
    defaults = {"sampler": sampler, "timestep_spacing": "trailing"}
    found, again = read_scheduler(scheduler_config(schedule, defaults), SOURCE)
    np.testing.assert_array_equal(found.alphas_cumprod, schedule.alphas_cumprod, err_msg=sampler)
    expected = "ddim" if sampler in ("pndm", "heun", *OURS_ALONE) else sampler
    assert again["sampler"] == expected, f"{sampler} became {again['sampler']}"


@pytest.mark.parametrize(
    ("name", "spacing", "beta_end"),
    [
        ("DDPMScheduler", "leading", 0.02),
        ("EulerDiscreteScheduler", "linspace", 0.02),
        ("HeunDiscreteScheduler", "linspace", 0.012),
    ],
)
@pytest.mark.filterwarnings("ignore::latentddpm.interop.diffusers.scheduler.SchedulerNote")
def test_what_a_file_leaves_out_is_diffusers_default(name, spacing, beta_end):
    schedule, defaults = read_scheduler({"_class_name": name}, SOURCE)
    assert schedule.beta_schedule == "linear", f"{name}: {schedule}"
    assert schedule.beta_end == beta_end, f"{name}: {schedule}"
    assert defaults["timestep_spacing"] == spacing, f"{name}: {defaults}"
    if spacing == "leading":  # steps_offset is 0 there and 1 here
        assert defaults["sampler_options"] == {"steps_offset": 0}, f"{name}: {defaults}"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("DDIMScheduler", {}, r"clip_sample: True \(here False for latents\)"),
        ("DDIMScheduler", {"clip_sample": False, "thresholding": True}, "thresholding: True"),
        ("PNDMScheduler", {}, r"skip_prk_steps: False \(here True\)$"),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}, r"solver_order: 3 \(here 2\)"),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver"}, "sde-dpmsolver"),
        ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "fixed_large_log"),
        ("DDPMScheduler", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("UniPCMultistepScheduler", {"solver_type": "bh1"}, "bh1"),
        ("EulerDiscreteScheduler", {"use_beta_sigmas": True}, "use_beta_sigmas"),
    ],
)
def test_what_has_no_counterpart_is_said(name, changes, message):
    with pytest.warns(SchedulerNote, match=message):
        read_scheduler({"_class_name": name, **changes}, SOURCE)


@pytest.mark.parametrize("name", OTHERS)
def test_a_scheduler_without_a_sampler_here_becomes_ddim(name):
    levels = {key: STABLE_DIFFUSION[key] for key in ("beta_start", "beta_end", "beta_schedule")}
    with pytest.warns(SchedulerNote, match=rf"{name} itself \(the default sampler is ddim\)"):
        _, defaults = read_scheduler({"_class_name": name, **levels}, SOURCE)
    assert defaults["sampler"] == "ddim", f"{name} became {defaults}"
    with pytest.raises(UserError, match="beta_schedule: None, expected text"):
        read_scheduler({"_class_name": name}, SOURCE)


# --- Flow matching -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sampler", "prediction_type", "name"),
    [
        ("euler", "velocity", "FlowMatchEulerDiscreteScheduler"),
        ("heun", "velocity", "FlowMatchHeunDiscreteScheduler"),
        ("ddim", "velocity", "FlowMatchEulerDiscreteScheduler"),
        ("dpmpp_2m", "velocity", "DPMSolverMultistepScheduler"),
        ("unipc", "sample", "UniPCMultistepScheduler"),
        ("euler", "sample", "DPMSolverMultistepScheduler"),
    ],
)
def test_flow_there_and_back(sampler, prediction_type, name):
    schedule = FlowSchedule(500, prediction_type, 3.0)
    config = scheduler_config(schedule, {"sampler": sampler, "timestep_spacing": "trailing"})
    assert config["_class_name"] == name, f"{sampler}: config {config}"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found, defaults = read_scheduler(config, SOURCE)
    assert found.get_config() == schedule.get_config(), f"{sampler}: schedule {found}"
    alone = name.startswith("Flow")
    expected = (
        {"ddim": "euler"}.get(sampler, sampler) if alone or sampler != "euler" else "dpmpp_2m"
    )
    assert defaults == {
        "sampler": expected,
        "timestep_spacing": "linspace" if alone else "trailing",
    }, f"{sampler}: defaults {defaults}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"use_dynamic_shifting": True}, "use_dynamic_shifting: True.*expected false"),
        ({"invert_sigmas": True}, "invert_sigmas"),
        ({"shift": "3"}, "shift: '3', expected a number"),
        ({"shift": -1}, "shift: expected a number above 0"),
        ({"prediction_type": "epsilon"}, "prediction_type: 'epsilon'.*flow_prediction"),
        ({"num_train_timesteps": 10**12}, "num_train_timesteps"),
    ],
)
def test_flow_levels_that_are_not_ours_are_refused(changes, message):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0, **changes}
    with pytest.raises(UserError, match=f"{SOURCE}: .*{message}"):
        read_scheduler(config, SOURCE)


@pytest.mark.parametrize("key", ["use_karras_sigmas", "stochastic_sampling"])
def test_flow_options_without_a_counterpart_are_said(key):
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", key: True}
    with pytest.warns(SchedulerNote, match=key):
        read_scheduler(config, SOURCE)
