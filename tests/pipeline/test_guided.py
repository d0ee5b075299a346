"""Guidance of a model's network: what it is told, how often it is called, and what comes out.

A network as a graph of NumPy counts its calls; the others are those of `tiny`.
"""

import numpy as np
import pytest
from tiny import shared_model

from latentddpm.conditions.conditions import Conditions
from latentddpm.diffusion.samplers import get
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.graph_networks import GraphDenoiser
from latentddpm.pipeline.sampler_inputs import Told, guided_denoiser
from latentddpm.pipeline.settings import ModelFacts

CONDITIONS = Conditions.from_json(
    [{"name": name, "kind": "class", "words": ["a", "b"]} for name in ("digit", "lines")]
)
FACTS = ModelFacts((), (8, 8), True, 1000, 8, conditions=CONDITIONS)
LATENTS = np.random.default_rng(0).standard_normal((2, 4, 4, 1)).astype("float32")
GIVEN = {
    "context": np.full((2, 3, 5), 2.0, "float32"),
    "digit": np.array([[1.0], [-1.0]], "float32"),
    "lines": np.random.default_rng(1).standard_normal((2, 4, 4, 1)).astype("float32"),
}
WITHOUT = {name: np.zeros_like(values) for name, values in GIVEN.items()}
TOLD = Told(GIVEN, WITHOUT, {"digit": ("digit",), "lines": ("lines",)})


class Graph:
    """A graph in NumPy that multiplies what it is told, and remembers its batches."""

    engine, arguments, paths = "numpy", {"latent_channels": 1}, {}

    def __init__(self, factor=1.0):
        self.factor, self.batch_sizes = factor, []

    def read(self):
        return {}

    def bind(self, weights):
        return self.predict

    def predict(self, inputs):
        self.batch_sizes.append(len(inputs["noisy_latents"]))
        told = self.factor * np.ones_like(inputs["noisy_latents"])
        for name in inputs.keys() - {"noisy_latents", "timesteps"}:
            values = inputs[name]
            wanted = values if values.ndim == 4 else values.reshape(len(values), -1).mean(1)
            told = told * (1 + np.reshape(wanted, (len(values), *wanted.shape[1:], *[1] * 3)[:4]))
        return inputs["noisy_latents"] * told


def said(told):
    """What the network says, told this."""
    inputs = {"noisy_latents": LATENTS, "timesteps": np.zeros(2, "int32"), **told}
    return Graph().predict(inputs)


def drawn(told=TOLD, timestep=500, **given):
    """One prediction of the guided network, and its batches."""
    graph = Graph()
    denoiser = guided_denoiser(GraphDenoiser(graph), told, FACTS.settings(**given), 1000)
    return denoiser(LATENTS, np.full(2, timestep, "int32")), graph.batch_sizes


def test_the_conditions_that_are_named_come_first_in_the_models_order():
    scales = {"lines": 3.0, "digit": 2.0}
    found, batch_sizes = drawn(condition_scales=scales, guidance_scale=5.0)
    digit = {**WITHOUT, "digit": GIVEN["digit"]}
    stages = [said(one) for one in (WITHOUT, digit, {**digit, "lines": GIVEN["lines"]}, GIVEN)]
    expected = stages[0]
    for scale, before, after in zip((2.0, 3.0, 5.0), stages, stages[1:], strict=False):
        expected = expected + scale * (after - before)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert batch_sizes == [8], f"{batch_sizes}, expected one call of four stages"


def test_a_condition_of_several_inputs_is_one_stage():
    told = Told(GIVEN, WITHOUT, {"digit": ("digit", "lines")})
    found, _ = drawn(told, condition_scales={"digit": 2.0}, guidance_scale=5.0)
    stages = [said(WITHOUT), said({**GIVEN, "context": WITHOUT["context"]}), said(GIVEN)]
    expected = stages[0] + 2 * (stages[1] - stages[0]) + 5 * (stages[2] - stages[1])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_where_every_condition_is_named_there_is_no_further_stage():
    given, without = ({"digit": each["digit"]} for each in (GIVEN, WITHOUT))
    told = Told(given, without, {"digit": ("digit",)})
    found, batch_sizes = drawn(told, condition_scales={"digit": 2.0}, guidance_scale=5.0)
    stages = [said({"digit": each["digit"]}) for each in (WITHOUT, GIVEN)]
    np.testing.assert_allclose(found, stages[0] + 2 * (stages[1] - stages[0]), rtol=1e-5)
    assert batch_sizes == [4], f"{batch_sizes}, expected two stages"


@pytest.mark.parametrize("scales", [{}, {"digit": 4.0}, {"digit": 4.0, "lines": 4.0}])
def test_equal_scales_are_guidance_as_ever(scales):
    found, batch_sizes = drawn(guidance_scale=4.0, condition_scales=scales)
    np.testing.assert_array_equal(found, said(WITHOUT) + 4.0 * (said(GIVEN) - said(WITHOUT)))
    assert batch_sizes == [4], f"{batch_sizes}, expected one call of 2B"


@pytest.mark.parametrize(
    ("timestep", "batch_size"), [(0, 2), (199, 2), (200, 4), (600, 4), (601, 2), (999, 2)]
)
def test_outside_of_the_interval_a_call_costs_one(timestep, batch_size):
    found, batch_sizes = drawn(timestep=timestep, guidance_interval=(0.2, 0.6), guidance_scale=4.0)
    assert batch_sizes == [batch_size], f"{batch_sizes}, expected one call of {batch_size}"
    expected = said(GIVEN)
    if batch_size == 4:
        expected = said(WITHOUT) + 4.0 * (said(GIVEN) - said(WITHOUT))
    np.testing.assert_array_equal(found, expected)


def test_a_sampler_calls_the_network_once_for_what_is_not_guided():
    graph = Graph(0.1)
    settings = FACTS.settings(guidance_interval=(0.3, 0.7), guidance_scale=4.0)
    denoiser = guided_denoiser(GraphDenoiser(graph), TOLD, settings, 1000)
    get("ddim")(NoiseSchedule(), 10, "trailing").sample(denoiser, LATENTS)
    expected = [4 if 300 <= t <= 700 else 2 for t in range(999, 0, -100)]
    assert graph.batch_sizes == expected, f"{graph.batch_sizes}, expected {expected}"


@pytest.mark.parametrize("given", [{}, {"guidance_scale": 1.0}])
def test_a_network_that_is_told_nothing_is_called_plain(given):
    found, batch_sizes = drawn(Told(), guidance_interval=(0.2, 0.4), **given)
    np.testing.assert_array_equal(found, LATENTS)
    assert batch_sizes == [2]


# --- A model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return shared_model()


def test_the_whole_interval_draws_what_was_always_drawn(model):
    plain = model.generate("red apple", seed=3)
    whole = model.generate("red apple", seed=3, guidance_interval=(0, 1))
    assert np.array_equal(plain, whole), "expected the same bytes"


def test_an_interval_that_is_never_met_draws_without_guidance(model):
    never = model.generate("red apple", seed=3, guidance_interval=(0, 0.001))
    plain = model.generate("red apple", seed=3, guidance_scale=1)
    assert np.array_equal(never, plain), "expected the bytes of guidance scale 1"


def test_an_interval_changes_the_picture(model):
    pictures = [
        model.generate("red apple", seed=3, guidance_interval=each).astype(int)
        for each in ((0, 1), (0.5, 1), (0, 0.5))
    ]
    assert all(np.abs(pictures[0] - other).max() > 1 for other in pictures[1:])
    assert np.abs(pictures[1] - pictures[2]).max() > 1


def test_settings_with_an_interval_draw_what_they_say(model):
    settings = model.settings(guidance_interval=(0.2, 0.8))
    found = model.generate("red apple", seed=3, settings=settings)
    expected = model.generate("red apple", seed=3, guidance_interval=[0.2, 0.8])
    assert np.array_equal(found, expected), "expected the same bytes"
