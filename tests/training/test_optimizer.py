"""FlatAdamW against the optimizer it stands for, `keras.optimizers.AdamW`."""

import keras
import numpy as np
import pytest

from latentddpm.training.step import vectors
from latentddpm.training.step.optimizer import FlatAdamW, WarmAdafactor, WarmLion

SETTINGS = {
    "weight_decay": 0.1,
    "global_clipnorm": 0.5,
    "use_ema": True,
    "ema_momentum": 0.9,
}


def network():
    keras.utils.set_random_seed(7)
    return keras.Sequential(
        [
            keras.Input((5,)),
            keras.layers.Dense(8, activation="tanh", name="first"),
            keras.layers.LayerNormalization(name="norm"),
            keras.layers.Dense(3, name="last"),
        ]
    )


def train(cls, steps=6, rate=0.05, **settings):
    """A network and its optimizer after some steps on fixed examples."""
    model = network()
    optimizer = cls(rate, **{**SETTINGS, **settings})
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    numbers = np.random.default_rng(0)
    inputs = numbers.standard_normal((steps * 4, 5)).astype("float32")
    targets = 10 * numbers.standard_normal((steps * 4, 3)).astype("float32")
    for start in range(0, steps * 4, 4):
        model.train_on_batch(inputs[start : start + 4], targets[start : start + 4])
    return model, optimizer


def averages(optimizer):
    if isinstance(optimizer, FlatAdamW):
        return [np.asarray(value) for value in optimizer.moving_averages()]
    return [np.asarray(value) for value in optimizer._model_variables_moving_average]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"global_clipnorm": None},
        {"weight_decay": 0.0},
        {"beta_1": 0.5, "beta_2": 0.9, "epsilon": 1e-3},
        {
            "rate": keras.optimizers.schedules.CosineDecay(
                0.0, 10, warmup_target=0.05, warmup_steps=3
            )
        },
    ],
    ids=["all", "unclipped", "undecayed", "betas", "schedule"],
)
def test_it_is_adamw(settings):
    ours, our_optimizer = train(FlatAdamW, **settings)
    theirs, their_optimizer = train(keras.optimizers.AdamW, **settings)
    for mine, other in zip(ours.trainable_variables, theirs.trainable_variables, strict=True):
        np.testing.assert_allclose(
            mine, other, atol=1e-5, err_msg=f"{mine.path}: expected what Keras's AdamW gives"
        )
    for mine, other in zip(averages(our_optimizer), averages(their_optimizer), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5, err_msg="expected Keras's average")


@pytest.mark.parametrize("long", [2, 2**16], ids=["alone", "strung together"])
def test_its_steps_are_those_of_float64(monkeypatch, long):
    """Keras's own are 4e-6 away: it takes 1 − β₂ of the float32 β₂ in one place only."""
    monkeypatch.setattr(vectors, "LONG", long)
    numbers = np.random.default_rng(0)
    value, moments, average = numbers.standard_normal(20), np.zeros((2, 20)), 0.0
    variable = keras.Variable(value, dtype="float32", name="kernel")
    optimizer = FlatAdamW(0.05, **{**SETTINGS, "global_clipnorm": None}, ema_warmup=True)
    betas = np.array([[0.9], [0.999]])
    for step in range(1, 16):
        gradient = numbers.standard_normal(20)
        optimizer.apply([keras.ops.cast(gradient, "float32")], [variable])
        moments = betas * moments + (1 - betas) * [gradient, gradient**2]
        mean, square = moments / (1 - betas**step)
        value = value * (1 - 0.05 * 0.1)
        value = value - 0.05 * mean / (np.sqrt(square) + 1e-7 / np.sqrt(1 - 0.999**step))
        keep = min(0.9, step / (step + 9)) if step > 1 else 0.0
        average = keep * average + (1 - keep) * value
    np.testing.assert_allclose(variable, value, atol=1e-6, err_msg="expected Adam's formulas")
    found = optimizer.moving_averages()[0]
    np.testing.assert_allclose(found, average, atol=1e-6, err_msg="expected the EMA's formula")


def test_buckets_do_not_change_the_numbers(monkeypatch):
    whole, optimizer = train(FlatAdamW)
    assert len(optimizer._buckets) == 1, "expected one vector for a small network"
    monkeypatch.setattr(vectors, "BUCKET_SIZE", 30)
    cut, optimizer = train(FlatAdamW)
    held = [bucket.indices for bucket in optimizer._buckets]
    assert held == [[0], [1, 2, 3], [4, 5]], f"sizes 40; 8, 8, 8; 24, 3; got {held}"
    for mine, other in zip(cut.trainable_variables, whole.trainable_variables, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6, err_msg=f"{mine.path} depends on cuts")


def test_a_checkpoint_does_not_depend_on_what_is_updated_alone(monkeypatch):
    """It holds m, v and θ̄ as vectors over all variables, those with weight decay first."""
    _, optimizer = train(FlatAdamW)
    stored = [np.asarray(v) for v in optimizer.checkpoint_variables()]
    monkeypatch.setattr(vectors, "LONG", 20)
    _, alone = train(FlatAdamW)
    kinds = [(bucket.indices, bucket.alone) for bucket in alone._buckets]
    assert kinds == [([1, 2, 3, 5], False), ([0], True), ([4], True)], f"got {kinds}"
    shapes = [np.shape(v) for v in alone.checkpoint_variables()]
    assert shapes == [(), (), *[(91,)] * 3], f"expected steps, rate, m, v, θ̄; got {shapes}"
    for mine, other in zip(alone.checkpoint_variables(), stored, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6, err_msg="the order depends on LONG")
    averages = [np.ravel(alone.moving_averages()[i]) for i in (0, 4, 1, 2, 3, 5)]
    np.testing.assert_array_equal(alone.checkpoint_variables()[-1], np.concatenate(averages))
    for variable, value in zip(alone.checkpoint_variables(), stored, strict=True):
        variable.assign(value)
        np.testing.assert_array_equal(variable, value, err_msg="expected what was assigned")
    expected = [np.asarray(average) for average in optimizer.moving_averages()]
    for mine, other in zip(alone.moving_averages(), expected, strict=True):
        np.testing.assert_array_equal(mine, other, err_msg="expected the other's average")


@pytest.mark.parametrize("use_ema", [False, True])
def test_its_variables_are_its_own(use_ema):
    """A checkpoint holds them beside the weights: those would be in it twice."""
    model = network()
    optimizer = FlatAdamW(keras.optimizers.schedules.CosineDecay(0.1, 10), use_ema=use_ema)
    optimizer.build(model.trainable_variables)
    count = 1 + (2 + use_ema) * model.count_params()
    held = sum(int(np.prod(variable.shape)) for variable in optimizer.variables)
    assert held == count, f"{held} numbers, expected {count}: steps, two moments, averages"


def test_decay_leaves_biases_and_scales_alone():
    """Without a gradient only decay moves a variable."""
    model = network()
    optimizer = FlatAdamW(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    variables = model.trainable_variables
    before = [np.asarray(v) for v in variables]
    optimizer.apply([keras.ops.zeros(v.shape) for v in variables], variables)
    for variable, value in zip(variables, before, strict=True):
        factor = 0.95 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(
            variable, factor * value, rtol=1e-6, err_msg=f"{variable.path}: expected × {factor}"
        )


def test_fit_ends_with_the_average():
    model, optimizer = train(FlatAdamW)
    expected = averages(optimizer)
    optimizer.finalize_variable_values(model.trainable_variables)
    for variable, value in zip(model.trainable_variables, expected, strict=True):
        np.testing.assert_array_equal(variable, value, err_msg=f"{variable.path} is no average")


def test_bfloat16_variables_are_updated_in_float32():
    variable = keras.Variable(np.ones(4), dtype="bfloat16", name="kernel")
    optimizer = FlatAdamW(1e-3, weight_decay=0.0)
    optimizer.apply([keras.ops.ones(4, dtype="bfloat16")], [variable])
    assert optimizer._buckets[0].momentum.dtype == "float32", "expected float32 state"
    assert variable.dtype == "bfloat16", "expected the variable's own dtype to stay"


def test_config_round_trip():
    optimizer = FlatAdamW(0.05, **SETTINGS)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(copy) is FlatAdamW, f"expected a FlatAdamW, got {type(copy)}"
    assert copy.get_config() == optimizer.get_config(), "expected the same configuration"


@pytest.mark.parametrize("name", ["amsgrad", "gradient_accumulation_steps", "clipnorm"])
def test_what_it_does_not_do_is_refused(name):
    with pytest.raises(ValueError, match=name):
        FlatAdamW(0.1, **{name: 2})


def test_a_missing_gradient_is_refused():
    model = network()
    optimizer = FlatAdamW(0.1)
    optimizer.build(model.trainable_variables)
    with pytest.raises(ValueError, match="3 gradients for 6 variables"):
        optimizer._backend_apply_gradients(
            [keras.ops.zeros(v.shape) for v in model.trainable_variables[:3]],
            model.trainable_variables[:3],
        )


@pytest.mark.parametrize("cls", [WarmAdafactor, WarmLion])
def test_other_optimizers_warm_their_average_up_as_well(cls):
    """μₜ = min(μ, t / (t + 9)), 0 at first, followed step by step."""
    model = network()
    optimizer = cls(0.01, use_ema=True, ema_momentum=0.9, ema_warmup=True)
    model.compile(optimizer, loss="mse")
    optimizer.build(model.trainable_variables)
    numbers = np.random.default_rng(0)
    expected = None
    for step in range(1, 5):
        model.train_on_batch(
            numbers.standard_normal((4, 5)).astype("float32"),
            numbers.standard_normal((4, 3)).astype("float32"),
        )
        weights = [np.array(v) for v in model.get_weights()]
        momentum = min(0.9, step / (step + 9)) if step > 1 else 0.0
        expected = weights if step == 1 else expected
        expected = [
            momentum * a + (1 - momentum) * w for a, w in zip(expected, weights, strict=True)
        ]
    for found, value in zip(averages(optimizer), expected, strict=True):
        np.testing.assert_allclose(found, value, atol=1e-6, err_msg="expected the warm average")
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert copy.get_config() == optimizer.get_config(), "expected the same configuration"
