"""Guidance of a model's network: what it is told, how often it is called, and what comes out.

A network as a graph of NumPy counts its calls; the others are those of `tiny`.
"""

import copy

import numpy as np
import pytest
from tiny import perturb, quick_model, shared_model, tiny_autoencoder

from latentddpm.conditions.conditions import Conditions
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.samplers import get
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.graph_networks import GraphDenoiser
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.settings import ModelFacts
from latentddpm.pipeline.told.guided import Guide, guided_denoiser
from latentddpm.pipeline.told.told import Told

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


# --- Autoguidance --------------------------------------------------------------------------


def autoguided(timestep=500, scale=2.0, **given):
    """One prediction beside a network half as loud, and the batches of both."""
    strong, weak = Graph(), Graph(0.5)
    guide = Guide(GraphDenoiser(weak), TOLD, scale)
    settings = FACTS.settings(**given)
    denoiser = guided_denoiser(GraphDenoiser(strong), TOLD, settings, 1000, guide)
    found = denoiser(LATENTS, np.full(2, timestep, "int32"))
    return found, strong.batch_sizes, weak.batch_sizes


@pytest.mark.parametrize("scale", [0.0, 2.0, 3.0])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_a_weaker_network_is_guided_as_the_network_is(scale, guidance_scale):
    found, strong, weak = autoguided(scale=scale, guidance_scale=guidance_scale)
    own = said(WITHOUT) + guidance_scale * (said(GIVEN) - said(WITHOUT))
    np.testing.assert_allclose(found, 0.5 * own + scale * 0.5 * own, rtol=1e-5, atol=1e-5)
    assert strong == weak == [2 if guidance_scale == 1 else 4], "expected one call of each"


def test_outside_of_the_interval_the_weaker_network_is_not_called():
    found, strong, weak = autoguided(timestep=900, guidance_interval=(0.2, 0.6), guidance_scale=4)
    np.testing.assert_array_equal(found, said(GIVEN))
    assert (strong, weak) == ([2], []), "expected one batch of B"


def test_autoguidance_needs_no_condition():
    strong, weak = Graph(), Graph(0.5)
    guide = Guide(GraphDenoiser(weak), Told(), 3.0)
    settings = FACTS.settings(guidance_interval=(0.2, 0.6))
    denoiser = guided_denoiser(GraphDenoiser(strong), Told(), settings, 1000, guide)
    found = [denoiser(LATENTS, np.full(2, t, "int32")) for t in (500, 900)]
    np.testing.assert_allclose(found[0], 0.5 * LATENTS + 3 * 0.5 * LATENTS, rtol=1e-6)
    np.testing.assert_array_equal(found[1], LATENTS)
    assert (strong.batch_sizes, weak.batch_sizes) == ([2, 2], [2])


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


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a model, and of one whose UNet is another one behind the same autoencoder."""
    root = tmp_path_factory.mktemp("models")
    quick_model().save(root / "model")
    weaker = quick_model()
    perturb(weaker.unet, seed=1, size=0.3)
    weaker.save(root / "weaker")
    return root


@pytest.mark.parametrize("engine", [pytest.param("keras", marks=pytest.mark.slow), "onnx"])
def test_a_model_guided_by_itself_draws_what_it_draws(engine, folders):
    model, same = (LatentDiffusion.load(folders / "model", engine) for _ in range(2))
    given = {"seed": 3, "output": "latents", "negative_prompt": "cat"}
    plain = model.generate("red apple", **given)
    for scale in (0.0, None, 7.0):
        for guide in (model, same):
            found = model.generate(
                "red apple", autoguidance=guide, autoguidance_scale=scale, **given
            )
            np.testing.assert_allclose(found, plain, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_both_engines_draw_the_same_away_from_a_weaker_model(folders):
    images = []
    for engine in ("keras", "onnx"):
        model, weaker = (
            LatentDiffusion.load(folders / name, engine) for name in ("model", "weaker")
        )
        given = {"seed": 3, "num_steps": 2, "guidance_interval": (0.2, 1)}
        images.append(model.generate("red apple", autoguidance=weaker, **given).astype(int))
        plain = model.generate("red apple", **given)
        assert np.abs(images[-1] - plain).max() > 5, "expected the weaker model to count"
    assert np.abs(images[0] - images[1]).max() <= 1


@pytest.mark.slow
def test_autoguidance_is_linear_in_its_scale(folders):
    """One step of the sampler is linear in the prediction."""
    model, weaker = (LatentDiffusion.load(folders / name) for name in ("model", "weaker"))
    given = {"seed": 3, "num_steps": 1, "output": "latents"}
    at = {
        scale: model.generate("cat", autoguidance=weaker, autoguidance_scale=scale, **given)
        for scale in (0.0, 1.0, 2.0)
    }
    np.testing.assert_allclose(at[0.0], weaker.generate("cat", **given), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(at[1.0], model.generate("cat", **given))
    np.testing.assert_allclose(at[2.0], 2 * at[1.0] - at[0.0], rtol=1e-4, atol=1e-4)


def changed(model, **changes):
    """A model as `model`, but for what is given."""
    other = copy.copy(model)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"schedule": NoiseSchedule("linear")}, "beta_schedule 'linear' and this one 'scaled_lin"),
        ({"schedule": NoiseSchedule(prediction_type="v_prediction")}, "prediction_type 'v_pred"),
        ({"schedule": FlowSchedule()}, "schedule 'flow' and this one 'ddpm'"),
        ({"text_encoder": None}, "has_text False and this one True"),
        ({"conditions": CONDITIONS}, "conditions .*digit.* and this one"),
        ({"autoencoder": tiny_autoencoder(seed=7)}, "autoencoder '[0-9a-f]{12}' and this one"),
        ({"unet": None}, "expected a model with a UNet"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_a_model_that_predicts_something_else_is_no_guide(model, changes, words):
    with pytest.raises(UserError, match=f"autoguidance: .*{words}") as error:
        model.generate("cat", autoguidance=changed(model, **changes))
    assert "\n" not in str(error.value)


def test_bad_autoguidance(model):
    for given, words in (
        ({"autoguidance_scale": 2.0}, "autoguidance_scale: 2.0 without autoguidance"),
        (
            {"autoguidance": "weights/emoji-128"},
            "autoguidance: weights/.*, expected a model",
        ),
        ({"autoguidance": model, "autoguidance_scale": -1}, "autoguidance_scale: .* at least 0"),
        ({"autoguidance": model, "autoguidance_scale": "2"}, "autoguidance_scale: .* a number"),
    ):
        with pytest.raises(UserError, match=words):
            model.generate("cat", **given)
