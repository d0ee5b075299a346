"""One device: what the step leaves alone when a number is not finite, float16, its logs."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.ops import convert_to_numpy
from train_small import data, small


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [convert_to_numpy(variable) for variable in variables]


def step(model, x, y):
    return {k: float(v) for k, v in model.train_on_batch(x, y, return_dict=True).items()}


@pytest.mark.parametrize("optimizer", [None, keras.optimizers.SGD(0.1, momentum=0.9)])
def test_a_step_that_is_not_finite_changes_nothing(optimizer):
    model = small(optimizer=optimizer)
    x, y = data()
    assert step(model, x, y)["skipped"] == 0, "expected an ordinary step"
    before = state(model)
    broken = y.copy()
    broken[2, 1] = np.nan
    logs = step(model, x, broken)
    assert logs["skipped"] == 1, f"expected a step with a NaN target to be left out, got {logs}"
    assert np.isnan(logs["loss"]), f"expected a mean over no finite loss to be NaN, got {logs}"
    for variable, value in zip(
        [*model.variables, *model.optimizer.variables], before, strict=True
    ):
        np.testing.assert_array_equal(
            convert_to_numpy(variable), value, err_msg=f"{variable.path} moved in a step left out"
        )
    logs = step(model, x, y)
    assert logs["skipped"] == 0, f"expected training to go on, got {logs}"
    assert np.isfinite(logs["loss"]), f"expected a finite loss again, got {logs}"


def test_a_compiled_step_is_the_same_step():
    x, y = data()
    ends = []
    for jit_compile in (False, True):
        model = small(jit_compile=jit_compile)
        logs = [step(model, x, y) for _ in range(3)]
        ends.append((state(model), logs))
    (one, logs), (other, compiled_logs) = ends
    for mine, compiled in zip(one, other, strict=True):
        np.testing.assert_allclose(compiled, mine, atol=1e-5, err_msg="XLA takes another step")
    assert logs[-1] == pytest.approx(compiled_logs[-1], abs=1e-5), "XLA logs other numbers"


def test_means_leave_out_what_is_not_finite():
    model = small()
    x, y = data(8)
    y[4:6] = np.inf
    examples = tf.data.Dataset.from_tensor_slices((x, y)).batch(2)
    history = model.fit(examples, verbose=0, shuffle=False).history
    assert np.isfinite(history["loss"][0]), f"expected the mean of three steps, got {history}"


def test_float16_scales_its_loss_and_steps_down_when_it_overflows():
    model = small("mixed_float16")
    optimizer = model.optimizer
    assert isinstance(optimizer, keras.optimizers.LossScaleOptimizer), (
        f"expected the loss to be scaled in float16, got {type(optimizer).__name__}"
    )
    x, y = data()
    optimizer.build(model.trainable_variables)
    optimizer.dynamic_scale.assign(2.0**40)
    before = [convert_to_numpy(v) for v in model.trainable_variables]
    logs = step(model, x, y)
    assert (logs["skipped"], logs["loss_scale"]) == (1, 2.0**39), f"expected half of 2⁴⁰: {logs}"
    for variable, value in zip(model.trainable_variables, before, strict=True):
        np.testing.assert_array_equal(
            convert_to_numpy(variable), value, err_msg="expected no step"
        )
    for _ in range(39):
        logs = step(model, x, y)
    assert logs["skipped"] == 0, f"expected a scale that float16 can hold by now, got {logs}"
    optimizer.dynamic_growth_steps = 3
    optimizer.step_counter.assign(0)
    model.make_train_function(force=True)
    scale = logs["loss_scale"]
    scales = [step(model, x, y)["loss_scale"] for _ in range(3)]
    assert scales == [scale, scale, 2 * scale], f"expected {scale} doubled at last, got {scales}"


def test_float16_trains_as_float32_does():
    """The scale cancels: gradients agree to float16's 11 bits."""
    half, full = small("mixed_float16"), small()
    half.optimizer.build(half.trainable_variables)
    half.optimizer.dynamic_scale.assign(1024)
    x, y = data(16)
    for _ in range(10):
        found, expected = step(half, x, y), step(full, x, y)
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-2), f"{found} {expected}"
    assert found["gradient_norm"] == pytest.approx(expected["gradient_norm"], rel=2e-2)


def test_the_gradient_norm_is_that_of_the_mean_loss():
    model = small(optimizer=keras.optimizers.SGD(0.0), accumulation_steps=3)
    x, y = data(7)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(model(x) - y))
    tensors = [variable.value for variable in model.trainable_variables]
    expected = tf.linalg.global_norm(tape.gradient(loss, tensors))
    logs = step(model, x, y)
    np.testing.assert_allclose(logs["gradient_norm"], expected, rtol=1e-5)
    np.testing.assert_allclose(logs["loss"], loss, rtol=1e-5)


def test_sample_weights_are_kept():
    model = small(accumulation_steps=2)
    x, y = data(5)
    weight = np.array([0, 2, 1, 0, 3], "float32")
    expected = np.mean(weight * np.mean(np.square(convert_to_numpy(model(x)) - y), axis=-1))
    found = model.train_on_batch(x, y, sample_weight=weight, return_dict=True)["loss"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, err_msg="expected Σ w·ℓ / B")


def test_micro_batches_are_checked():
    with pytest.raises(ValueError, match="accumulation_steps=0"):
        small(accumulation_steps=0)
