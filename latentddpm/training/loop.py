"""What both trainers share: the run folder, the optimizer, the one call to `fit`.

runs/NAME/  config.yaml  log.jsonl  tensorboard/  samples/  checkpoints/  model/
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from latentddpm.config import AutoencoderRun, DiffusionRun, TrainingConfig, dump_config
from latentddpm.errors import UserError
from latentddpm.files import atomic_path
from latentddpm.models.functional import remade
from latentddpm.training import checkpoint
from latentddpm.training.callbacks import EverySteps, Progress, RunLog
from latentddpm.training.optimizer import FlatAdamW

CONFIG = "config.yaml"
CHECKPOINTS = "checkpoints"
Examples = Callable[[int, int], tf.data.Dataset]
"""Training batches of steps `start` … `stop` − 1."""


def check_run(folder: Path, resume: bool) -> None:
    """Refuse a run folder that is taken or, with `resume`, empty.

    Raises:
        UserError: the folder holds a run and `resume` was not asked, or the other way round.
    """
    held = (folder / CHECKPOINTS).is_dir()
    if held and not resume:
        raise UserError(f"{folder}: already holds a run; pass --resume, or another --out")
    if resume and not held:
        raise UserError(f"{folder}: no run to resume (it has no {CHECKPOINTS})")


def make_optimizer(training: TrainingConfig) -> keras.optimizers.Optimizer:
    """AdamW with warm-up, then a constant or cosine learning rate, and moving averages."""
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(training.num_steps - training.warmup_steps, 1),
        # A cosine that ends where it began is a constant.
        alpha=1.0 if training.learning_rate_schedule == "constant" else 0.0,
        warmup_target=training.learning_rate,
        warmup_steps=training.warmup_steps,
    )
    if not training.warmup_steps:
        rate = keras.optimizers.schedules.CosineDecay(
            training.learning_rate,
            training.num_steps,
            alpha=1.0 if training.learning_rate_schedule == "constant" else 0.0,
        )
    optimizer = FlatAdamW(
        rate,
        weight_decay=training.weight_decay,
        global_clipnorm=training.clip_norm,
        use_ema=training.ema_momentum > 0,
        ema_momentum=training.ema_momentum,
        ema_warmup=training.ema_warmup,
    )
    # Norm scales, biases and positions have nothing to gain from decay.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def layer_policy(training: TrainingConfig) -> str:
    """The Keras dtype policy of `training.precision`."""
    return "float32" if training.precision == "float32" else f"mixed_{training.precision}"


def compile_options(training: TrainingConfig) -> dict[str, Any]:
    """What both trainers hand to `compile`."""
    return {
        "optimizer": make_optimizer(training),
        "accumulation_steps": training.accumulation_steps,
        "jit_compile": training.jit_compile,
    }


def run_steps(
    model: keras.Model,
    examples: Examples,
    config: AutoencoderRun | DiffusionRun,
    folder: Path,
    validate: Callable[[int, RunLog], None],
    *,
    resume: bool,
    quiet: bool,
) -> RunLog:
    """Train a compiled model to `training.num_steps`; returns the run's log.

    The resolved configuration is written when all input was found good, and on resuming when
    the checkpoint fits it.
    After it the model holds the averaged weights (Keras puts them there at the end of `fit`).
    """
    training = config.training
    checkpoints = folder / CHECKPOINTS
    with model.distribute_strategy.scope():
        model.optimizer.build(model.trainable_variables)
    first = checkpoint.load_latest(checkpoints, model) if resume else 0
    with atomic_path(folder / CONFIG) as temporary:
        temporary.write_text(dump_config(config), "utf-8")
    log = RunLog(folder, first)
    total = training.num_steps
    if first >= total:
        model.optimizer.finalize_variable_values(model.trainable_variables)
        return log

    def save(step: int) -> None:
        checkpoint.save(checkpoints, model, step, training.keep_checkpoints)

    callbacks = [
        Progress(log, first, total, training.batch_size, training.log_every, quiet),
        EverySteps(save, first, total, training.checkpoint_every),
        EverySteps(lambda step: validate(step, log), first, total, training.validate_every),
    ]
    with warnings.catch_warnings():
        # Keras remarks that it does not shuffle a dataset; ours draws its own order.
        warnings.filterwarnings("ignore", message=".*shuffle=True.*")
        model.fit(examples(first, total), verbose=0, callbacks=callbacks, shuffle=False)
    return log


def in_float32(model: keras.Model) -> keras.Model:
    """A copy to keep: same weights, float32 policy, no optimizer."""
    return remade(model, dtype="float32")
