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


def train(strategy, batch_size, direct):
    """Weights and logs after `fit`: of a whole dataset, with `evaluate` of another one, or of this
    process's positions.
    """
    with strategy.scope():
        model = small(metrics=["mae"])
    x, y = data(3 * batch_size)
    if direct:
        examples = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    else:
        processes = process_group(strategy)
        positions, own = share(0, 3 * batch_size, batch_size, processes)
        pairs = positions.map(lambda place: (tf.gather(x, place), tf.gather(y, place)))
        examples = distribute_dataset(strategy, pairs.batch(own))
    history = model.fit(examples, verbose=0, shuffle=False).history
    logs = {key: float(values[-1]) for key, values in history.items()}
    if direct:
        held_out = tf.data.Dataset.from_tensor_slices(data(7, seed=3)).batch(4)
        tested = model.evaluate(held_out, verbose=0, return_dict=True)
        logs["tested"] = float(tested["loss"])
    return [w.tolist() for w in model.get_weights()], logs


def train_shapes(strategy, batch_size):
    """The same of images of two shapes in turns, validated bucket by bucket."""
    processes, sizes = process_group(strategy), {(4, 2): range(7), (2, 4): range(4)}

    def part(shape, first, last):
        def images(place):
            pixels = tf.random.stateless_normal((*shape, 3), (place, shape[0]))
            return pixels, pixels[:, ::-1]

        def batches(positions, size):
            return positions.map(images).batch(size)

        return shared(range(first, last), batch_size, processes, batches)

    with strategy.scope():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((None, None, 3))
        outputs = keras.layers.Conv2D(3, 3, padding="same")(inputs)
        model = Trainer(keras.Model(inputs, outputs))
        model.compile("sgd", loss="mse")
    examples = distribute_dataset(strategy, interleave(sizes, 0, 4, batch_size, part))
    history = model.fit(examples, steps_per_epoch=4, verbose=0, shuffle=False).history
    steps = sum(-(-len(images) // batch_size) for images in sizes.values())
    tested = model.evaluate(
        distribute_dataset(strategy, one_by_one(sizes, part)), steps=steps, verbose=0
    )
    logs = {"loss": history["loss"][-1], "tested": tested}
    return [w.tolist() for w in model.get_weights()], {k: float(v) for k, v in logs.items()}


def cases(strategy):
    """Weights and logs by case."""
    return {
        "direct": train(strategy, 5, True),
        "by position": train(strategy, 5, False),
        "fewer examples than processes": train(strategy, 1, False),
        "two shapes": train_shapes(strategy, 3),
        "two shapes, fewer examples than processes": train_shapes(strategy, 1),
    }


if __name__ == "__main__":
    strategy = make_strategy("auto")
    processes = process_group(strategy)
    found = cases(strategy)
    processes.barrier()
    agreed = any_process(strategy)
    found["agreed"] = [agreed(False), agreed(processes.index == 1)]
    print(json.dumps(found))
