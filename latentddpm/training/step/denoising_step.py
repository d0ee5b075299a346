"""The step of a network that denoises: its loss, and where in the process it comes from.

    ℓᵢ = mean (ε̂ᵢ − εᵢ)²        L = (1/B) Σᵢ ℓᵢ        L_q = (1/n_q) Σ {ℓᵢ : tᵢ in quartile q}
    q  = 1 + ⌊4 tᵢ / T⌋          so that L = Σ_q n_q L_q / B

Little noise (q = 1) is hard to tell from the image and much (q = 4) is easy to see: of a network
that predicts noise the losses of single timesteps lie far apart (Nichol & Dhariwal 2021, fig. 2),
and the mean over all hides where one of them still learns, or has begun to diverge.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from latentddpm.training.step.train_step import Term, TrainStep, on_tensorflow

QUARTILES = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")


class DenoisingStep(TrainStep):
    """`TrainStep` of a model of `{"noisy_latents", "timesteps", …}`, trained with `loss="mse"`.

    `compile` takes `num_train_timesteps` on top: T, with which the logs also hold `loss_q1` (the
    quarter of the timesteps with the least noise) … `loss_q4`, weighted as the loss is. NaN where
    no example fell into one since the metrics were last reset.
    """

    def compile(
        self, *arguments: Any, num_train_timesteps: int | None = None, **kwargs: Any
    ) -> None:
        """Set up training; the arguments of `TrainStep.compile` and `num_train_timesteps`.

        Raises:
            ValueError: `num_train_timesteps` on another backend than TensorFlow.
        """
        if num_train_timesteps is not None and not on_tensorflow():
            raise ValueError("num_train_timesteps: needs the TensorFlow backend of Keras")
        self.num_train_timesteps = num_train_timesteps
        self.term_names = ("loss", *(QUARTILES if num_train_timesteps else ()))
        super().compile(*arguments, **kwargs)

    def loss_terms(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
    ) -> dict[str, Term]:
        """`loss` and, given T, the mean and the number of the examples of each quartile."""
        terms = dict(super().loss_terms(x, y, y_pred, sample_weight, training))
        if not self.num_train_timesteps:
            return terms
        errors = keras.losses.mean_squared_error(y, y_pred)  # (B, h, w)
        if sample_weight is not None:
            errors *= sample_weight  # (B, 1, 1)
        errors = ops.mean(errors, axis=(1, 2))  # (B,)
        timesteps = ops.cast(x["timesteps"], "float32")
        quartiles = ops.cast(4.0 * timesteps / self.num_train_timesteps, "int32")
        # Sums apart, not products with a mask: one example's NaN stays in its own quartile.
        totals = ops.segment_sum(errors, quartiles, num_segments=4)
        counts = ops.segment_sum(ops.ones_like(errors), quartiles, num_segments=4)
        means = ops.divide_no_nan(totals, counts)
        pairs = zip(ops.unstack(means, 4), ops.unstack(counts, 4), strict=True)
        return {**terms, **dict(zip(QUARTILES, pairs, strict=True))}
