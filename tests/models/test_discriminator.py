"""The PatchGAN discriminator and the losses it is played with."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from checks import check_layer

from latentddpm.errors import UserError
from latentddpm.models.archive import load_archive, save_archive
from latentddpm.models.discriminator import PatchDiscriminator, SpectralConv2D
from latentddpm.training.step.adversarial import Adversary, adaptive_weight


def images(count=2, size=32, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (count, size, size, 3)).astype("float32")


# --- The network ---------------------------------------------------------------------------


def test_published_size():
    """pix2pix prints 2.769 M for six channels in; 896 channels there lack a bias."""
    network = PatchDiscriminator(image_channels=6)
    found = network.count_params()
    assert found == 2_768_705 + 896, f"{found:,} parameters"


@pytest.mark.parametrize(("num_layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_receptive_field(num_layers, field):
    """Isola et al. 2017, appendix 6.1.2: 16×16, 34×34 and 70×70 pixels a logit."""
    network = PatchDiscriminator(channels=4, num_layers=num_layers, norm="none")
    picture = tf.constant(images(1, 96))
    with tf.GradientTape() as tape:
        tape.watch(picture)
        logits = network(picture)
        middle = logits[0, logits.shape[1] // 2, logits.shape[2] // 2, 0]
    seen = np.abs(tape.gradient(middle, picture).numpy()[0]).max(-1) > 0
    rows, columns = seen.any(1).sum(), seen.any(0).sum()
    assert (rows, columns) == (field, field), f"a logit sees {rows}×{columns} pixels"


@pytest.mark.parametrize("norm", ["group", "instance", "none"])
@pytest.mark.parametrize("spectral_norm", [False, True])
def test_every_weight_trains(norm, spectral_norm):
    keras.utils.set_random_seed(1)
    network = PatchDiscriminator(8, 2, norm, norm_groups=4, spectral_norm=spectral_norm)
    with tf.GradientTape() as tape:
        logits = network(images())
        loss = tf.reduce_sum(tf.square(logits - 1))
    assert logits.shape == (2, 6, 6, 1), f"logits {logits.shape}"
    gradients = tape.gradient(loss, [v.value for v in network.trainable_variables])
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        # A norm takes the bias in front of it away again, wholly or (groups) in part.
        if not (norm == "instance" and variable.path.endswith("bias")):
            assert np.abs(gradient).max() > 0, f"no gradient reaches {variable.path}"


def test_an_image_is_judged_alone():
    """Batch norm would let the others in the batch, and so replicas, have a say."""
    network = PatchDiscriminator(8, 2, norm_groups=4)
    batch = images(4)
    alone = np.concatenate([network(batch[i : i + 1]) for i in range(4)])
    np.testing.assert_allclose(network(batch), alone, atol=1e-6)


def test_archive(tmp_path):
    network = PatchDiscriminator(8, 2, "instance", spectral_norm=True)
    network.refine()
    save_archive(network, tmp_path / "d.keras")
    again = load_archive(tmp_path / "d.keras", PatchDiscriminator)
    assert again.get_config() == network.get_config(), "another configuration came back"
    np.testing.assert_array_equal(again(images()), network(images()))


def test_bad_sizes():
    with pytest.raises(UserError, match=r"norm: 'batch'.*'group', 'instance', 'none'"):
        PatchDiscriminator(norm="batch")
    with pytest.raises(ValueError, match="norm_groups=5 does not divide 16"):
        PatchDiscriminator(8, 2, norm_groups=5)
    with pytest.raises(ValueError, match="expected 1 or more"):
        PatchDiscriminator(num_layers=0)


# --- Spectral normalisation ----------------------------------------------------------------


def test_spectral_layer(tmp_path):
    check_layer(
        SpectralConv2D,
        {"filters": 6, "kernel_size": (3, 3), "padding": "same"},
        images(),
        tmp_path,
    )


def test_largest_singular_value_is_one():
    """Refined often enough, the kernel is divided by what NumPy's SVD finds."""
    layer = SpectralConv2D(5, 4, use_bias=False)
    layer.build((None, 8, 8, 3))
    for _ in range(200):
        layer.refine()
    kernel = np.asarray(layer.kernel)
    largest = np.linalg.svd(kernel.reshape(-1, 5), compute_uv=False)[0]
    plain = keras.layers.Conv2D(5, 4, use_bias=False)
    plain.build((None, 8, 8, 3))
    plain.kernel.assign(kernel / largest)
    picture = images(2, 8)
    np.testing.assert_allclose(layer(picture), plain(picture), rtol=1e-3, atol=1e-5)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_divides_by_the_same_number(dtype):
    """Rounded to half precision itself, σ would turn all outputs up or down, by up to 1 %."""
    picture = images(2, 8).repeat(16, axis=-1)
    gains = []
    for seed in range(4):
        keras.utils.set_random_seed(seed)
        exact = SpectralConv2D(64, 4, use_bias=False)
        half = SpectralConv2D(64, 4, use_bias=False, dtype=dtype)
        expected = np.asarray(exact(picture))
        half.build(picture.shape)
        half.set_weights(exact.get_weights())
        found = np.asarray(half(picture)).astype("float32")
        gains.append((found * expected).sum() / np.square(expected).sum())
    np.testing.assert_allclose(gains, 1, atol=1e-3, err_msg="outputs are turned up or down")


def test_a_call_changes_nothing():
    layer = SpectralConv2D(5, 4)
    layer(images())
    before = [np.asarray(weight) for weight in layer.weights]
    layer(images(), training=True)
    for weight, value in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value, f"a call changed {weight.path}")


def test_scaling_the_kernel_changes_nothing():
    """W̄ has no scale, so the gradient stands at right angles to W: it flows through σ."""
    layer = SpectralConv2D(5, 4, use_bias=False)
    layer.build((None, 8, 8, 3))
    for _ in range(200):
        layer.refine()
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(layer(images(2, 8))))
    kernel = np.asarray(layer.kernel)
    gradient = tape.gradient(loss, layer.kernel.value).numpy()
    cosine = (gradient * kernel).sum() / np.linalg.norm(gradient) / np.linalg.norm(kernel)
    assert abs(cosine) < 1e-3, f"cosine {cosine:.4f} between gradient and kernel, expected 0"


# --- Losses --------------------------------------------------------------------------------


def adversary(**options):
    discriminator = PatchDiscriminator(4, 1, "none")
    return Adversary(discriminator, "sgd", **options)


def test_losses_equal_their_formulas():
    numbers = np.random.default_rng(3)
    real, fake = numbers.normal(size=(2, 4, 5, 5, 1)).astype("float32") * 2
    hinge, vanilla = adversary(), adversary(loss="vanilla")

    def mean(values):
        return values.reshape(4, -1).mean(1)

    probability = 1 / (1 + np.exp(-np.stack([real, fake]).astype("float64")))
    expected = {
        "hinge D": mean(0.5 * (np.maximum(0, 1 - real) + np.maximum(0, 1 + fake))),
        "hinge G": mean(-fake),
        "vanilla D": mean(-0.5 * (np.log(probability[0]) + np.log(1 - probability[1]))),
        "vanilla G": mean(-np.log(probability[1])),
    }
    found = {
        "hinge D": hinge.discriminator_loss(real, fake),
        "hinge G": hinge.generator_loss(fake),
        "vanilla D": vanilla.discriminator_loss(real, fake),
        "vanilla G": vanilla.generator_loss(fake),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_bad_options():
    with pytest.raises(UserError, match=r"loss: 'wgan'.*'hinge', 'vanilla'"):
        adversary(loss="wgan")
    with pytest.raises(ValueError, match="r1_weight=-1"):
        adversary(r1_weight=-1)


def test_adaptive_weight_equals_its_closed_form():
    """A linear last layer x̂ = θ·h, L_rec = a·x̂, L_G = b·x̂: the gradients are a·h and b·h."""
    theta, hidden = tf.Variable([1.0, -2.0, 0.5]), tf.constant([3.0, 4.0, 12.0])
    a, b = 2.0, -0.25
    with tf.GradientTape(persistent=True) as tape:
        output = tf.reduce_sum(theta * hidden)
        reconstruction, generator = a * output, b * output
    weight = adaptive_weight(tape.gradient(reconstruction, theta), tape.gradient(generator, theta))
    norm = 13.0  # of (3, 4, 12)
    np.testing.assert_allclose(weight, a * norm / (abs(b) * norm + 1e-4), rtol=1e-6)


@pytest.mark.parametrize(
    ("reconstruction", "generator", "expected"),
    [([1.0, 0.0], [0.0, 0.0], 1e4), ([0.0], [1.0], 0.0), ([5.0], [1e-8], 1e4)],
)
def test_adaptive_weight_is_clipped(reconstruction, generator, expected):
    weight = adaptive_weight(tf.constant(reconstruction), tf.constant(generator))
    np.testing.assert_allclose(weight, expected, rtol=1e-6)
