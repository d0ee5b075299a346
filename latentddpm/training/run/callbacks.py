"""What happens beside the gradient steps: checkpoints, validation.

A run is one `fit` over a stream of batches; these callbacks count optimizer steps, not
epochs, so that everything (log, checkpoint, validation) can fall on any step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from latentddpm.utils import signals


@contextlib.contextmanager
def averaged_weights(model: keras.Model) -> Iterator[None]:
    """The optimizer's moving averages as the model's weights, inside the block.

    Keras's own `SwapEMAWeights` swaps by adding and subtracting, which does not give back
    the same bits; training has to go on as if nothing had been looked at.
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
    """A signal need not wait for the end of a long validation.

    Args:
        agreed: of `distribute.agreement`; several processes stop at the same batch.

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
    """Call `action(step)` every so many steps and after the last one."""

    def __init__(self, action: Callable[[int], None], first: int, total: int, every: int) -> None:
        super().__init__()
        self.action, self.step, self.total, self.every = action, first, total, every

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.step += 1
        if self.step % self.every == 0 or self.step == self.total:
            self.action(self.step)
