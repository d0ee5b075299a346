"""Trainer of an autoencoder: reconstruction and KL; optional perceptual and adversarial terms.

    L = |x − x̂| + w_KL · KL(q ‖ N(0, 1)) [+ w_p · perceptual distance] [+ w_t · w · L_G]

    KL of an element = ½ (μ² + σ² − 1 − log σ²)

for an image x and its reconstruction x̂ (Kingma & Welling 2014; Rombach et al. 2022, appendix G).
The KL is summed over the latents of an image, the reconstruction loss averaged over its pixels.
`training.step.adversarial` has the last term.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from latentddpm.errors import check_choice
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.layers import PACKAGE
from latentddpm.models.perceptual import PerceptualDistance
from latentddpm.training.step.adversarial import TERMS, Adversary
from latentddpm.training.step.trainer import Trainer, on_tensorflow

RECONSTRUCTION_LOSSES = ("l1", "l2")


@dataclass
class PerceptualTerm:
    """Perceptual distance as a term of the loss.

    Attributes:
        distance: between images and reconstructions.
        weight: of the distance in the loss, at least 0.
    """

    distance: PerceptualDistance
    weight: float


@keras.saving.register_keras_serializable(package=PACKAGE)
class GaussianKL(keras.losses.Loss):
    """KL(N(mean, exp(logvar)) ‖ N(0, 1)): summed over an image's latents, mean over the batch."""

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """KL divergence of each image's posterior.

        Args:
            y_true: mean of the posterior, (B, h, w, c).
            y_pred: its log-variance, (B, h, w, c).

        Returns:
            (B,), in nats.
        """
        mean, logvar = y_true, y_pred
        terms = 0.5 * (ops.square(mean) + ops.exp(logvar) - 1.0 - logvar)
        return ops.sum(terms, axis=(1, 2, 3))


class AutoencoderTrainer(Trainer):
    """Trainer of an autoencoder, which learns to reconstruct images.

    With `autoencoder.encoder.trainable = False` only the decoder is trained, and the latents of
    an image stay the same.

    `fit` takes batches of inputs, without targets. The logs hold `loss`, `reconstruction`, `kl`
    and `mse`; with `perceptual` also the distance, under its own name, with `adversary` also the
    terms of `adversarial.TERMS`.

    Args:
        autoencoder: the network to train.
        reconstruction_loss: "l1" or "l2", mean over pixels.
        kl_weight: of the KL term.
        perceptual: distance between image and reconstruction to add to the loss; None for none.
        perceptual_weight: of that distance; 0 only measures it, in `evaluate`.
        adversary: discriminator to train against, TensorFlow only; None for none.
        kwargs: passed to `Trainer`, such as `name`.

    Call arguments:
        inputs: `{"images": (B, H, W, 3) in [-1, 1]}`, and for a sample of the posterior instead
            of its mode `"noise"`, standard normal (B, h, w, c). Noise comes with the data, so
            the network is a deterministic function.

    Returns:
        `{"reconstruction": (B, H, W, 3), "mean", "logvar": (B, h, w, c)}`, float32; the moments
        are not scaled.

    Raises:
        UserError: an unknown reconstruction loss.
        ValueError: an adversary on another backend than TensorFlow.

    Example:
        >>> autoencoder = latentddpm.Autoencoder(
        ...     8, channel_multipliers=(1,), num_res_blocks=1, norm_groups=4
        ... )
        >>> trainer = latentddpm.AutoencoderTrainer(autoencoder, "l1", kl_weight=1e-6)
        >>> trainer.compile(keras.optimizers.AdamW(1e-4), run_eagerly=True)
        >>> images = np.random.default_rng(0).uniform(-1, 1, (4, 16, 16, 3)).astype("float32")
        >>> history = trainer.fit({"images": images}, batch_size=4, verbose=0).history
        >>> sorted(history)
        ['gradient_norm', 'kl', 'loss', 'mse', 'reconstruction', 'skipped']
        >>> autoencoder.save("vae.keras")
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        reconstruction_loss: str = "l1",
        kl_weight: float = 1e-6,
        perceptual: PerceptualDistance | None = None,
        perceptual_weight: float = 1.0,
        adversary: Adversary | None = None,
        **kwargs: Any,
    ) -> None:
        check_choice("reconstruction_loss", reconstruction_loss, RECONSTRUCTION_LOSSES)
        if adversary is not None and not on_tensorflow():
            raise ValueError("adversary: needs the TensorFlow backend of Keras")
        kwargs.setdefault("name", "autoencoder_trainer")
        super().__init__(**kwargs)
        self.autoencoder = autoencoder
        self.built = True
        distance = {"l1": keras.losses.MeanAbsoluteError, "l2": keras.losses.MeanSquaredError}
        self.reconstruction_loss = distance[reconstruction_loss]()
        self.kl_loss = GaussianKL()
        self.kl_weight = kl_weight
        # Keras does not track the attributes of these two: neither belongs to the trained network.
        self.perceptual = perceptual and PerceptualTerm(perceptual, perceptual_weight)
        self.adversary = adversary
        self.term_names = (
            *("loss", "reconstruction", "kl", "mse"),
            *([perceptual.term] if perceptual else ()),
            *(TERMS if adversary else ()),
        )

    def call(self, inputs, training=None):
        return self.autoencoder(inputs, training=training)

    def loss_terms(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
    ) -> dict[str, Any]:
        """Terms of the logs; `loss` = `reconstruction` + `kl_weight` · `kl` [+ weight · distance].

        Arguments are those of `Trainer.loss_terms`.
        """
        images, reconstruction = x["images"], y_pred["reconstruction"]
        error = ops.mean(self.reconstruction_loss.call(images, reconstruction))
        kl = ops.mean(self.kl_loss.call(y_pred["mean"], y_pred["logvar"]))
        terms = {
            "loss": error + self.kl_weight * kl,
            "reconstruction": error,
            "kl": kl,
            "mse": ops.mean(ops.square(images - reconstruction)),
        }
        if self.perceptual and (self.perceptual.weight or not training):
            distance, weight = self.perceptual.distance, self.perceptual.weight
            terms[distance.term] = ops.mean(distance(reconstruction, images))
            terms["loss"] += weight * terms[distance.term]
        return terms

    def train_step(self, *arguments: Any) -> dict[str, Any]:
        if self.adversary is None:
            return super().train_step(*arguments)
        from latentddpm.training.step.adversarial_step import adversarial_step

        return adversarial_step(self, *arguments)

    def checkpoint_groups(self) -> dict[str, list[Any]]:
        groups = super().checkpoint_groups()
        return {**groups, **self.adversary.variables()} if self.adversary else groups

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Loss for Keras's own step, on backends other than TensorFlow; arguments are Keras's."""
        terms = self.loss_terms(x, y, y_pred, sample_weight, training)
        if not on_tensorflow():
            number = ops.shape(x["images"])[0]
            self.count_terms({k: (v, number) for k, v in terms.items() if k != "loss"})
        return terms["loss"]
