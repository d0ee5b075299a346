"""What both trainers share: the run folder, the optimizer, the one call to `fit`.

runs/NAME/  config.yaml  log.jsonl  tensorboard/  samples/  checkpoints/  model/
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from latentddpm.config import AutoencoderRun, DiffusionRun, TrainingConfig
from latentddpm.config_file import dump_config
from latentddpm.distribution.strategy import any_process, process_group
from latentddpm.errors import one_line
from latentddpm.models.functional import remade
from latentddpm.training.run.callbacks import EverySteps
from latentddpm.training.run.checkpoint import latest, load_latest, present, restore
from latentddpm.training.run.contract import Contract
from latentddpm.training.run.health import Diverged, Health, less_memory, read_history
from latentddpm.training.run.progress import Progress
from latentddpm.training.run.resume import BEST, CHECKPOINTS, CONFIG, Best, Saver
from latentddpm.training.run.runlog import NoLog, RunLog
from latentddpm.training.run.wandb_log import WandbLog
from latentddpm.training.step.optimizer import FlatAdamW, WarmAdafactor, WarmLion
from latentddpm.utils import signals
from latentddpm.utils.console import say
from latentddpm.utils.files import atomic_path
from latentddpm.utils.locks import require_lock
from latentddpm.utils.memory import is_out_of_memory

OPTIMIZERS = {"adamw": FlatAdamW, "adafactor": WarmAdafactor, "lion": WarmLion}
Examples = Callable[[int, int], tf.data.Dataset]
"""Training batches of steps `start` … `stop` − 1."""


def make_optimizer(training: TrainingConfig) -> keras.optimizers.Optimizer:
    """`training.optimizer` with warm-up, then a constant or cosine rate, and moving averages."""
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


def open_log(
    folder: Path, config: AutoencoderRun | DiffusionRun, first: int, quiet: bool
) -> RunLog:
    """The log of a run that goes on from step `first`, with a run of W&B where one is wanted."""
    if not config.training.wandb:
        return RunLog(folder, first)
    settings = config.model_dump(mode="json")
    wandb = WandbLog(config.training.wandb, folder, settings, resumed=first > 0)
    say(f"wandb      {wandb.where}", quiet)
    return RunLog(folder, first, wandb)


def run_steps(
    model: keras.Model,
    examples: Examples,
    config: AutoencoderRun | DiffusionRun,
    folder: Path,
    validate: Callable[[int, RunLog], Mapping[str, float]],
    *,
    contract: Contract,
    resume: bool,
    quiet: bool,
    strategy: tf.distribute.Strategy | None = None,
    best_metric: str = "none",
) -> None:
    """Train a compiled model to `training.num_steps`.

    The resolved configuration is written when all input was found good, and on resuming when
    the checkpoint fits it.
    After it the model holds the averaged weights, with `training.keep_best` those of the best
    checkpoint.

    Args:
        validate: gives what it wrote into the log, and leaves a picture in `samples` when it is
            done.
        contract: what `agree` gave.
        strategy: that the model was made under. Of several processes the chief writes.
        best_metric: by which of `validate`'s numbers, `validation_` left out, the best checkpoint
            is kept; "none" keeps none.

    Raises:
        signals.Stopped: a signal came; the step that was under way is saved.
        Diverged: see `health`; the newest checkpoint is from before that.
        MemoryError: a step needs more than there is, with what to lower.
        UserError: another process trains in the folder; Weights & Biases does not take the run.
        OSError: a checkpoint or the log cannot be written; earlier checkpoints stay.
    """
    training = config.training
    checkpoints = folder / CHECKPOINTS
    processes, agreed = process_group(strategy), any_process(strategy)
    quiet = quiet or not processes.is_chief
    with require_lock(folder, "trains") if processes.is_chief else contextlib.nullcontext():
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
        first = load_latest(checkpoints, model) if resume and present(checkpoints) else 0
        processes.barrier()  # before the chief drops a damaged checkpoint that others look at
        if processes.is_chief:
            with atomic_path(folder / CONFIG) as temporary:
                temporary.write_text(dump_config(config), "utf-8")
        log = open_log(folder, config, first, quiet) if processes.is_chief else NoLog(folder)
        with log:
            say(f"resumed at {first}", quiet or not first)
            total = training.num_steps
            saver = Saver(
                checkpoints, model, contract, training.keep_checkpoints, first, processes.is_chief
            )
            picture = folder / "samples" / f"step-{first:08d}.png"
            due = first % training.validate_every == 0 or first >= total
            history = read_history(log.path)
            best = None
            if processes.is_chief and best_metric != "none":
                best = Best(saver, best_metric, first, history)

            def validated(step: int) -> None:
                values = validate(step, log)
                if best is not None:
                    best.offer(step, values)

            def finish() -> None:
                if training.keep_best:
                    processes.barrier()
                    restore(latest(checkpoints / BEST), model)
                model.optimizer.finalize_variable_values(model.trainable_variables)

            if first and due and not picture.exists():
                validated(first)  # the run ended in the middle of it
            if first >= total:
                finish()
                return

            def validate_unless_stopped(step: int) -> None:
                with contextlib.suppress(signals.Stopped):
                    validated(step)
                model.reset_metrics()  # else the next line of the log is about validation as well

            progress = Progress(log, first, total, training.batch_size, training.log_every, quiet)
            callbacks = [
                Health(training, first, history),
                progress,
                EverySteps(saver.save, first, total, training.checkpoint_every),
                EverySteps(validate_unless_stopped, first, total, training.validate_every),
                EverySteps(lambda step: saver.stop_if_told(step, agreed), first, total, 1),
            ]
            with warnings.catch_warnings(), signals.deferred(checking=agreed is None):
                # Keras remarks that it does not shuffle a dataset; ours draws its own order.
                warnings.filterwarnings("ignore", message=".*shuffle=True.*")
                try:
                    model.fit(
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
                    if not is_out_of_memory(error):
                        raise
                    replicas = model.distribute_strategy.num_replicas_in_sync
                    raise MemoryError(less_memory(config, replicas)) from error
                finally:
                    progress.bar.close()
            finish()


def in_float32(model: keras.Model) -> keras.Model:
    """A copy to keep: same weights, float32 policy, no optimizer."""
    return remade(model, dtype="float32")
