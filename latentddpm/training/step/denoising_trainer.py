"""Trainer of a denoiser: its loss, and how large that is at little and at much noise.

    ℓᵢ = mean (ŷᵢ − yᵢ)²         L = (1/B) Σᵢ ℓᵢ        L_q = (1/n_q) Σ {ℓᵢ : tᵢ in quartile q}
    q  = 1 + ⌊4 tᵢ / T⌋          so that L = Σ_q n_q L_q / B

with y the schedule's target (Ho et al. 2020, eq. 14). Little noise (q = 1) is hard to tell from
the image and much (q = 4) is easy to see: of a network that predicts noise the losses of single
timesteps lie far apart (Nichol & Dhariwal 2021, fig. 2), and the mean over all hides where one of
them still learns, or has begun to diverge.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.unet import UNet
from latentddpm.training.step.trainer import Term, Trainer, on_tensorflow

QUARTILES = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")


class DenoisingTrainer(Trainer):
    """Trainer of a UNet, and of a text encoder along with it where that is trainable.

    Noise comes with the data, so that every replica and every resumed run sees the noise it
    should: `latentddpm.noisy_examples` makes such batches from arrays of latents.

    Args:
        unet: the denoiser.
        schedule: what its timesteps mean and what it predicts.
        text_encoder: gives the UNet its context from token ids; None for an unconditional UNet,
            or where batches bring the context.

    Call arguments:
        inputs: `{"noisy_latents": (B, h, w, c), "timesteps": (B,)}` and, for a conditional UNet,
            `"token_ids"`: (B, L) for the text encoder, or without one `"context"`: (B, L, d).

    Returns:
        The UNet's prediction, float32 (B, h, w, c). `fit` takes batches (inputs, target) or
        (inputs, target, weight), with the target of `NoiseSchedule.target` and weights
        (B, 1, 1). The logs hold `loss` and `loss_q1` (the quarter of the timesteps with the
        least noise) … `loss_q4`, weighted as the loss is; NaN where no example fell into one.

    Raises:
        ValueError: the text encoder's width is not the UNet's `context_dim`.

    Example:
        >>> unet = latentddpm.UNet(8, channel_multipliers=(1,), attention_levels=(), norm_groups=4)
        >>> trainer = latentddpm.DenoisingTrainer(unet, latentddpm.NoiseSchedule())
        >>> trainer.compile(keras.optimizers.AdamW(1e-4), run_eagerly=True)
        >>> latents = np.random.default_rng(0).normal(size=(16, 8, 8, 4))
        >>> batches = latentddpm.noisy_examples(latents, trainer.schedule, batch_size=4, seed=0)
        >>> history = trainer.fit(batches, steps_per_epoch=2, shuffle=False, verbose=0).history
        >>> "loss_q1" in history
        True
        >>> unet.save("unet.keras")
    """

    def __init__(
        self,
        unet: UNet,
        schedule: NoiseSchedule,
        text_encoder: TextEncoder | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("name", "denoising_trainer")
        super().__init__(**kwargs)
        if text_encoder is not None and text_encoder.hidden_dim != unet.context_dim:
            raise ValueError(
                f"text_encoder: its states are {text_encoder.hidden_dim} wide, the UNet takes a "
                f"context_dim of {unet.context_dim}"
            )
        self.schedule = schedule
        # In this order: checkpoints name variables by their place.
        self.text_encoder = text_encoder
        self.unet = unet
        self.built = True
        if on_tensorflow():
            self.term_names = ("loss", *QUARTILES)

    def call(self, inputs, training=None):
        if self.text_encoder is not None:
            inputs = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
            token_ids = inputs.pop("token_ids")
            inputs["context"] = self.text_encoder({"token_ids": token_ids}, training=training)
        return self.unet(inputs, training=training)

    def compile(self, optimizer: Any = "adamw", loss: Any = "mse", **kwargs: Any) -> None:
        """Set up training; the arguments of `Trainer.compile`, with the mean squared error."""
        super().compile(optimizer, loss, **kwargs)

    def loss_terms(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
    ) -> dict[str, Term]:
        """`loss`, and the mean and the number of the examples of each quartile."""
        terms = dict(super().loss_terms(x, y, y_pred, sample_weight, training))
        errors = keras.losses.mean_squared_error(y, y_pred)  # (B, h, w)
        if sample_weight is not None:
            errors *= sample_weight  # (B, 1, 1)
        errors = ops.mean(errors, axis=(1, 2))  # (B,)
        timesteps = ops.cast(x["timesteps"], "float32")
        quartiles = ops.cast(4.0 * timesteps / self.schedule.num_train_timesteps, "int32")
        # Sums apart, not products with a mask: one example's NaN stays in its own quartile.
        totals = ops.segment_sum(errors, quartiles, num_segments=4)
        counts = ops.segment_sum(ops.ones_like(errors), quartiles, num_segments=4)
        means = ops.divide_no_nan(totals, counts)
        pairs = zip(ops.unstack(means, 4), ops.unstack(counts, 4), strict=True)
        return {**terms, **dict(zip(QUARTILES, pairs, strict=True))}
