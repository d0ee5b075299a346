"""A small real network that goes through `run_steps`, with all that trainers have around it."""

import json

import keras
import numpy as np
import tensorflow as tf

from latentddpm.config import AutoencoderRun
from latentddpm.training.run import run as training_run
from latentddpm.training.run.callbacks import StopEvaluation, averaged_weights
from latentddpm.training.run.contract import Contract
from latentddpm.training.run.loop import compile_options, run_steps
from latentddpm.training.step.trainer import Trainer

STEPS = 24


def settings(**training):
    common = {
        "num_steps": STEPS,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "warmup_steps": 0,
        "ema_momentum": 0.9,
        "log_every": 1,
        "validate_every": 8,
        "checkpoint_every": 6,
        "precision": "float32",
    }
    return AutoencoderRun.model_validate({"training": common | training})


class Run:
    """A run in a folder; `change(step, inputs, targets)` meddles with the batch of a step."""

    def __init__(self, folder, change=None, extra=(), validate=None, **training):
        self.folder, self.change, self.validate = folder, change, validate
        self.config = settings(**training)
        keras.utils.set_random_seed(0)
        inputs = keras.Input((3,))
        outputs = inputs
        for layer in (keras.layers.Dense(8, "silu"), *extra, keras.layers.Dense(2)):
            outputs = layer(outputs)
        self.model = Trainer(keras.Model(inputs, outputs))
        self.model.compile(**compile_options(self.config.training), loss="mse")
        self.validations = []

    def examples(self, start, stop):
        def batches():
            for step in range(start, stop):
                numbers = np.random.default_rng(step)
                inputs = numbers.normal(size=(4, 3)).astype("float32")
                targets = inputs[:, :2] ** 2
                if self.change:
                    self.change(step + 1, inputs, targets)
                yield inputs, targets

        shapes = tf.TensorSpec((4, 3)), tf.TensorSpec((4, 2))
        dataset = tf.data.Dataset.from_generator(batches, output_signature=shapes)
        return dataset.apply(tf.data.experimental.assert_cardinality(stop - start))

    def validation(self, step, log):
        self.validations.append(step)
        with averaged_weights(self.model):
            batches = self.examples(1000, 1020)
            if self.validate:
                batches = self.validate(step, batches)
            values = self.model.evaluate(
                batches, verbose=0, callbacks=[StopEvaluation()], return_dict=True
            )
        log.write(step, {"validation_loss": values["loss"]})
        (self.folder / "samples").mkdir(exist_ok=True)
        (self.folder / "samples" / f"step-{step:08d}.png").touch()

    def run(self, resume=False, **options):
        contract = Contract.of(self.config, {"images": 40})
        run = training_run.Run(self.config, self.folder, resume=resume, quiet=True)
        run_steps(run, self.model, self.examples, self.validation, contract, **options)
        return self

    @property
    def checkpoints(self):
        return self.folder / "checkpoints"

    def log(self, key):
        """Of each step that has one, the last line's value."""
        lines = (self.folder / "log.jsonl").read_text("utf-8").splitlines()
        return {line["step"]: line[key] for line in map(json.loads, lines) if key in line}
