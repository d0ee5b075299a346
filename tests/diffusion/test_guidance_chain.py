"""Scales of single conditions, an interval of timesteps, a weaker network: in closed form."""

import itertools
import warnings

import keras
import numpy as np
import pytest

from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    GuidanceChain,
    GuidanceInterval,
)
from latentddpm.diffusion.samplers import get
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError

NUMBERS = np.random.default_rng(0)
LATENTS = NUMBERS.standard_normal((3, 2, 2, 4)).astype("float32")
TIMESTEPS = np.array([3, 500, 999], dtype="int32")
NOTHING = {name: np.zeros((3, 1), "float32") for name in ("digit", "picture", "text")}
TOLD = {name: NUMBERS.standard_normal((3, 1)).astype("float32") for name in NOTHING}


def stage(*names):
    return {**NOTHING, **{name: TOLD[name] for name in names}}


STAGES = [stage(), stage("digit"), stage("digit", "picture"), TOLD]


class Network:
    """A network in closed form, whose prediction is no sum of what its inputs say."""

    def __init__(self):
        self.batch_sizes = []

    def __call__(self, noisy_latents, timesteps, inputs):
        self.batch_sizes.append(noisy_latents.shape[0])
        product = 1
        for name, factor in (("digit", 1.0), ("picture", -2.0), ("text", 3.0)):
            product = product * (1 + factor * inputs[name])
        product = np.asarray(product)[..., None, None]
        prediction = np.asarray(noisy_latents) * product + timesteps[:, None, None, None] / 1000
        return prediction.astype("float32")


def alone(told):
    return Network()(LATENTS, TIMESTEPS, told)


def chain(scales, rescale=0.0, stages=STAGES):
    network = Network()
    guided = GuidanceChain(network, stages, scales, rescale)(LATENTS, TIMESTEPS)
    return guided, network.batch_sizes


# --- A chain of stages ---------------------------------------------------------------------


@pytest.mark.parametrize("scales", [(2.0, 1.5, 7.5), (0.0, 3.0, 1.0), (1.0, 2.0, 3.0), (4, 4, 4)])
def test_a_chain_adds_what_each_stage_adds(scales):
    found, _ = chain(scales)
    expected = alone(STAGES[0]).astype("float64")
    for scale, (before, after) in zip(scales, itertools.pairwise(STAGES), strict=True):
        expected = expected + scale * (alone(after) - alone(before).astype("float64"))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("scales", "calls"),
    [
        ((2.0, 3.0, 4.0), 4),
        ((1.0, 3.0, 4.0), 3),
        ((2.0, 2.0, 4.0), 3),
        ((2.0, 4.0, 4.0), 3),
        ((2.0, 2.0, 2.0), 2),
        ((1.0, 1.0, 4.0), 2),
        ((4.0, 1.0, 1.0), 3),
        ((1.0, 1.0, 1.0), 1),
    ],
)
def test_a_stage_between_equal_scales_is_not_computed(scales, calls):
    _, batch_sizes = chain(scales)
    assert batch_sizes == [3 * calls], f"{batch_sizes}, expected one call with {calls} stages"


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_chain_of_one_stage_is_classifier_free_guidance(scale, rescale):
    found, _ = chain([scale], rescale, [stage(), TOLD])
    expected = ClassifierFreeGuidance(Network(), TOLD, stage(), scale, rescale)
    np.testing.assert_array_equal(found, expected(LATENTS, TIMESTEPS))


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_equal_scales_are_one_scale_of_all(scale):
    found, _ = chain([scale] * 3, 0.7)
    expected, _ = chain([scale], 0.7, [stage(), TOLD])
    np.testing.assert_array_equal(found, expected)


def test_rescale_is_towards_the_last_stage():
    found, _ = chain([2.0, 3.0, 4.0], 1.0)
    deviations = [each.std(axis=(1, 2, 3)) for each in (found, alone(TOLD))]
    np.testing.assert_allclose(*deviations, rtol=1e-5)


@pytest.mark.parametrize("scales", [(2.0, 3.0, 4.0), (1.0, 1.0, 1.0)])
def test_a_learned_variance_is_that_of_the_last_stage(scales):
    def both(*inputs):
        prediction = Network()(*inputs)
        return np.concatenate([prediction, np.tanh(prediction)], axis=-1)

    found = GuidanceChain(both, STAGES, scales)(LATENTS, TIMESTEPS)
    np.testing.assert_allclose(found[..., :4], chain(scales)[0], rtol=1e-6)
    np.testing.assert_array_equal(found[..., 4:], np.tanh(alone(TOLD)))


@pytest.mark.parametrize(
    ("scales", "words"),
    [((2.0, 3.0), "scales: 2 for 4 stages"), ((2.0, -1.0, 3.0), "at least 0, got -1")],
)
def test_bad_chains(scales, words):
    with pytest.raises(UserError, match=words):
        chain(scales)


@pytest.mark.reference
def test_two_conditions_are_guided_as_diffusers_guides_instruct_pix2pix():
    """Its whole pipeline runs; what its network says goes into the chain, too."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import (
            AutoencoderKL,
            DDIMScheduler,
            StableDiffusionInstructPix2PixPipeline,
            UNet2DConditionModel,
        )
        from transformers import CLIPTextConfig, CLIPTextModel

        torch.manual_seed(0)
        sizes = {"norm_num_groups": 4, "layers_per_block": 1, "block_out_channels": (8, 8)}
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=16,
            attention_head_dim=2,
            **sizes,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            **sizes,
        )
        text = CLIPTextConfig(
            vocab_size=100,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
        pipeline = StableDiffusionInstructPix2PixPipeline(
            vae,
            CLIPTextModel(text),
            None,
            unet,
            DDIMScheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        said, guided = [], []
        step = pipeline.scheduler.step
        unet.register_forward_hook(lambda module, inputs, output: said.append(output[0]))
        pipeline.scheduler.step = lambda noise, *rest, **more: (
            guided.append(noise),
            step(noise, *rest, **more),
        )[1]
        embedded = torch.randn(2, 4, 16)
        pipeline(
            prompt_embeds=embedded[:1],
            negative_prompt_embeds=embedded[1:],
            image=torch.rand(1, 3, 16, 16),
            num_inference_steps=3,
            guidance_scale=7.5,
            image_guidance_scale=1.5,
            output_type="latent",
        )
    assert len(said) == len(guided) == 3, "expected three steps"
    for both, expected in zip(said, guided, strict=True):
        text, picture, nothing = both.detach().numpy().transpose(0, 2, 3, 1)

        def network(noisy_latents, timesteps, context, order=(nothing, picture, text)):
            return np.stack(order)[context[:, 0]]

        chained = GuidanceChain(network, [np.array([[k]]) for k in range(3)], [1.5, 7.5])
        found = chained(nothing[None], np.zeros(1, "int32"))
        expected = expected.detach().numpy().transpose(0, 2, 3, 1)
        assert np.abs(text - picture).max() > 1e-3, "the network does not hear the text"
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


# --- An interval of timesteps --------------------------------------------------------------


class Counted:
    """A denoiser that multiplies, and remembers the timesteps that it was asked for."""

    def __init__(self, factor):
        self.factor, self.asked = factor, []

    def __call__(self, noisy_latents, timesteps):
        self.asked.append(np.asarray(timesteps).tolist())
        return self.factor * noisy_latents


def interval(low, high, total=1000):
    guided, plain = Counted(3.0), Counted(0.5)
    return GuidanceInterval(guided, plain, (low, high), total), guided.asked, plain.asked


@pytest.mark.parametrize("of", [np.asarray, keras.ops.convert_to_tensor], ids=["numpy", "keras"])
@pytest.mark.parametrize(
    ("timestep", "inside"),
    [
        *((0, False), (199, False), (199.9, False), (200, True)),
        *((500.5, True), (800, True), (801, False), (999, False)),
    ],
)
def test_an_interval_guides_between_its_ends_and_with_them(timestep, inside, of):
    denoiser, guided, plain = interval(0.2, 0.8)
    timesteps = np.full(3, timestep, "int32" if isinstance(timestep, int) else "float32")
    found = denoiser(of(LATENTS), of(timesteps))
    np.testing.assert_array_equal(found, (3.0 if inside else 0.5) * LATENTS)
    assert (len(guided), len(plain)) == ((1, 0) if inside else (0, 1)), "expected one call"


@pytest.mark.parametrize("of", [np.asarray, keras.ops.convert_to_tensor], ids=["numpy", "keras"])
def test_each_example_is_inside_or_outside_by_its_own_timestep(of):
    denoiser, _, _ = interval(0.4, 0.6)
    expected = LATENTS * np.array([0.5, 3.0, 0.5], "float32")[:, None, None, None]
    np.testing.assert_array_equal(denoiser(of(LATENTS), of(TIMESTEPS)), expected)


@pytest.mark.parametrize("name", ["ddim", "heun", "euler", "unipc"])
@pytest.mark.parametrize("schedule", [NoiseSchedule(), FlowSchedule(), NoiseSchedule("linear")])
def test_a_sampler_is_guided_inside_of_the_interval_alone(name, schedule):
    """Inner calls of Heun and fractional timesteps among them; flow has pure noise at T itself."""
    total = schedule.num_train_timesteps
    denoiser, guided, plain = interval(0.3, 0.7, total)
    options = {"sigma_spacing": "karras"} if name == "euler" and schedule.kind == "ddpm" else {}
    sampler = get(name)(schedule, 10, "trailing", **options)
    sampler.sample(lambda x, t: 0.1 * denoiser(x, t), LATENTS)
    asked = {"inside": guided, "outside": plain}
    for where, timesteps in asked.items():
        assert timesteps, f"expected calls {where}"
        shares = np.ravel(timesteps) / total
        assert (((shares >= 0.3) & (shares <= 0.7)) == (where == "inside")).all(), f"{shares}"
    every = [*map(tuple, [*guided, *plain])]
    assert len(every) == (19 if name == "heun" else 10), "expected one call for each of the steps'"


@pytest.mark.parametrize("schedule", [NoiseSchedule(), FlowSchedule()])
def test_the_whole_interval_guides_everything(schedule):
    denoiser, guided, plain = interval(0.0, 1.0, schedule.num_train_timesteps)
    latents = [
        get("ddim")(schedule, 5, "trailing").sample(one, LATENTS)
        for one in (lambda x, t: 0.1 * denoiser(x, t), lambda x, t: 0.1 * Counted(3.0)(x, t))
    ]
    np.testing.assert_array_equal(*latents)
    assert (len(guided), len(plain)) == (5, 0)


@pytest.mark.parametrize("wrong", [(0.8, 0.2), (-0.1, 0.5), (0.5, 1.1), (0.5,), (0, float("nan"))])
def test_bad_intervals(wrong):
    with pytest.raises(UserError, match="guidance_interval: "):
        GuidanceInterval(Counted(1.0), Counted(1.0), wrong, 1000)


# --- A weaker network ----------------------------------------------------------------------


@pytest.mark.parametrize("of", [np.asarray, keras.ops.convert_to_tensor], ids=["numpy", "keras"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0, 3.5])
def test_autoguidance_leads_away_from_the_weaker(scale, of):
    guided = AutoGuidance(lambda x, t: x**2, lambda x, t: 0.3 * x, scale)
    expected = 0.3 * LATENTS + scale * (LATENTS**2 - 0.3 * LATENTS)
    found = guided(of(LATENTS), of(TIMESTEPS))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_autoguidance_of_a_network_by_itself_changes_nothing():
    denoiser = Counted(0.7)
    for scale in (0.0, 1.0, 2.0, 50.0):
        found = AutoGuidance(denoiser, denoiser, scale)(LATENTS, TIMESTEPS)
        np.testing.assert_array_equal(found, 0.7 * LATENTS)


def test_with_a_scale_of_one_the_weaker_is_not_called():
    weaker = Counted(0.1)
    found = AutoGuidance(Counted(0.7), weaker, 1)(LATENTS, TIMESTEPS)
    np.testing.assert_array_equal(found, 0.7 * LATENTS)
    assert not weaker.asked


def test_autoguidance_and_guidance_by_the_prompt_go_in_either_order():
    """Both are linear: guided networks guide as a guided network does."""

    def weaker(noisy_latents, timesteps, told):
        return 0.5 * Network()(noisy_latents, timesteps, told) + 0.1 * noisy_latents

    def both(noisy_latents, timesteps, told):
        auto = AutoGuidance(
            lambda x, t: Network()(x, t, told), lambda x, t: weaker(x, t, told), 2.0
        )
        return auto(noisy_latents, timesteps)

    outside = AutoGuidance(
        *(ClassifierFreeGuidance(one, TOLD, stage(), 3.0) for one in (Network(), weaker)), 2.0
    )
    inside = ClassifierFreeGuidance(both, TOLD, stage(), 3.0)
    found = [one(LATENTS, TIMESTEPS) for one in (outside, inside)]
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-4)


def test_autoguidance_leaves_a_learned_variance_alone():
    strong = lambda x, t: np.concatenate([x, 0 * x + 7], axis=-1)  # noqa: E731
    found = AutoGuidance(strong, lambda x, t: 0 * x, 2.0)(LATENTS, TIMESTEPS)
    np.testing.assert_array_equal(found, np.concatenate([2 * LATENTS, 0 * LATENTS + 7], axis=-1))


@pytest.mark.parametrize("scale", [-1, float("nan"), float("inf")])
def test_bad_autoguidance_scales(scale):
    with pytest.raises(UserError, match="autoguidance_scale: expected a number of at least 0"):
        AutoGuidance(Counted(1.0), Counted(1.0), scale)
