"""Randomness is a pure function of (seed, stream, purpose, position), and looks random."""

import numpy as np
import pytest
import tensorflow as tf

from latentddpm.data.random import RandomStream


def along(function, start, stop):
    """`function(position)` at positions start … stop − 1, drawn in a tf.data pipeline."""
    dataset = tf.data.Dataset.range(start, stop).map(function, num_parallel_calls=4)
    return np.stack(list(dataset.as_numpy_iterator()))


def noise(stream, start=0, stop=8, purpose="noise", shape=(4, 4, 2)):
    return along(lambda position: stream.normal(purpose, position, shape), start, stop)


# --- Pure functions ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["index", "integer", "bits", "chance", "uniform", "normal"])
def test_the_same_position_draws_the_same_in_any_order(kind):
    def draw(position):
        stream = RandomStream(7, "train")
        return {
            "index": lambda: stream.index(position, 11),
            "integer": lambda: stream.integer("timestep", position, 1000),
            "bits": lambda: stream.bits("caption", position),
            "chance": lambda: stream.chance("flip", position, 0.5),
            "uniform": lambda: stream.uniform("background", position, (3,)),
            "normal": lambda: stream.normal("noise", position, (2, 3)),
        }[kind]()

    forward = along(draw, 0, 40)
    np.testing.assert_array_equal(along(draw, 0, 40), forward, err_msg="another run, other draws")
    np.testing.assert_array_equal(along(draw, 25, 40), forward[25:], err_msg="a tail differs")
    backward = np.stack([draw(tf.constant(p, tf.int64)) for p in (39, 3, 0)])
    np.testing.assert_array_equal(backward, forward[[39, 3, 0]], err_msg="order matters")


def test_numbers_are_frozen():
    """A resumed run has to see the numbers its first part saw, also after an upgrade."""
    stream = RandomStream(0, "train")
    position = tf.constant(5, tf.int64)
    found = [
        int(stream.index(position, 1000)),
        int(stream.integer("timestep", position, 1000)),
        round(float(stream.uniform("background", position, (1,))[0]), 6),
        round(float(stream.normal("noise", position, (1,))[0]), 6),
    ]
    expected = [796, 885, 0.100788, 1.39847]
    assert found == expected, f"drew {found}, at version 0.1 it was {expected}"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (noise(RandomStream(0, "train")), noise(RandomStream(1, "train"))),
        (noise(RandomStream(0, "train")), noise(RandomStream(0, "validation"))),
        (noise(RandomStream(0, "train")), noise(RandomStream(0, "train"), purpose="posterior")),
        (noise(RandomStream(0, "train")), noise(RandomStream(0, "train"), 8, 16)),
    ],
    ids=["seed", "stream", "purpose", "position"],
)
def test_everything_in_the_key_counts(one, other):
    correlation = np.corrcoef(one.ravel(), other.ravel())[0, 1]
    assert abs(correlation) < 0.3, f"correlation {correlation:.2f}, expected independent draws"


def test_no_two_examples_share_their_noise():
    drawn = noise(RandomStream(0, "train"), 0, 200).reshape(200, -1)
    assert len(np.unique(drawn, axis=0)) == 200, "two of 200 examples got the same noise"
    correlation = np.corrcoef(drawn) - np.eye(200)
    # 19,900 pairs of 32 numbers: standard deviation 0.18, so 0.8 is more than four of them.
    assert np.abs(correlation).max() < 0.8, "noise of two examples is correlated"


# --- The order of the images ---------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 7, 100])
def test_every_epoch_is_another_permutation(count):
    stream = RandomStream(3, "train")
    order = along(lambda position: stream.index(position, count), 0, 4 * count)
    epochs = order.reshape(4, count)
    for number, epoch in enumerate(epochs):
        np.testing.assert_array_equal(
            np.sort(epoch), np.arange(count), err_msg=f"epoch {number} of {count} images"
        )
    if count >= 7:
        different = len({tuple(epoch) for epoch in epochs})
        assert different == 4, f"4 epochs of {count} images had {different} orders"
        assert not np.array_equal(epochs[0], np.arange(count)), "the first epoch is unshuffled"


def test_another_seed_is_another_order():
    orders = {
        tuple(along(lambda position, s=seed: RandomStream(s, "train").index(position, 50), 0, 50))
        for seed in range(5)
    }
    assert len(orders) == 5, f"5 seeds gave {len(orders)} orders"


def test_positions_beyond_32_bits():
    stream, far = RandomStream(0, "train"), 10**12
    order = along(lambda position: stream.index(position, 10), far, far + 10)
    np.testing.assert_array_equal(np.sort(order), np.arange(10), err_msg="late in a long run")
    late, early = noise(stream, 2**32, 2**32 + 2), noise(stream, 0, 2)
    assert not np.array_equal(late, early), "positions repeat after 2**32 examples"


# --- Distributions -------------------------------------------------------------------------


def test_normal_is_standard_normal():
    drawn = noise(RandomStream(0, "train"), 0, 500, shape=(8, 8, 4)).ravel()
    assert drawn.dtype == np.float32, f"noise is {drawn.dtype}"
    bound = 4 / np.sqrt(drawn.size)  # four standard errors
    assert abs(drawn.mean()) < bound, f"mean {drawn.mean():.4f}, expected 0 ± {bound:.4f}"
    assert abs(drawn.std() - 1) < bound, f"std {drawn.std():.4f}, expected 1 ± {bound:.4f}"
    kurtosis = np.mean(drawn**4)
    assert abs(kurtosis - 3) < 0.1, f"fourth moment {kurtosis:.2f}, a normal one has 3"


@pytest.mark.parametrize("maximum", [1, 3, 1000])
def test_integers_are_uniform(maximum):
    stream, count = RandomStream(0, "train"), 4000
    drawn = along(lambda position: stream.integer("timestep", position, maximum), 0, count)
    assert drawn.dtype == np.int32, f"integers are {drawn.dtype}"
    assert drawn.min() >= 0, f"drew {drawn.min()}"
    assert drawn.max() < maximum, f"drew {drawn.max()}, expected at most {maximum - 1}"
    bins = min(maximum, 20)
    found = np.bincount(drawn * bins // maximum, minlength=bins)
    expected = count / bins
    chi_square = np.sum((found - expected) ** 2 / expected)
    assert chi_square < bins + 5 * np.sqrt(2 * bins), f"{found}: not uniform over {maximum}"


@pytest.mark.parametrize("maximum", [1, 3, 1000])
def test_bits_modulo_n_are_the_integer_below_n(maximum):
    stream = RandomStream(0, "train")
    drawn = along(lambda position: stream.integer("caption", position, maximum), 0, 300)
    bits = along(lambda position: stream.bits("caption", position), 0, 300)
    assert bits.min() >= 0, f"drew {bits.min()}"
    assert bits.max() < 1 << 32, f"drew {bits.max()}, expected 32 bits"
    np.testing.assert_array_equal(bits % maximum, drawn, err_msg=f"modulo {maximum}")


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_chance_comes_as_often_as_asked(probability):
    stream, count = RandomStream(0, "train"), 3000
    share = along(lambda position: stream.chance("flip", position, probability), 0, count).mean()
    bound = 4 * np.sqrt(probability * (1 - probability) / count)
    assert abs(share - probability) <= bound, f"{share:.3f}, expected {probability} ± {bound:.3f}"


def test_uniform_fills_the_unit_interval():
    stream = RandomStream(0, "train")
    drawn = along(lambda position: stream.uniform("background", position, (3,)), 0, 1000)
    assert drawn.min() >= 0, f"drew {drawn.min()}"
    assert drawn.max() < 1, f"drew {drawn.max()}"
    assert abs(drawn.mean() - 0.5) < 0.03, f"mean {drawn.mean():.3f}, expected 0.5"
    assert drawn.max() - drawn.min() > 0.98, "does not reach the ends of [0, 1)"
