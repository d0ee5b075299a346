"""Training loop of both commands: resume, one call of `fit`, validate and save on the way."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import keras
import tensorflow as tf

from latentddpm.config import TrainingConfig
from latentddpm.config_file import dump_config
from latentddpm.distribution.precision import fastest_precision
from latentddpm.distribution.strategy import any_process
from latentddpm.errors import UserError, one_line
from latentddpm.models.functional import rebuild
from latentddpm.training.plan.cost import smaller_plan
from latentddpm.training.run.callbacks import EverySteps
from latentddpm.training.run.checkpoint import latest, load_latest, present, restore
from latentddpm.training.run.contract import Contract
from latentddpm.training.run.health import (
    Diverged,
    Health,
    error_of_data,
    less_memory,
    read_history,
)
from latentddpm.training.run.progress import Progress
from latentddpm.training.run.resume import Best, Saver
from latentddpm.training.run.run import BEST, CHECKPOINTS, CONFIG, Run
from latentddpm.training.run.runlog import NoLog, RunLog
from latentddpm.training.run.wandb_log import WandbLog
from latentddpm.training.step.optimizer import FlatAdamW, WarmAdafactor, WarmLion
from latentddpm.training.step.trainer import Trainer
from latentddpm.utils import signals
from latentddpm.utils.console import activity
from latentddpm.utils.files import atomic_path
from latentddpm.utils.locks import require_lock
from latentddpm.utils.machine.memory import is_out_of_memory

OPTIMIZERS = {"adamw": FlatAdamW, "adafactor": WarmAdafactor, "lion": WarmLion}
Examples = Callable[[int, int], tf.data.Dataset]
"""Function (start, stop) → training batches of steps `start` … `stop` − 1."""


ENOUGH_OF_AN_ERROR = 200  # characters of XLA's message


class NotCompiled(Exception):
    """Error: XLA does not compile the training step; no step was taken."""


def make_optimizer(training: TrainingConfig) -> keras.optimizers.Optimizer:
    """Optimizer with warm-up, a constant or cosine learning rate, and an EMA of the weights.

    Args:
        training: the section `training:` of a configuration.
    """
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=max(training.num_steps - training.warmup_steps, 1),
        # alpha=1 makes the cosine constant.
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
    betas = dict(zip(("beta_1", "beta_2"), training.betas, strict=True))
    optimizer = OPTIMIZERS[training.optimizer](
        rate,
        **(betas if training.optimizer == "adamw" else {}),
        weight_decay=training.weight_decay,
        global_clipnorm=training.clip_norm,
        use_ema=training.ema_momentum > 0,
        ema_momentum=training.ema_momentum,
        ema_warmup=training.ema_warmup,
    )
    # As usual for AdamW: no decay of biases and of the scales and shifts of norms.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizer


def layer_policy(training: TrainingConfig) -> str:
    """Keras dtype policy of the networks, such as "mixed_bfloat16".

    Args:
        training: the section `training:` of a configuration.
    """
    precision = training.precision
    if precision == "auto":
        precision = fastest_precision().precision
    return "float32" if precision == "float32" else f"mixed_{precision}"


def compile_options(training: TrainingConfig) -> dict[str, Any]:
    """Arguments of `Trainer.compile`.

    Args:
        training: the section `training:` of a configuration.
    """
    return {
        "optimizer": make_optimizer(training),
        "accumulation_steps": training.accumulation_steps,
        "jit_compile": training.jit_compile == "on",
    }


def open_log(run: Run, first: int) -> RunLog | NoLog:
    """Log of a run, with Weights & Biases where `training.wandb` names a project.

    Args:
        run: the chief process writes; the others get a log that writes nothing.
        first: step that training goes on from.

    Raises:
        UserError: Weights & Biases does not accept the run.
        OSError: the log cannot be written.
    """
    if not run.is_chief:
        return NoLog(run.folder)
    if not run.training.wandb:
        return RunLog(run.folder, first)
    settings = run.config.model_dump(mode="json")
    wandb = WandbLog(run.training.wandb, run.folder, settings, resumed=first > 0)
    run.say(f"wandb      {wandb.where}")
    return RunLog(run.folder, first, wandb)


def run_steps(
    run: Run,
    trainer: Trainer,
    examples: Examples,
    validate: Callable[[int, RunLog], Mapping[str, float]],
    contract: Contract,
    best_metric: str = "none",
    may_fall_back: bool = False,
) -> None:
    """Train a compiled trainer to `training.num_steps`.

    The resolved configuration is written only once the checkpoint to resume from, if any, is
    loaded. At the end the networks hold the EMA weights, with `training.keep_best` those of the
    best checkpoint.

    Args:
        run: folder, settings, devices and processes.
        trainer: made in the scope of the strategy of `run`, and compiled.
        examples: (start, stop) → training batches of steps `start` … `stop` − 1.
        validate: (step, log) → the numbers that it wrote into the log, by name. When it is done
            it writes the picture `run.sample_path(step)`, which marks a finished validation.
        contract: returned by `check_resume`.
        best_metric: number of `validate`, without `validation_`, that decides which checkpoint is
            the best; "none" keeps no best checkpoint.
        may_fall_back: where the step does not compile with XLA, go on without.

    Raises:
        signals.Stopped: a signal came; the current step was finished and saved.
        Diverged: see `health`; the newest checkpoint is from before that.
        MemoryError: a step needs more memory than there is; the message says what to lower.
        UserError: an image cannot be read any more, another process trains in the folder, no
            intact checkpoint or one of other shapes, a step that does not compile, or Weights &
            Biases does not accept the run.
        OSError: a checkpoint or the log cannot be written; earlier checkpoints stay.
    """
    try:
        _run_steps(run, trainer, examples, validate, contract, best_metric)
    except NotCompiled as error:
        if not may_fall_back:
            raise UserError(f"training.jit_compile: on, but {error}; expected off") from error
        run.say(f"going on without XLA: {error}")
        training = run.training.model_copy(update={"jit_compile": "off"})
        run = replace(run, config=run.config.model_copy(update={"training": training}))
        trainer.jit_compile = False
        trainer.train_function = trainer.test_function = None
        contract = Contract.of(run.config, contract.data)
        _run_steps(run, trainer, examples, validate, contract, best_metric)


def _run_steps(
    run: Run,
    trainer: Trainer,
    examples: Examples,
    validate: Callable[[int, RunLog], Mapping[str, float]],
    contract: Contract,
    best_metric: str,
) -> None:
    """Train, or raise `NotCompiled` before the first step."""
    checkpoints, total = run.folder / CHECKPOINTS, run.training.num_steps
    lock = require_lock(run.folder, "trains") if run.is_chief else contextlib.nullcontext()
    with lock:
        with trainer.distribute_strategy.scope():
            trainer.optimizer.build(trainer.trainable_variables)
        resumes = run.resume and present(checkpoints)
        first = load_latest(checkpoints, trainer) if resumes else 0
        run.processes.barrier()  # all have read before the chief deletes damaged checkpoints
        if run.is_chief:
            with atomic_path(run.folder / CONFIG) as temporary:
                temporary.write_text(dump_config(run.config), "utf-8")
        with open_log(run, first) as log:
            if first:
                run.say(f"resumed at {first}")
            saver = Saver(run, trainer, contract, first)
            history = read_history(log.path)
            best = None
            if run.is_chief and best_metric != "none":
                best = Best(saver, best_metric, first, history)

            def validated(step: int) -> None:
                with activity(f"validating at step {step}", run.silent):
                    values = validate(step, log)
                if best is not None:
                    best.offer(step, values)

            due = first % run.training.validate_every == 0 or first >= total
            if first and due and not run.sample_path(first).exists():
                validated(first)  # the run was stopped during this validation
            if first < total:
                _fit(run, trainer, examples, validated, saver, log)
            if run.training.keep_best:
                run.processes.barrier()
                restore(latest(checkpoints / BEST), trainer)
            trainer.optimizer.finalize_variable_values(trainer.trainable_variables)


def _fit(
    run: Run,
    trainer: Trainer,
    examples: Examples,
    validated: Callable[[int], None],
    saver: Saver,
    log: RunLog | NoLog,
) -> None:
    """Call `fit` from the saver's step to the last; a failure names the checkpoint to resume."""
    training, first = run.training, saver.step
    total, agreed = training.num_steps, any_process(run.strategy)
    before = int(trainer.optimizer.iterations)

    def validate_unless_stopped(step: int) -> None:
        with contextlib.suppress(signals.Stopped):
            validated(step)
        trainer.reset_metrics()  # else the next line of the log would include validation

    progress = Progress(
        log,
        first,
        total,
        training.batch_size,
        training.log_every,
        run.silent,
        smaller_plan(run.config, run.downsample_factor),
    )
    callbacks = [
        Health(training, first, read_history(log.path)),
        progress,
        EverySteps(saver.save, first, total, training.checkpoint_every),
        EverySteps(validate_unless_stopped, first, total, training.validate_every),
        EverySteps(lambda step: saver.stop_if_told(step, agreed), first, total, 1),
    ]
    with warnings.catch_warnings(), signals.deferred(checking=agreed is None):
        # Keras warns that it does not shuffle a dataset; this one draws its own order.
        warnings.filterwarnings("ignore", message=".*shuffle=True.*")
        try:
            trainer.fit(
                examples(first, total),
                steps_per_epoch=total - first,
                verbose=0,
                callbacks=callbacks,
                shuffle=False,
            )
        except Diverged as error:
            raise Diverged(f"{error} ({saver.newest()})") from None
        except OSError as error:
            raise OSError(f"{one_line(error)}; {saver.newest()}") from error
        except Exception as error:
            if message := error_of_data(error):
                raise UserError(f"{message} ({saver.newest()})") from error
            if not is_out_of_memory(error):
                unchanged = int(trainer.optimizer.iterations) == before
                if trainer.jit_compile and unchanged and isinstance(error, tf.errors.OpError):
                    reason = one_line(error, ENOUGH_OF_AN_ERROR)
                    raise NotCompiled(f"the step does not compile ({reason})") from error
                raise
            replicas = trainer.distribute_strategy.num_replicas_in_sync
            raise MemoryError(less_memory(run.config, replicas)) from error
        finally:
            progress.close()


def in_float32(model: keras.Model) -> keras.Model:
    """Copy of a network with the same weights, dtype policy float32, and no optimizer.

    Args:
        model: UNet, autoencoder or text encoder.
    """
    return rebuild(model, dtype="float32")
