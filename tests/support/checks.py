"""Checks of more than one test file: what a registered Keras layer owes its users, in one call,
and what an error does."""

import functools

import keras
import numpy as np
import tensorflow as tf


@functools.cache
def computes_in(dtype):
    """Whether TensorFlow convolves in a type here: some kernels do not on every processor."""
    try:
        keras.ops.conv(keras.ops.ones((1, 8, 8, 8), dtype), keras.ops.ones((3, 3, 8, 8), dtype))
    except tf.errors.OpError:
        return False
    return True


def check_layer(cls, kwargs, inputs, tmp_path, gradient_free=()):
    """Check a layer's config, shapes, archive, training and mixed precision.

    Args:
        cls, kwargs: the layer and the arguments that make it; every argument has to come back
            from `get_config`.
        inputs: one float32 array, or a list of arrays passed as positional arguments.
        tmp_path: folder for the archive.
        gradient_free: ends of the paths of weights whose gradient is exactly zero, such as those
            in front of a zero-initialised layer.

    Returns:
        The layer, built.
    """
    keras.utils.set_random_seed(0)
    inputs = inputs if isinstance(inputs, list) else [inputs]
    layer = cls(**kwargs)
    name = cls.__name__

    # Config: complete, and the same after a round trip through JSON-like serialization.
    config = layer.get_config()
    for key, value in kwargs.items():
        assert key in config, f"{name}.get_config() lacks {key!r}"
        assert config[key] == value, f"{name}.get_config()[{key!r}] is {config[key]}, not {value}"
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(layer))
    assert type(again) is cls, f"{name} came back from its config as {type(again).__name__}"
    assert again.get_config() == config, f"{name} came back with another config"

    # Shapes: the symbolic answer is what eager execution gives, at unknown sizes too.
    outputs = np.asarray(keras.ops.convert_to_numpy(layer(*inputs)))
    symbolic = layer(*[keras.Input(array.shape[1:]) for array in inputs])
    assert symbolic.shape == (None, *outputs.shape[1:]), (
        f"{name}: symbolic shape {symbolic.shape}, eager {outputs.shape}"
    )
    assert layer.compute_output_shape(*[a.shape for a in inputs]) == outputs.shape, (
        f"{name}.compute_output_shape disagrees with the eager shape {outputs.shape}"
    )

    # Archive: loads in safe mode and gives identical numbers.
    doors = [
        keras.Input((*[None] * (array.ndim - 2), array.shape[-1]), name=f"input_{i}")
        for i, array in enumerate(inputs)
    ]
    model = keras.Model(doors, layer(*doors))
    model.save(tmp_path / "layer.keras")
    loaded = keras.saving.load_model(tmp_path / "layer.keras", safe_mode=True)
    np.testing.assert_array_equal(
        loaded(inputs), outputs, err_msg=f"{name}: other outputs after a .keras round trip"
    )

    # Training: one step of fit, and a gradient at every trainable weight.
    check_gradients(layer, inputs, gradient_free)
    model.compile("sgd", loss="mse", run_eagerly=True)
    history = model.fit(inputs, np.zeros_like(outputs), batch_size=len(outputs), verbose=0)
    assert np.isfinite(history.history["loss"][0]), f"{name}: one fit step gave no finite loss"

    # Precision: computes in the policy's type, keeps its weights in float32, close to float32.
    if not computes_in("bfloat16"):
        return layer
    mixed = cls(**kwargs, dtype="mixed_bfloat16")
    mixed(*inputs)
    mixed.set_weights(layer.get_weights())
    half, full = mixed(*inputs), np.asarray(layer(*inputs))
    dtype = keras.backend.standardize_dtype(half.dtype)
    assert dtype == "bfloat16", f"{name}: output is {dtype} under mixed_bfloat16"
    stored = {weight.path: weight.dtype for weight in mixed.weights if weight.dtype != "float32"}
    assert not stored, f"{name}: weights not kept in float32 under mixed_bfloat16: {stored}"
    error = np.abs(np.asarray(half, "float32") - full).max() / np.abs(full).max()
    assert error < 0.05, f"{name}: mixed_bfloat16 is {error:.3f} of its range off"
    again = cls.from_config(mixed.get_config())
    assert again.dtype_policy.name == "mixed_bfloat16", f"{name}: the config forgets its policy"
    return layer


def check_gradients(layer, inputs, gradient_free=()):
    """Every trainable weight gets a gradient that is not zero, but for those named."""
    import tensorflow as tf

    layer(*inputs)  # builds it
    weights = layer.trainable_variables
    with tf.GradientTape() as tape:
        outputs = layer(*inputs)
        target = np.random.default_rng(1).normal(size=outputs.shape)
        loss = tf.reduce_sum(outputs * tf.cast(target, outputs.dtype))
    gradients = tape.gradient(loss, [weight.value for weight in weights])
    largest = max(float(np.abs(g).max()) for g in gradients if g is not None)
    dead = [
        weight.path
        for weight, gradient in zip(weights, gradients, strict=True)
        if gradient is None or np.abs(gradient).max() <= 1e-6 * largest
    ]
    surprise = [path for path in dead if not path.endswith(tuple(gradient_free) or ("\0",))]
    assert not surprise, f"{type(layer).__name__}: no gradient reaches {surprise}"
    alive = [end for end in gradient_free if not any(path.endswith(end) for path in dead)]
    assert not alive, f"{type(layer).__name__}: {alive} have a gradient, expected none"


def one_line(error, *words):
    """What `pytest.raises` caught is one line that has these words."""
    message = str(error.value)
    assert "\n" not in message, f"expected one line, got {message!r}"
    missing = [word for word in words if str(word) not in message]
    assert not missing, f"expected {missing} to be named in {message!r}"
