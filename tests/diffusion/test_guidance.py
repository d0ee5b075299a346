"""Classifier-free guidance: the closed form, the single batch, and its place in a sampler."""

import keras
import numpy as np
import pytest

from latentddpm.diffusion import ClassifierFreeGuidance, NoiseSchedule
from latentddpm.diffusion.samplers import DDIMSampler
from latentddpm.errors import UserError

LATENTS = np.random.default_rng(0).standard_normal((3, 2, 2, 4)).astype("float32")
CONTEXT = np.random.default_rng(1).standard_normal((3, 5, 6)).astype("float32")
NULL = np.random.default_rng(2).standard_normal((1, 5, 6)).astype("float32")
TIMESTEPS = np.array([3, 500, 999], dtype="int32")


class Denoiser:
    """A small network in closed form: it tells every input of every example apart."""

    def __init__(self, dtype="float32"):
        self.dtype = dtype
        self.batch_sizes = []

    def __call__(self, noisy_latents, timesteps, context):
        self.batch_sizes.append(noisy_latents.shape[0])
        text = keras.ops.mean(context, axis=(1, 2))[:, None, None, None]
        time = keras.ops.cast(timesteps, "float32")[:, None, None, None] / 1000
        return keras.ops.cast(noisy_latents * (1 + text) + time * text, self.dtype)


def guided(scale, null_context=NULL, dtype="float32"):
    denoiser = Denoiser(dtype)
    guidance = ClassifierFreeGuidance(denoiser, CONTEXT, null_context, scale)
    prediction = guidance(keras.ops.convert_to_tensor(LATENTS), TIMESTEPS)
    return keras.ops.convert_to_numpy(prediction), denoiser.batch_sizes


def alone(context):
    context = np.broadcast_to(context, CONTEXT.shape)
    return keras.ops.convert_to_numpy(Denoiser()(LATENTS, TIMESTEPS, context))


@pytest.mark.parametrize("scale", [0, 0.5, 1, 1.0, 5.0, 7.5])
@pytest.mark.parametrize("null_context", [NULL, NULL + CONTEXT], ids=["empty", "negative"])
def test_closed_form(scale, null_context):
    actual, _ = guided(scale, null_context)
    unconditional, conditional = alone(null_context), alone(CONTEXT)
    expected = (1 - scale) * unconditional + scale * conditional
    np.testing.assert_allclose(
        actual, expected, rtol=1e-5, atol=1e-5, err_msg="expected uncond + s(cond - uncond)"
    )


@pytest.mark.parametrize("rescale", [0.0, 0.7])
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_a_learned_variance_is_that_of_the_prompt(scale, rescale):
    """The first half of the channels is guided as if it were alone, the second is not guided."""

    def both(*inputs):
        prediction = Denoiser()(*inputs)
        return keras.ops.concatenate([prediction, keras.ops.tanh(prediction)], axis=-1)

    latents = keras.ops.convert_to_tensor(LATENTS)
    found = ClassifierFreeGuidance(both, CONTEXT, NULL, scale, rescale)(latents, TIMESTEPS)
    plain = ClassifierFreeGuidance(Denoiser(), CONTEXT, NULL, scale, rescale)(latents, TIMESTEPS)
    expected = np.concatenate([plain, np.tanh(alone(CONTEXT))], axis=-1)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("scale", "batch_sizes"), [(7.5, [6]), (0, [6]), (1, [3]), (1.0, [3])])
def test_one_call_of_the_network(scale, batch_sizes):
    _, seen = guided(scale)
    assert seen == batch_sizes, "expected one call: 2B with guidance, B without"


def test_scale_one_is_exactly_the_conditional_prediction():
    actual, _ = guided(1.0)
    np.testing.assert_array_equal(actual, alone(CONTEXT), "expected no change at scale 1")


def test_the_difference_is_taken_in_float32():
    actual, _ = guided(7.5, dtype="float16")
    assert actual.dtype == np.float32, "expected float32 from a half-precision network"
    both = [alone(context).astype("float16").astype("float32") for context in (NULL, CONTEXT)]
    expected = both[0] + 7.5 * (both[1] - both[0])
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5, err_msg="expected float32")


def test_guidance_is_a_denoiser_for_samplers():
    sampler = DDIMSampler(NoiseSchedule(), 4)
    guidance = ClassifierFreeGuidance(Denoiser(), CONTEXT, NULL, 3.0)

    def by_hand(noisy_latents, timesteps):
        denoiser = Denoiser()
        null_context = np.broadcast_to(NULL, CONTEXT.shape)
        unconditional = denoiser(noisy_latents, timesteps, null_context)
        return 3.0 * denoiser(noisy_latents, timesteps, CONTEXT) - 2.0 * unconditional

    actual = keras.ops.convert_to_numpy(sampler.sample(guidance, LATENTS))
    expected = keras.ops.convert_to_numpy(sampler.sample(by_hand, LATENTS))
    np.testing.assert_allclose(
        actual, expected, rtol=1e-3, atol=1e-3, err_msg="expected guidance at every step"
    )
    assert guidance.denoiser.batch_sizes == [6] * 4, "expected one call of 2B per step"


@pytest.mark.parametrize("rescale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
def test_rescale_is_equations_15_and_16(scale, rescale):
    """Lin 2023, in NumPy: the deviation over each example, given back by a share."""
    guidance = ClassifierFreeGuidance(Denoiser(), CONTEXT, NULL, scale, rescale)
    actual = guidance(keras.ops.convert_to_tensor(LATENTS), TIMESTEPS)
    unconditional, conditional = alone(NULL), alone(CONTEXT)
    plain = unconditional + scale * (conditional - unconditional)
    axes = (1, 2, 3)
    ratio = conditional.std(axes, keepdims=True) / plain.std(axes, keepdims=True)
    expected = rescale * plain * ratio + (1 - rescale) * plain
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(actual), expected, rtol=1e-5, atol=1e-6, err_msg="expected φ"
    )


@pytest.mark.reference
def test_rescale_is_that_of_diffusers():
    torch = pytest.importorskip("torch")
    pytest.importorskip("diffusers")
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    for rescale in (0.3, 0.7, 1.0):
        guidance = ClassifierFreeGuidance(Denoiser(), CONTEXT, NULL, 7.5, rescale)
        actual = guidance(keras.ops.convert_to_tensor(LATENTS), TIMESTEPS)
        plain, conditional = guided(7.5)[0], alone(CONTEXT)
        expected = rescale_noise_cfg(
            torch.from_numpy(plain), torch.from_numpy(conditional.copy()), rescale
        ).numpy()
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(actual),
            expected,
            rtol=1e-6,
            atol=1e-6,
            err_msg=f"expected diffusers' rescale_noise_cfg at φ = {rescale}",
        )


def test_rescale_leaves_a_constant_prediction_alone():
    """An untrained network says zero everywhere: no 0 / 0."""
    guidance = ClassifierFreeGuidance(lambda x, t, c: 0 * x, CONTEXT, NULL, 7.5, 0.7)
    actual = keras.ops.convert_to_numpy(guidance(keras.ops.convert_to_tensor(LATENTS), TIMESTEPS))
    np.testing.assert_array_equal(actual, np.zeros_like(LATENTS), "expected zeros, not NaN")


@pytest.mark.parametrize("rescale", [-0.1, 1.1, float("nan")])
def test_bad_rescale(rescale):
    with pytest.raises(UserError, match=r"guidance_rescale: expected 0 .* to 1"):
        ClassifierFreeGuidance(Denoiser(), CONTEXT, NULL, 2.0, rescale)


@pytest.mark.parametrize("scale", [-1, float("nan"), float("inf")])
def test_bad_scale(scale):
    with pytest.raises(UserError, match="guidance_scale: expected a number of at least 0"):
        guided(scale)


@pytest.mark.parametrize("shape", [(2, 5, 6), (1, 4, 6), (1, 5, 7), (5, 6)])
def test_bad_null_context(shape):
    with pytest.raises(UserError, match=r"null_context: expected .*\(3, 5, 6\), or \(1, 5, 6\)"):
        guided(2.0, np.zeros(shape, "float32"))


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_batch_size_must_be_that_of_the_context(scale):
    guidance = ClassifierFreeGuidance(Denoiser(), CONTEXT, NULL, scale)
    with pytest.raises(UserError, match="expected the batch size of context, 3, got 2"):
        guidance(LATENTS[:2], TIMESTEPS[:2])


DIGITS = np.eye(10, dtype="float32")[[1, 4, 4]]
LINES = np.random.default_rng(3).standard_normal((3, 2, 2, 1)).astype("float32")
TOLD = {"context": CONTEXT, "digit": DIGITS, "lines": LINES}
WITHOUT = {"digit": 0 * DIGITS[:1], "lines": 0 * LINES, "context": NULL}


class TellsApart(Denoiser):
    """The same network, also told a digit and a map beside the latents."""

    def __call__(self, noisy_latents, timesteps, inputs):
        assert list(inputs) == ["context", "digit", "lines"], "expected the order given"
        text = super().__call__(noisy_latents, timesteps, inputs["context"])
        digit = keras.ops.matmul(inputs["digit"], np.linspace(-1, 1, 10, dtype="float32"))
        return text * (1 + digit[:, None, None, None]) - inputs["lines"]


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("of", [np.asarray, keras.ops.convert_to_tensor], ids=["numpy", "keras"])
def test_a_mapping_tells_the_network_several_things(scale, of):
    denoiser = TellsApart()
    told, without = ({k: of(v) for k, v in each.items()} for each in (TOLD, WITHOUT))
    guidance = ClassifierFreeGuidance(denoiser, told, without, scale)
    found = guidance(of(LATENTS), of(TIMESTEPS))
    conditional = TellsApart()(LATENTS, TIMESTEPS, TOLD)
    nothing = {name: np.broadcast_to(WITHOUT[name], TOLD[name].shape) for name in TOLD}
    unconditional = TellsApart()(LATENTS, TIMESTEPS, nothing)
    expected = unconditional + scale * (conditional - unconditional)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert denoiser.batch_sizes == [3 if scale == 1 else 6], "expected one call of the network"


@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_a_mapping_of_a_context_alone_is_bit_for_bit_the_context(scale, rescale):
    def of_mapping(noisy_latents, timesteps, inputs):
        return Denoiser()(noisy_latents, timesteps, inputs["context"])

    both = (
        ClassifierFreeGuidance(Denoiser(), CONTEXT, NULL, scale, rescale),
        ClassifierFreeGuidance(
            of_mapping, {"context": CONTEXT}, {"context": NULL}, scale, rescale
        ),
    )
    found = [np.asarray(one(keras.ops.convert_to_tensor(LATENTS), TIMESTEPS)) for one in both]
    assert np.array_equal(*found), "expected the same bits"


@pytest.mark.parametrize(
    ("told", "without", "words"),
    [
        (TOLD, {"context": NULL}, r"null_context: expected the inputs \['context', 'digit', 'li"),
        (TOLD, NULL, "null_context: expected the inputs .*, got an array"),
        (TOLD, {**WITHOUT, "digit": DIGITS[:2]}, r"null_context\['digit'\]: .*\(3, 10\), or \(1"),
        ({**TOLD, "digit": DIGITS[:2]}, WITHOUT, "context: expected inputs of one batch size"),
    ],
)
def test_bad_mappings(told, without, words):
    with pytest.raises(UserError, match=words):
        ClassifierFreeGuidance(TellsApart(), told, without, 2.0)
