"""Options as they are listed without Keras are those that the samplers take."""

import inspect
import typing

import pytest

from latentddpm.choices import SAMPLER_OPTIONS, SAMPLERS
from latentddpm.diffusion import FlowSchedule, NoiseSchedule, samplers
from latentddpm.diffusion.options import check_sampler_of_schedule, check_sampler_options
from latentddpm.errors import UserError

SCHEDULE = NoiseSchedule()
EVERY_SAMPLER = ("schedule", "num_steps", "timestep_spacing")
VALUES = {
    "steps_offset": 0,
    "eta": 0.5,
    "set_alpha_to_one": False,
    "variance": "small",
    "clip_sample": True,
    "sigma_spacing": "karras",
    "shift": 3.0,
    "corrector_steps": 2,
    "original_steps": 20,
    "snr": 0.1,
}


@pytest.mark.parametrize("name", samplers.NAMES)
def test_the_list_names_what_the_sampler_takes(name):
    made = samplers.get(name)
    taken = tuple(key for key in inspect.signature(made).parameters if key not in EVERY_SAMPLER)
    assert SAMPLERS[name] == taken, f"choices.SAMPLERS: {SAMPLERS[name]}, expected {taken}"
    hints = typing.get_type_hints(made.__init__)
    for option in taken:
        kinds = {*typing.get_args(hints[option]), hints[option]}
        kinds = {list if typing.get_origin(kind) else kind for kind in kinds} | {hints[option]}
        listed = {*typing.get_args(SAMPLER_OPTIONS[option])} or {SAMPLER_OPTIONS[option]}
        assert listed <= kinds, f"{option}: {listed}, expected of {kinds}"


def test_the_lists_are_of_the_same_samplers():
    assert tuple(SAMPLERS) == samplers.NAMES, f"choices.SAMPLERS: expected {samplers.NAMES}"
    listed = {option for options in SAMPLERS.values() for option in options}
    assert listed == set(SAMPLER_OPTIONS), "expected the types of all options, and of no other"
    assert set(VALUES) == listed, "expected this test to have a value for each"


@pytest.mark.parametrize("name", samplers.NAMES)
@pytest.mark.parametrize("option", VALUES)
def test_what_passes_the_check_is_what_the_sampler_takes(name, option):
    options = {option: VALUES[option]}
    if option in SAMPLERS[name]:
        checked = check_sampler_options(name, options)
        assert checked == options, f"{checked}, expected the options as they were given"
        schedule = FlowSchedule() if option == "shift" else SCHEDULE
        samplers.get(name)(schedule, 5, **checked)
        return
    with pytest.raises(UserError, match=f"{option}: the sampler '{name}' has no such option"):
        check_sampler_options(name, options)
    with pytest.raises(TypeError):
        samplers.get(name)(SCHEDULE, 5, **options)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ddim", {"eta": -0.1}),
        ("ddim", {"eta": float("nan")}),
        ("ddim", {"eta": [0.5, 2.0]}),
        ("ddim", {"variance": "large"}),
        ("ddpm", {"variance": "larg"}),
        ("euler", {"sigma_spacing": "karas"}),
        ("pc", {"corrector_steps": -1}),
        ("lcm", {"original_steps": 0}),
        ("pc", {"snr": 1.0}),
        ("euler", {"shift": 0.0}),
    ],
)
def test_a_wrong_value_is_refused_in_the_same_words(name, options):
    with pytest.raises(UserError) as early:
        check_sampler_options(name, options)
    schedule = FlowSchedule() if "shift" in options else SCHEDULE
    with pytest.raises(UserError) as late:
        samplers.get(name)(schedule, 5, **options)
    assert str(early.value) == str(late.value), "expected the words of the sampler itself"


@pytest.mark.parametrize(
    ("name", "options", "schedule", "message"),
    [
        ("pndm", {}, FlowSchedule(), "nearest that does is 'dpmpp_2m'"),
        ("lcm", {}, FlowSchedule(), "nearest that does is 'dpmpp_2m'"),
        ("euler", {"sigma_spacing": "karras"}, FlowSchedule(), "leave it out"),
        ("euler", {"shift": 3.0}, SCHEDULE, "only a flow schedule has one"),
    ],
)
def test_what_a_schedule_does_not_take_is_refused_in_the_same_words(
    name, options, schedule, message
):
    with pytest.raises(UserError, match=message) as early:
        check_sampler_of_schedule(name, options, schedule.kind)
    with pytest.raises(UserError) as late:
        samplers.get(name)(schedule, 5, **options)
    assert str(early.value) == str(late.value), "expected the words of the sampler itself"
