"""Trainer of a denoiser: its loss, and the mean loss of each quarter of the timesteps.

    ℓᵢ = mean (ŷᵢ − yᵢ)²         L = (1/B) Σᵢ ℓᵢ        L_q = (1/n_q) Σ {ℓᵢ : tᵢ in quartile q}
    q  = 1 + ⌊4 tᵢ / T⌋          so that L = Σ_q n_q L_q / B

with y the schedule's target (Ho et al. 2020, eq. 14). A little noise (q = 1) is hard to tell from
the image, much noise (q = 4) is easy to see. So for a network that predicts the noise the losses
of single timesteps lie far apart (Nichol & Dhariwal 2021, fig. 2). Their mean hides a quarter that
still improves, or one that has begun to diverge.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.models.denoisers.base import Denoiser
from latentddpm.training.step.trainer import Term, Trainer, on_tensorflow

QUARTILES = ("loss_q1", "loss_q2", "loss_q3", "loss_q4")


class DenoisingTrainer(Trainer):
    """Trainer of a UNet, and of its text encoder where that is trainable.

    Noise comes with the data, so it does not depend on the number of replicas or on where a run
    was resumed. `latentddpm.noisy_examples` makes such batches from arrays of latents.

    `fit` takes batches (inputs, target) or (inputs, target, weight), with the target of
    `NoiseSchedule.target` and weights (B, 1, 1), a 1 for each axis of space. The logs hold `loss`
    and `loss_q1` (the quarter of the timesteps with the least noise) … `loss_q4`, with the same
    weights as the loss; NaN where no example fell into a quarter.

    Args:
        unet: the denoiser.
        schedule: its noise schedule, with the quantity that it predicts.
        text_encoder: turns token ids into the UNet's context; None for an unconditional UNet, or
            where the batches hold the context.
        kwargs: passed to `Trainer`, such as `name`.

    Call arguments:
        inputs: `{"noisy_latents": (B, h, w, c), "timesteps": (B,)}`, with the axes of space that
            the UNet has. For a conditional UNet also
            `"token_ids"`, (B, L), or, without a text encoder, `"context"`, (B, L, d).

    Returns:
        The UNet's prediction, float32 (B, h, w, c).

    Raises:
        ValueError: the text encoder's width is not the UNet's `context_dim`, or the UNet predicts
            a variance, for which there is no loss here.

    Example:
        >>> unet = latentddpm.UNet(
        ...     8, channel_multipliers=(1,), num_res_blocks=1, attention_levels=(), norm_groups=4
        ... )
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
        unet: Denoiser,
        schedule: ForwardProcess,
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
        if unet.learned_variance:
            raise ValueError(
                "unet: learned_variance needs the hybrid loss of Nichol & Dhariwal 2021, which is "
                "not here; expected learned_variance=False"
            )
        self.schedule = schedule
        # The order matters: checkpoints name variables by their position.
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
        """Set up training, with the mean squared error; arguments as of `Trainer.compile`."""
        super().compile(optimizer, loss, **kwargs)

    def loss_terms(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
    ) -> dict[str, Term]:
        """Terms of the logs: `loss`, and for each quarter its mean and its number of examples.

        Arguments are those of `Trainer.loss_terms`.
        """
        terms = super().loss_terms(x, y, y_pred, sample_weight, training)
        errors = keras.losses.mean_squared_error(y, y_pred)  # (B, h, w), of signals (B, L)
        if sample_weight is not None:
            errors *= sample_weight  # (B, 1, 1)
        errors = ops.mean(errors, axis=tuple(range(1, len(errors.shape))))  # (B,)
        return {**terms, **self.quartile_terms(x, errors)}

    def quartile_terms(self, x: Any, errors: Any) -> dict[str, Term]:
        """Mean of the errors in each quarter of the timesteps, and its number of examples.

        Args:
            x: the inputs of a micro-batch.
            errors: of its examples, (B,).
        """
        timesteps = ops.cast(x["timesteps"], "float32")
        quartiles = ops.cast(4.0 * timesteps / self.schedule.num_train_timesteps, "int32")
        quartiles = ops.minimum(quartiles, 3)  # a flow schedule's last timestep is T itself
        # Segment sums, not products with a mask: an example's NaN stays in its own quarter.
        totals = ops.segment_sum(errors, quartiles, num_segments=4)
        counts = ops.segment_sum(ops.ones_like(errors), quartiles, num_segments=4)
        means = ops.divide_no_nan(totals, counts)
        pairs = zip(ops.unstack(means, 4), ops.unstack(counts, 4), strict=True)
        return dict(zip(QUARTILES, pairs, strict=True))
