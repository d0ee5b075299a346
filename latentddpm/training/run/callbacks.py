"""Callbacks that count optimizer steps, and `averaged_weights`: the EMA during validation.

A run is one `fit` over a stream of batches, in Keras's terms one epoch. So log, checkpoints and
validation follow the number of steps.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from latentddpm.utils import signals


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """EMA weights in place of the model's weights, inside the block; without EMA no change.

    Keras's own `SwapEMAWeights` swaps by adding and subtracting, which does not restore the same
    bits. Here training goes on exactly as without the block.

    Args:
        model: compiled.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not optimizer.use_ema:
        yield
        return
    variables = model.trainable_variables
    raw = [keras.ops.convert_to_numpy(variable) for variable in variables]
    try:
        optimizer.finalize_variable_values(variables)
        yield
    finally:
        for variable, value in zip(variables, raw, strict=True):
            variable.assign(value)


class StopEvaluation(keras.callbacks.Callback):
    """Stop of a validation after the current batch, once a signal has come.

    Args:
        agreed: returned by `distribution.strategy.any_process`, so that several processes stop
            at the same batch; None for one process.

    Raises:
        signals.Stopped: from within `evaluate`.
    """

    def __init__(self, agreed: Callable[[bool], bool] | None = None) -> None:
        super().__init__()
        self.agreed = agreed

    def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
        if signal := signals.pending(self.agreed):
            raise signals.Stopped(signal)


class EverySteps(keras.callbacks.Callback):
    """Call of `action(step)` every few steps and after the last step.

    Args:
        action: takes the number of optimizer steps so far.
        first, total: step that training goes on from, and its last step.
        every: steps from one call to the next.
    """

    def __init__(self, action: Callable[[int], None], first: int, total: int, every: int) -> None:
        super().__init__()
        self.action, self.step, self.total, self.every = action, first, total, every

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        if self.step % self.every == 0 or self.step == self.total:
            self.action(self.step)
