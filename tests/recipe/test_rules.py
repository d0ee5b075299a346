"""Rules of a recipe: facts → values, without a network; and the budget of time."""

import itertools

import pytest

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.errors import UserError
from latentddpm.recipe import budget, rules, settings
from latentddpm.recipe.budget import Speed, Times
from latentddpm.recipe.facts import DataFacts, MachineFacts
from latentddpm.recipe.goal import QUALITIES, Goal
from latentddpm.recipe.rules import NONE, OWN, READY, UNETS, Recipe
from latentddpm.recipe.table import RULES
from latentddpm.training.plan.settle import settle_diffusion, settle_vae
from latentddpm.training.plan.sizes import check_unet, factor_of
from latentddpm.utils.timing import parse_duration

CPU, GPU = MachineFacts(2), MachineFacts(8, accelerator=True)
SIDES = (8, 20, 28, 48, 64, 100, 512)


@pytest.mark.parametrize("quality", QUALITIES)
@pytest.mark.parametrize("machine", [CPU, GPU], ids=["cpu", "gpu"])
def test_every_recipe_is_a_valid_configuration(quality, machine):
    for side, images in itertools.product(SIDES, (3, 40, 6000)):
        data, goal = DataFacts(images, side), Goal(quality)
        stage = rules.first_stage(data, machine, goal).value
        size = rules.resolution(stage, data, machine, goal).value
        factor = 1
        if stage == OWN:
            own = settings.autoencoder_settings(size, data, machine, goal, 100)
            config, _ = settle_vae(parse_config(AutoencoderRun, own))
            factor = factor_of(config.autoencoder.channel_multipliers)
        for name in UNETS:
            recipe = Recipe(stage, size, name, 4)
            own = settings.diffusion_settings(recipe, size // factor, data, 100)
            config = parse_config(DiffusionRun, own)
            check_unet(config.unet)
            if stage == NONE:
                settle_diffusion(config, NONE)
            depth = 2 ** (len(config.unet.channel_multipliers) - 1)
            assert size // factor % depth == 0, f"{name} halves {size // factor} unevenly"
        assert size <= max(side, 16), f"images of {side} pixels would be enlarged to {size}"


def test_the_first_stage_follows_from_the_images_and_the_wish():
    large = DataFacts(100, 100)
    cases = [
        (DataFacts(100, 32), CPU, Goal(), NONE),
        (DataFacts(100, 32, ready_psnr=40.0), CPU, Goal(), NONE),
        (DataFacts(100, 100, ready_psnr=24.0), CPU, Goal(), READY),
        (DataFacts(100, 100, ready_psnr=24.0), CPU, Goal("good"), OWN),
        (DataFacts(100, 100, ready_psnr=30.0), CPU, Goal("best"), OWN),
        (DataFacts(100, 100, ready_psnr=10.0), CPU, Goal(), OWN),
        (DataFacts(100, 100, ready_psnr=10.0), CPU, Goal(seconds=300), NONE),
        (DataFacts(100, 100, ready_psnr=10.0), GPU, Goal(seconds=300), OWN),
        (large, CPU, Goal(vae="mine"), "mine"),
        (large, CPU, Goal(vae=NONE), NONE),
        (large, CPU, Goal(init="model"), "model"),
        (large, CPU, Goal(init="model", vae="mine"), "mine"),
    ]
    for data, machine, goal, expected in cases:
        found = rules.first_stage(data, machine, goal)
        assert found.value == expected, f"{data}, {goal}: {found}"
        assert found.reason


def test_the_ready_autoencoder_is_measured_only_where_it_may_be_used():
    assert rules.may_use_ready(DataFacts(10, 100), Goal())
    for data, goal in [
        (DataFacts(10, 32), Goal()),
        (DataFacts(10, 100, bits=16), Goal()),
        (DataFacts(10, 100, channels=5), Goal()),
        (DataFacts(10, 100), Goal("best")),
        (DataFacts(10, 100), Goal(vae="none")),
        (DataFacts(10, 100), Goal(init="model")),
    ]:
        assert not rules.may_use_ready(data, goal), f"{data}, {goal}"


def test_more_time_never_gives_a_smaller_unet():
    rates = {name: 0.01 * 2**size for size, name in enumerate(UNETS)}
    data, known = DataFacts(800, 100), list(UNETS)
    for quality in QUALITIES:
        found = []
        for seconds in (1, 60, 600, 3600, 1e5, 1e9):
            chosen = rules.largest_unet(rates, data, CPU, Goal(quality, seconds), seconds)
            found.append(known.index(chosen.value))
        assert found == sorted(found), f"{quality}: {found}"
        most = QUALITIES[quality].sizes[0]
        assert known[found[-1]] == most, "no larger than the quality asks for"


def test_a_better_quality_is_never_less():
    for lower, higher in itertools.pairwise(QUALITIES.values()):
        assert lower.passes <= higher.passes
        assert lower.autoencoder_images <= higher.autoencoder_images
        for images in (3, 100, 10**4, 10**7):
            assert lower.examples(images) <= higher.examples(images)
        for own, better in zip(lower.sizes, higher.sizes, strict=True):
            assert list(UNETS).index(own) <= list(UNETS).index(better)


def test_less_memory_never_gives_a_larger_batch_at_a_time():
    data, goal = DataFacts(800, 100), Goal()
    unet = settings.diffusion_settings(Recipe(NONE, 32, "small", 32), 32, data, 100)
    own = settings.autoencoder_settings(64, data, CPU, goal, 100)
    for config in (parse_config(DiffusionRun, unet), parse_config(AutoencoderRun, own)):
        held = []
        for memory in (64e9, 8e9, 4e9, 3e9, 2.5e9, 2.2e9, 2e9, 0.5e9):
            parts = rules.parts_of_batch(config, 1, 32, MachineFacts(2, memory=int(memory)))
            held.append(32 // parts if parts else 0)
        assert held == sorted(held, reverse=True), f"less memory, more at a time: {held}"
        assert held[0] == 32
        assert held[-1] == 0
        assert len(set(held)) > 2, f"expected parts of a batch between: {held}"
        assert rules.parts_of_batch(config, 1, 32, CPU) == 1, "unknown memory limits nothing"
    error = rules.no_memory(1.3e9, MachineFacts(2, memory=5 * 10**8))
    assert "1.3 GB" in str(error)
    assert "0.5 GB" in str(error)


TIMES = {
    "pixels": Times(30, Speed(0.2, 20)),
    "ready": Times(30, Speed(0.2, 20), encoding=60, grid=10),
    "own": Times(30, Speed(0.2, 20), Speed(0.5, 30), encoding=20, grid=10, check=5),
}


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_steps_fill_the_time_and_grow_with_it(times):
    before = 0
    for seconds in (times.least, 600, 3600, 10**5):
        unet, own = budget.steps_in(seconds, times)
        assert unet >= before, "more time, fewer steps"
        assert min(unet, own or unet) >= budget.LEAST_STEPS
        assert times.total(unet, own) <= seconds + 1e-6, "the plan takes longer than it may"
        assert bool(own) == (times.autoencoder is not None)
        before = unet
    assert times.total(*budget.steps_in(10**5, times)) > 0.9 * 10**5, "time is left over"


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_a_time_too_short_names_the_least_that_is_enough(times):
    with pytest.raises(UserError, match="too short for any plan") as caught:
        budget.steps_in(times.least - 1, times)
    said = str(caught.value).rpartition(" ")[2]
    budget.steps_in(parse_duration("--time", said), times)


def test_a_slower_machine_leaves_fewer_steps():
    times = TIMES["own"]
    planned = budget.steps_left(3600, 1200, times, 1.0)
    assert budget.steps_left(3600, 1200, times, 2.0) < planned / 1.9
    assert budget.steps_left(3600, 2400, times, 1.0) < planned
    assert budget.steps_left(3600, 3600, times, 1.0) == budget.LEAST_STEPS


def paced(seconds_a_step, planned, deadline, **options):
    """A training that takes a step every so many seconds, until it ends or is done."""
    pace = budget.Pace(planned, deadline, **{"most": 10**6, **options})
    step, now = 0, 50.0  # compiling
    while step < planned:
        step, now = step + 1, now + seconds_a_step
        if pace.ends(step, now):
            break
    return pace, step, now


def test_the_first_steps_correct_a_wrong_number_once():
    pace, step, now = paced(1.0, 1000, 1050.0)
    assert (pace.steps, step) == (None, 1000), "as planned: nothing is corrected"
    for seconds in (0.1, 4.0):
        pace, step, now = paced(seconds, 1000, 1050.0)
        assert step < 300, "expected a correction soon"
        took = now + (pace.steps - step) * seconds
        assert 0.9 * 1050 < took <= 1050, f"{pace.steps} steps would end at {took}"
    pace, step, _ = paced(0.1, 1000, 1050.0, most=1000)
    assert (pace.steps, step) == (None, 1000), "no more than the quality asks for"
    pace, step, now = paced(4.0, 1000, 1050.0, correcting=False)
    assert pace.steps == step, "corrected before: it ends where it is"
    assert 1050 < now <= 1054


def test_overrides_belong_to_a_training():
    found = settings.split_overrides(["vae.training.num_steps=3", "diffusion.data.flip=true"])
    assert found == {"vae": ["training.num_steps=3"], "diffusion": ["data.flip=true"]}
    for wrong in ("training.num_steps=3", "vae", "difusion.data.flip=true"):
        with pytest.raises(UserError, match="--set"):
            settings.split_overrides([wrong])


def test_every_rule_has_a_reason():
    assert RULES[0].decides, "the first rule needs a name"
    for rule in RULES:
        assert all(rule[1:]), f"{rule}: expected what it does and why"


def test_a_finished_unet_is_trained_on_where_its_autoencoder_serves():
    data = DataFacts(800, 100, ready_psnr=24.0)
    cases = [
        (READY, data, Goal(), READY),
        (READY, data, Goal(init=NONE), None),
        (READY, data, Goal(init="mine"), "mine"),
        (READY, DataFacts(800, 100, captioned=0.1), Goal(), None),
        (OWN, data, Goal(), None),
        (NONE, data, Goal(), None),
    ]
    for stage, facts, goal, expected in cases:
        found = rules.start(stage, facts, goal)
        assert found.value == expected, f"{stage}, {facts}, {goal}: {found}"
    assert rules.start(READY, data, Goal(), own_sizes=True).value is None
    long = DataFacts(800, 100, common_tokens=30)
    assert rules.start(READY, long, Goal()).value is None, "emoji-128 would cut the captions"


def test_a_finished_unet_learns_the_words_of_the_captions():
    config = settings.diffusion_settings(
        Recipe(READY, 64, None, 32, start=READY), 8, DataFacts(800, 100), 100
    )
    found = parse_config(DiffusionRun, config)
    assert (found.init, found.text.trained) == (READY, True)
    assert found.training.learning_rate > rules.learning_rate(None, "mine"), "it is small"


def test_a_short_time_halves_the_side_and_a_quick_quality_too():
    assert rules.sides(READY, CPU, Goal(seconds=60)) == rules.READY_SIDES
    assert rules.sides(READY, CPU, Goal()) == (64,)
    assert rules.sides(READY, GPU, Goal()) == rules.sides(READY, CPU, Goal("good")) == (128,)
    assert rules.sides("mine", CPU, Goal(seconds=60)) == (), "another model keeps its side"
    for quality in QUALITIES.values():
        assert quality.examples(800, starts=True) <= quality.examples(800)
