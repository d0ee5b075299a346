"""The denoiser: sizes, what it listens to, archives, and that it learns."""

import inspect
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import check_layer

from latentddpm.models.archive import load_archive, save_archive, weights_digest
from latentddpm.models.denoisers.time_embedding import TimestepEmbedding
from latentddpm.models.denoisers.transformer import Attention, TransformerBlock
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import rebuild
from latentddpm.training.step.optimizer import FlatAdamW

TINY = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "num_heads": 2,
    "norm_groups": 4,
}
CONTEXT = {"context_dim": 6}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tiny(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    return UNet(**{**TINY, **changes})


def example(batch=3, height=4, width=4, context=False, seed=0):
    inputs = {
        "noisy_latents": normal(batch, height, width, 4, seed=seed),
        "timesteps": np.arange(batch, dtype="int32") * 300,
    }
    return inputs | ({"context": normal(batch, 5, 6, seed=seed + 1)} if context else {})


@pytest.fixture(scope="module")
def conditional():
    return tiny(**CONTEXT, zero_init=False)


@pytest.fixture(scope="module")
def unconditional():
    return tiny(zero_init=False)


@pytest.fixture(params=["conditional", "unconditional"])
def unet(request):
    return request.getfixturevalue(request.param)


def inputs_of(unet, **sizes):
    return example(context=unet.context_dim is not None, **sizes)


# --- Numbers of parameters -----------------------------------------------------------------


def count_parameters(**sizes):
    """Parameters of a network that is put together without memory for its weights."""
    with keras.StatelessScope(initialize_variables=False):
        unet = UNet(**sizes)
        count = sum(math.prod(variable.shape) for variable in unet.trainable_variables)
    keras.utils.clear_session()  # forgets the variables that never got a value
    return count


STABLE_DIFFUSION = {
    "channels": 320,
    "channel_multipliers": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "attention_levels": (0, 1, 2),
    "num_heads": 8,
}


def test_stable_diffusions_size():
    count = count_parameters(**STABLE_DIFFUSION, context_dim=768)
    assert count == 859_520_964, f"{count:,} parameters, Stable Diffusion 1.x has 859,520,964"


def test_the_defaults_are_stable_diffusions():
    """The sizes of the test above, which so counts a network of the defaults."""
    arguments = inspect.signature(UNet).parameters
    found = {name: arguments[name].default for name in STABLE_DIFFUSION}
    assert found == STABLE_DIFFUSION, f"the defaults are {found}"


def test_the_size_of_ddpm_on_cifar():
    """Ho et al. 2020, appendix B: 35.7 million parameters."""
    count = count_parameters(
        channels=128,
        channel_multipliers=(1, 2, 2, 2),
        num_res_blocks=2,
        attention_levels=(1,),
        num_heads=1,
        latent_channels=3,
    )
    assert count == 35_746_307, f"{count:,} parameters, expected 35,746,307 (35.7 million)"


def test_the_size_of_the_digits_of_diffusers_course():
    """`UNet2DModel` with widths 32, 64, 64 and attention at the lower two levels."""
    count = count_parameters(
        channels=32,
        channel_multipliers=(1, 2, 2),
        attention_levels=(1, 2),
        latent_channels=1,
    )
    assert count == 1_707_009, f"{count:,} parameters, diffusers' UNet2DModel has 1,707,009"


def test_counting_without_memory_counts_right(conditional):
    real = conditional.count_params()
    count = count_parameters(**TINY, **CONTEXT)
    assert count == real, f"counted {count}, the network built has {real}"


def test_a_small_network_counted_by_hand(unconditional):
    def conv(a, b, side=3):
        return side * side * a * b + b

    def dense(a, b):
        return a * b + b

    def resnet(a, b):
        shortcut = conv(a, b, 1) if a != b else 0
        return 2 * a + conv(a, b) + dense(32, b) + 2 * b + conv(b, b) + shortcut

    def attend(c):
        return 2 * c + 4 * dense(c, c)

    expected = (
        dense(8, 32) + dense(32, 32)  # time
        + conv(4, 8)
        + resnet(8, 8) + conv(8, 8)  # down, level 0
        + resnet(8, 16) + attend(16)  # down, level 1
        + resnet(16, 16) + attend(16) + resnet(16, 16)  # middle
        + resnet(16 + 16, 16) + attend(16)  # up, level 1, with the skip of its ResnetBlock
        + resnet(16 + 8, 16) + attend(16)  # and of the strided convolution
        + conv(16, 16)
        + resnet(16 + 8, 8) + resnet(8 + 8, 8)  # up, level 0
        + 2 * 8 + conv(8, 4)
    )  # fmt: skip
    count = unconditional.count_params()
    assert count == expected, f"{count} parameters, counted by hand {expected}"


# --- Layers --------------------------------------------------------------------------------


def test_the_timestep_embedding_has_the_known_numbers():
    found = TimestepEmbedding(320)(np.array([10], "int32")).numpy()[0]
    cosines, sines = [-0.8390715, -0.9998747, -0.8716348], [-0.5440211, -0.0158301, 0.4901559]
    np.testing.assert_allclose(found[:3], cosines, atol=2e-6, err_msg="cosines come first")
    np.testing.assert_allclose(found[160:163], sines, atol=2e-6, err_msg="sines after dim/2")
    zero = TimestepEmbedding(6)(np.array([0], "int32")).numpy()
    np.testing.assert_array_equal(zero, [[1, 1, 1, 0, 0, 0]], err_msg="the embedding of t=0")


def test_the_timestep_embedding_is_its_formula_in_float64():
    timesteps = np.array([0, 1, 17, 500, 999])
    angles = timesteps[:, None] * 10_000.0 ** (-np.arange(16) / 16)
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    found = TimestepEmbedding(32)(timesteps.astype("int32"))
    np.testing.assert_allclose(found, expected, atol=2e-4, err_msg="not cos, sin of t·f")


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "float16"])
def test_the_timestep_embedding_stays_float32(policy):
    """`check_layer` expects layers that compute in their policy's type; this one must not:
    bfloat16 cannot tell timestep 999 from 1000."""
    layer = TimestepEmbedding(8, dtype=policy)
    timesteps = np.array([996, 999], "int32")
    found = layer(timesteps)
    assert keras.backend.standardize_dtype(found.dtype) == "float32", f"{policy}: {found.dtype}"
    np.testing.assert_array_equal(found, TimestepEmbedding(8)(timesteps), err_msg=policy)


def test_the_timestep_embedding_as_a_layer(tmp_path):
    layer = TimestepEmbedding(8, name="time")
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert again.get_config() == layer.get_config(), "came back with another config"
    assert not layer.weights, "a formula has weights"
    assert layer.compute_output_shape((None,)) == (None, 8), "other shape than (B, dim)"
    inputs = keras.Input((), dtype="int32")
    outputs = layer(inputs)
    assert outputs.shape == (None, 8), f"symbolic shape {outputs.shape}, expected (None, 8)"
    keras.Model(inputs, outputs).save(tmp_path / "time.keras")
    loaded = keras.saving.load_model(tmp_path / "time.keras", safe_mode=True)
    timesteps = np.array([3, 700], "int32")
    np.testing.assert_array_equal(loaded(timesteps), layer(timesteps), err_msg="after reload")
    with pytest.raises(ValueError, match=r"dim=7 .* must be even"):
        TimestepEmbedding(7)


def test_attention_as_a_layer(tmp_path):
    check_layer(Attention, {"num_heads": 2}, normal(2, 7, 8), tmp_path)


def test_cross_attention_as_a_layer(tmp_path):
    check_layer(Attention, {"num_heads": 2}, [normal(2, 7, 8), normal(2, 5, 6)], tmp_path)


def test_transformer_block_as_a_layer(tmp_path):
    kwargs = {"num_heads": 2, "norm_groups": 4, "zero_init": False}
    check_layer(TransformerBlock, kwargs, [normal(2, 3, 4, 8), normal(2, 5, 6)], tmp_path)


def test_attention_is_its_formula():
    layer, inputs, context = Attention(2), normal(1, 3, 4), normal(1, 5, 6, seed=1)
    found = layer(inputs, context).numpy()[0]
    query, key, value, kernel, bias = layer.get_weights()
    mixed = []
    for head in (slice(0, 2), slice(2, 4)):
        q, k, v = (
            inputs[0] @ query[:, head],
            context[0] @ key[:, head],
            context[0] @ value[:, head],
        )
        scores = np.exp(q @ k.T / math.sqrt(2))
        mixed.append(scores / scores.sum(-1, keepdims=True) @ v)
    expected = np.concatenate(mixed, -1) @ kernel + bias
    np.testing.assert_allclose(found, expected, atol=1e-5, err_msg="not softmax(q kᵀ / √d) v")


def test_zero_init_makes_the_transformer_block_an_identity():
    inputs = normal(2, 3, 4, 8)
    block = TransformerBlock(2, norm_groups=4, zero_init=True)
    np.testing.assert_array_equal(block(inputs, normal(2, 5, 6)), inputs, err_msg="at the start")


# --- The network ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width"), [pytest.param(4, 4, marks=pytest.mark.slow), (2, 6), (8, 2)]
)
def test_any_multiple_of_the_factor_will_do(unet, height, width):
    assert unet.downsample_factor == 2, f"factor {unet.downsample_factor}, expected 2"
    inputs = inputs_of(unet, height=height, width=width)
    prediction = unet(inputs)
    expected = (3, height, width, 4)
    assert prediction.shape == expected, f"prediction {prediction.shape}, expected {expected}"
    assert np.isfinite(prediction).all(), "a prediction is not finite"


@pytest.mark.parametrize("context", [False, True])
def test_it_starts_at_zero_where_the_epsilon_loss_is_one(context):
    unet = tiny(**CONTEXT if context else {})
    inputs = example(64, 8, 8, context)
    assert not np.any(unet(inputs)), "with zero_init the first prediction is not zero"
    noise = normal(64, 8, 8, 4, seed=9)
    unet.compile(loss="mse", run_eagerly=True)
    loss = unet.evaluate(inputs, noise, verbose=0)
    bound = 4 * math.sqrt(2 / noise.size)  # four standard errors of the mean of a χ² variable
    assert abs(loss - 1) < bound, f"first epsilon loss {loss:.4f}, expected 1 ± {bound:.4f}"


def test_the_output_is_zero_at_the_start_but_not_dead():
    """The last convolution gets a gradient at step one, the residual branches' last at two."""
    unet = tiny()
    unet.compile(keras.optimizers.SGD(0.1), loss="mse", run_eagerly=True)
    inputs, noise = example(), normal(3, 4, 4, 4, seed=5)
    before = [weight.numpy() for weight in unet.trainable_variables]
    for _ in range(3):
        unet.train_on_batch(inputs, noise)
    still = [
        weight.path
        for weight, old in zip(unet.trainable_variables, before, strict=True)
        if np.array_equal(weight.numpy(), old)
        # A bias of the keys moves every score of a query alike, which the softmax takes away.
        and not weight.path.endswith("key/bias")
    ]
    assert not still, f"after three steps these weights have not moved: {still}"


def test_timesteps_matter(unet):
    inputs = inputs_of(unet)
    early = unet(inputs | {"timesteps": np.full(3, 10, "int32")}).numpy()
    late = unet(inputs | {"timesteps": np.full(3, 11, "int32")}).numpy()
    assert np.abs(early - late).max() > 1e-5, "timesteps 10 and 11 give the same prediction"


def test_timesteps_may_be_fractional(unet):
    """Samplers on a continuous scale of noise ask between the training timesteps."""
    inputs = inputs_of(unet)

    def predict(*timesteps, dtype="float32"):
        return unet(inputs | {"timesteps": np.array(timesteps, dtype)}).numpy()

    whole, between = predict(400, 401, 400), predict(400.5, 400.5, 400)
    for dtype in ("int32", "int64"):
        np.testing.assert_array_equal(predict(400, 401, 400, dtype=dtype), whole, err_msg=dtype)
    np.testing.assert_array_equal(between[2], whole[2], err_msg="another picture of 400")
    assert np.abs(between[0] - whole[0]).max() > 0, "timestep 400.5 counts as 400"
    assert np.abs(between[1] - whole[1]).max() > 0, "timestep 400.5 counts as 401"


@pytest.mark.usefixtures("bfloat16")
def test_timesteps_stay_whole_under_a_global_policy():
    """bfloat16 cannot tell timestep 999 from 1000, so they must not be cast on the way in."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        unet = tiny(zero_init=False, attention_levels=(), channel_multipliers=(1,))
    finally:
        keras.config.set_dtype_policy("float32")
    latents = normal(1, 4, 4, 4)
    found = [
        unet({"noisy_latents": latents, "timesteps": np.array([t], "float32")}).numpy()
        for t in (999, 1000)
    ]
    assert np.abs(found[0] - found[1]).max() > 0, "999 and 1000 became the same number"


def test_heads_of_each_level(conditional):
    """A level's heads change its attention and no other weight's shape."""
    one, many = conditional, tiny(**CONTEXT, num_heads=[1, 4])
    found = [layer.num_heads for layer in many.layers if "attention" in layer.name]
    assert found == [4] * 4, f"heads {found}, expected those of level 1 and of the middle: 4"
    assert [w.shape for w in one.weights] == [w.shape for w in many.weights], "other shapes"
    assert many.get_config()["num_heads"] == [1, 4], "the config forgets the heads"
    assert UNet.from_config(many.get_config()).get_config() == many.get_config(), "other config"


def test_context_matters(conditional):
    inputs = example(context=True)
    one = conditional(inputs).numpy()
    other = conditional(inputs | {"context": inputs["context"][::-1]}).numpy()
    change = np.abs(one - other).max(axis=(1, 2, 3))
    assert change[0] > 1e-4, "another context gives the same prediction"
    assert change[2] > 1e-4, "another context gives the same prediction"
    assert change[1] < 1e-5, f"the middle example kept its context but moved by {change[1]}"


def test_context_of_any_length(conditional):
    inputs = example(context=True)
    short = conditional(inputs | {"context": inputs["context"][:, :1]})
    assert short.shape == (3, 4, 4, 4), f"one token of context gives {short.shape}"
    twice = np.concatenate([inputs["context"]] * 2, axis=1)
    np.testing.assert_allclose(
        conditional(inputs | {"context": twice}),
        conditional(inputs),
        atol=1e-4,
        err_msg="the same tokens twice must weigh as once: a softmax over the wrong axis?",
    )


def test_examples_of_a_batch_do_not_meet(unet):
    inputs = inputs_of(unet)
    together = unet(inputs).numpy()
    for i in range(3):
        alone = unet({name: array[i : i + 1] for name, array in inputs.items()})
        np.testing.assert_allclose(alone[0], together[i], atol=1e-5, err_msg=f"example {i}")


def test_every_position_sees_every_other(unet):
    inputs = inputs_of(unet, height=16, width=16, batch=1)
    moved = inputs["noisy_latents"].copy()
    moved[0, 0, 0] += 3
    change = np.abs(unet(inputs | {"noisy_latents": moved}).numpy() - unet(inputs).numpy())
    assert change[0, -1, -1].max() > 0, "one corner does not reach the other (no attention?)"


@pytest.mark.usefixtures("bfloat16")
def test_mixed_precision_is_close_and_comes_out_in_float32(unet):
    full, mixed = unet, rebuild(unet, dtype="mixed_bfloat16")
    inputs = inputs_of(unet)
    found, expected = mixed(inputs), full(inputs).numpy()
    dtype = keras.backend.standardize_dtype(found.dtype)
    assert dtype == "float32", f"a prediction in {dtype} loses what the sampler needs"
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 0.08, f"mixed_bfloat16 is {error:.3f} of the range off"
    assert weights_digest(mixed) == weights_digest(full), "the dtype policy counts in the digest"


def test_attention_only_where_asked():
    unet = tiny(attention_levels=(0,), num_res_blocks=2)
    found = sorted(layer.name for layer in unet.layers if "attention" in layer.name)
    expected = ["down_0_attention_0", "down_0_attention_1", "mid_attention"]
    expected += [f"up_0_attention_{block}" for block in range(3)]
    assert found == expected, f"attention at {found}, expected {expected}"


def test_dropout_only_while_training():
    unet = tiny(dropout=0.5, zero_init=False, attention_levels=(), channel_multipliers=(1,))
    inputs = example()
    np.testing.assert_array_equal(unet(inputs), unet(inputs), err_msg="inference is random")
    one, two = unet(inputs, training=True), unet(inputs, training=True)
    assert np.abs(one.numpy() - two.numpy()).max() > 0, "dropout drops nothing while training"


# --- Archives ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "storage", "tolerance"),
    [
        ("conditional", "float32", 0),
        ("conditional", "float16", 5e-3),
        ("unconditional", "float32", 0),
        pytest.param("unconditional", "float16", 5e-3, marks=pytest.mark.slow),
    ],
)
def test_an_archive_predicts_the_same(name, storage, tolerance, tmp_path, request):
    unet = request.getfixturevalue(name)
    save_archive(unet, tmp_path / "unet.keras", storage)
    loaded = load_archive(tmp_path / "unet.keras", UNet)
    inputs = inputs_of(unet)
    expected = unet(inputs).numpy()
    np.testing.assert_allclose(
        loaded(inputs), expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=storage
    )
    assert weights_digest(loaded) == weights_digest(unet), f"{storage} changed the digest"
    assert loaded.get_config() == unet.get_config(), f"{storage} changed the config"


def test_the_config_is_complete_and_plain():
    changes = {"dropout": 0.1, "zero_init": False, "latent_channels": 3, "dtype": "float32"}
    changes |= {"norm_epsilon": 1e-6, "time_scale_shift": True}
    unet = tiny(**changes, **CONTEXT)
    config = unet.get_config()
    for key, value in {**TINY, **changes, **CONTEXT}.items():
        value = list(value) if isinstance(value, tuple) else value
        assert config[key] == value, f"get_config()[{key!r}] is {config[key]}, expected {value}"
    assert UNet.from_config(config).get_config() == config, "came back with another config"


# --- Learning ------------------------------------------------------------------------------


def test_it_learns_one_batch_by_heart():
    # Tracing the training step takes longer than the steps.
    unet = tiny(attention_levels=(), channel_multipliers=(1,), num_res_blocks=0, channels=16)
    batch = tf.data.Dataset.from_tensors((example(4), normal(4, 4, 4, 4, seed=3)))
    unet.compile(FlatAdamW(1e-2, weight_decay=0.0), loss="mse")
    first, _, last = (
        unet.fit(batch.repeat(steps), shuffle=False, verbose=0).history["loss"][0]
        for steps in (1, 80, 1)
    )
    assert last < 0.3 * first, f"80 steps on one batch: loss {first:.3f} → {last:.3f}"


# --- Refusals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide 16 channels"),
        ({"num_heads": 3, **CONTEXT}, "num_heads=3 does not divide 16 channels"),
        ({"num_heads": [2]}, r"num_heads \[2\]: expected one number or 2, one a level"),
        ({"norm_groups": 3}, "norm_groups=3 does not divide 8 channels"),
        ({"norm_groups": 3, **CONTEXT}, "norm_groups=3 does not divide 8 channels"),
        ({"channels": 12, "norm_groups": 8}, "norm_groups=8 does not divide 12 channels"),
        ({"attention_levels": (0, 2)}, r"attention_levels \[2\] do not exist; levels are 0 … 1"),
        ({"attention_levels": (-1,)}, r"attention_levels \[-1\] do not exist"),
        ({"channels": 7, "norm_groups": 7, "num_heads": 1}, "dim=7"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_a_missing_context_is_refused(conditional):
    with pytest.raises((ValueError, KeyError), match="context"):
        conditional(example())


@pytest.mark.slow
def test_recomputation_gives_the_same_gradients():
    """Blocks are computed twice, which shows in the graph, and nothing else changes."""
    sizes = {
        "channels": 8,
        "channel_multipliers": (1,),
        "num_res_blocks": 1,
        "attention_levels": (0,),
        "num_heads": 2,
        "norm_groups": 4,
        "zero_init": False,
        "context_dim": 6,
    }
    draw = np.random.default_rng(0)
    inputs = {
        "noisy_latents": draw.standard_normal((2, 4, 4, 4)).astype("float32"),
        "timesteps": np.array([3, 700], "float32"),
        "context": draw.standard_normal((2, 5, 6)).astype("float32"),
    }

    def gradients(recompute):
        keras.utils.set_random_seed(0)
        unet = UNet(**sizes, recompute=recompute)

        @tf.function
        def step():
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(unet(inputs, training=True) - 1.0))
            return tape.gradient(loss, [v.value for v in unet.trainable_variables])

        operations = step.get_concrete_function().graph.get_operations()
        assert "recompute" not in unet.get_config(), "expected nothing of it in a saved model"
        return step(), sum(operation.type == "Conv2D" for operation in operations)

    (kept, convolutions), (again, more) = gradients(False), gradients(True)
    assert more > convolutions, f"expected convolutions twice, got {more} beside {convolutions}"
    for one, other in zip(kept, again, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6, err_msg="other gradients")
