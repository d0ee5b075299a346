"""What `distribution/test_multi_worker.py` trains in one process and in two: as a script it is one
of these two, and prints its weights.
"""

import json
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import tensorflow as tf
from train_small import data, small

from latentddpm.data.buckets import interleave, one_by_one
from latentddpm.data.shares import share, shared
from latentddpm.distribution.strategy import (
    any_process,
    distribute_dataset,
    make_strategy,
    process_group,
)
from latentddpm.training.step.trainer import Trainer


def fitted(model, examples, **how):
    """The logs of the last epoch after `fit`."""
    history = model.fit(examples, verbose=0, shuffle=False, **how).history
    return {key: float(values[-1]) for key, values in history.items()}


def weights(model):
    return [w.tolist() for w in model.get_weights()]


def train(strategy):
    """Weights and logs of a model that goes on from case to case: `fit` of a whole dataset with
    `evaluate` of another one, then twice of this process's positions.
    """
    with strategy.scope():
        model = small(metrics=["mae"])
    logs = fitted(model, tf.data.Dataset.from_tensor_slices(data(15)).batch(5))
    held_out = tf.data.Dataset.from_tensor_slices(data(7, seed=3)).batch(4)
    tested = model.evaluate(held_out, verbose=0, return_dict=True)
    found = {"direct": (weights(model), {**logs, "tested": float(tested["loss"])})}
    processes = process_group(strategy)
    for case, batch_size in (("by position", 5), ("fewer examples than processes", 1)):
        positions, own = share(0, 3 * batch_size, batch_size, processes)
        examples = distribute_dataset(strategy, pairs(3 * batch_size, positions).batch(own))
        logs = fitted(model, examples)
        found[case] = weights(model), logs
    return found


def pairs(count, positions):
    """Those of `count` examples at some positions."""
    x, y = data(count)
    return positions.map(lambda place: (tf.gather(x, place), tf.gather(y, place)))


def train_shapes(strategy):
    """The same of images of two shapes in turns, validated bucket by bucket."""
    processes, sizes = process_group(strategy), {(4, 2): range(7), (2, 4): range(4)}

    with strategy.scope():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((None, None, 3))
        outputs = keras.layers.Conv2D(3, 3, padding="same")(inputs)
        model = Trainer(keras.Model(inputs, outputs))
        model.compile("sgd", loss="mse")
    found = {}
    for case, batch_size in (
        ("two shapes", 3),
        ("two shapes, fewer examples than processes", 1),
    ):
        part = parts_of(processes, batch_size)
        examples = distribute_dataset(strategy, interleave(sizes, 0, 4, batch_size, part))
        loss = fitted(model, examples, steps_per_epoch=4)["loss"]
        steps = sum(-(-len(images) // batch_size) for images in sizes.values())
        tested = model.evaluate(
            distribute_dataset(strategy, one_by_one(sizes, part)), steps=steps, verbose=0
        )
        found[case] = weights(model), {"loss": loss, "tested": float(tested)}
    return found


def parts_of(processes, batch_size):
    """Function (shape, first, last) → batches of this process's images of a shape."""

    def part(shape, first, last):
        def images(place):
            pixels = tf.random.stateless_normal((*shape, 3), (place, shape[0]))
            return pixels, pixels[:, ::-1]

        def batches(positions, size):
            return positions.map(images).batch(size)

        return shared(range(first, last), batch_size, processes, batches)

    return part


def cases(strategy):
    """Weights and logs by case."""
    return {**train(strategy), **train_shapes(strategy)}


if __name__ == "__main__":
    strategy = make_strategy("auto")
    processes = process_group(strategy)
    found = cases(strategy)
    processes.barrier()
    agreed = any_process(strategy)
    found["agreed"] = [agreed(False), agreed(processes.index == 1)]
    print(json.dumps(found))
