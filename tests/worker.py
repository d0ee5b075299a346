"""One of two processes of `tests/test_multiworker.py`: trains, then prints its weights."""

import json
import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import tensorflow as tf
from train_small import data, small

from latentddpm.data.crew import ALONE
from latentddpm.data.examples import share
from latentddpm.training.distribute import agreement, crew_of, feed, make_strategy


def train(strategy, batch_size, direct):
    """Weights and logs after `fit`: of a whole dataset, or of this process's positions."""
    with strategy.scope():
        model = small(metrics=["mae"])
    x, y = data(3 * batch_size)
    if direct:
        examples = tf.data.Dataset.from_tensor_slices((x, y)).batch(batch_size)
    else:
        crew = crew_of(strategy)
        positions, own = share(0, 3 * batch_size, batch_size, crew)
        pairs = positions.map(lambda place: (tf.gather(x, place), tf.gather(y, place)))
        examples = feed(strategy, pairs.batch(own))
    history = model.fit(examples, verbose=0, shuffle=False).history
    held_out = tf.data.Dataset.from_tensor_slices(data(7, seed=3)).batch(4)
    tested = model.evaluate(held_out, verbose=0, return_dict=True)
    logs = {key: float(values[-1]) for key, values in history.items()}
    return [w.tolist() for w in model.get_weights()], {**logs, "tested": float(tested["loss"])}


if __name__ == "__main__":
    strategy = make_strategy("auto")
    crew = crew_of(strategy)
    found = {
        "direct": train(strategy, 5, True),
        "by position": train(strategy, 5, False),
        "fewer examples than processes": train(strategy, 1, False),
    }
    if crew is not ALONE:
        crew.barrier()
        agreed = agreement(strategy)
        found["agreed"] = [agreed(False), agreed(crew.index == 1)]
    print(json.dumps(found))
