"""Adversarial loss of a discriminator D and of the decoder that it is trained against.

With logits D(·) of real images x and reconstructions x̂, averaged over patches:

    hinge      L_D = ½ E[max(0, 1 − D(x)) + max(0, 1 + D(x̂))]      L_G = −E[D(x̂)]
    vanilla    L_D = ½ E[softplus(−D(x)) + softplus(D(x̂))]         L_G = E[softplus(−D(x̂))]

(Lim & Ye 2017; Goodfellow et al. 2014, the generator's non-saturating loss). The weight of L_G is
adapted at the last layer θ_L of the decoder (Esser et al. 2021, eq. 7):

    λ = ‖∇_{θ_L} L_rec‖ / (‖∇_{θ_L} L_G‖ + δ),   clipped to [0, 10⁴],   δ = 10⁻⁴

so that both losses have gradients of the same norm there, whatever the scale of the logits. The
gradient of an untrained discriminator is random, and λ makes it just as large. Therefore the
weight rises over n = `warmup_steps` steps, from step t₀ = `start_step` on:

    w_t = λ · min(1, (t − t₀ + 1) / n)                                  0 before t₀

R1 stabilizes a discriminator whose logits diverge (Mescheder et al. 2018): L_D gains the term
γ/2 · E‖∇_x D(x)‖², with D(x) the mean logit of an image, on real images only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
from keras import ops

from latentddpm.errors import check_choice
from latentddpm.models.discriminator import PatchDiscriminator
from latentddpm.training.step.trainer import checkpoint_variables, scaling_optimizer

LOSSES = ("hinge", "vanilla")
DISCRIMINATOR_TERMS = ("generator", "discriminator", "logits_real", "logits_fake")
TERMS = (*DISCRIMINATOR_TERMS, "adaptive_weight", "discriminator_gradient_norm")
"""Terms of the logs beside the autoencoder's: L_G, L_D without R1, mean logits, w_t, ‖∇L_D‖."""

DELTA = 1e-4
MAX_WEIGHT = 1e4


@dataclass
class Adversary:
    """Discriminator with its optimizer and its loss; an argument of `AutoencoderTrainer`.

    It is no Keras layer: a trainer that holds one neither trains the discriminator's weights with
    the autoencoder nor saves them in its archive.

    Attributes:
        discriminator: network that tells reconstructions from images.
        optimizer: of the discriminator, a Keras optimizer or its name.
        weight: w ≥ 0, a constant factor of the generator's loss beside w_t.
        loss: "hinge" or "vanilla".
        start_step: t₀ ≥ 0, the first step of the autoencoder's optimizer with an adversary.
        warmup_steps: n ≥ 0, steps over which w_t rises; 0 for none.
        adaptive: multiply by λ; False sets λ = 1.
        r1_weight: γ ≥ 0; 0 for no R1.

    Raises:
        UserError: an unknown loss.
        ValueError: a negative number.

    Example:
        >>> discriminator = latentddpm.PatchDiscriminator(channels=8, num_layers=1, norm_groups=4)
        >>> adversary = latentddpm.Adversary(discriminator, keras.optimizers.Adam(1e-4), 0.2)
        >>> autoencoder = latentddpm.Autoencoder(
        ...     8, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=4
        ... )
        >>> trainer = latentddpm.AutoencoderTrainer(autoencoder, adversary=adversary)
        >>> trainer.compile(keras.optimizers.Adam(1e-4))  # and `fit`, as without
    """

    discriminator: PatchDiscriminator
    optimizer: keras.optimizers.Optimizer | str = "adam"
    weight: float = 0.5
    loss: str = "hinge"
    start_step: int = 0
    warmup_steps: int = 0
    adaptive: bool = True
    r1_weight: float = 0.0

    def __post_init__(self) -> None:
        check_choice("loss", self.loss, LOSSES)
        for name in ("weight", "start_step", "warmup_steps", "r1_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)}, expected 0 or more")
        self.optimizer = scaling_optimizer(self.optimizer, self.discriminator)
        self.optimizer.build(self.discriminator.trainable_variables)

    def variables(self) -> dict[str, list[Any]]:
        """Variables of the discriminator and of its optimizer, by group of a checkpoint."""
        return {
            "discriminator": self.discriminator.variables,
            "discriminator_optimizer": checkpoint_variables(self.optimizer),
        }

    def share(self, step: Any) -> Any:
        """Share w_t / λ of the generator's loss, in [0, 1].

        Args:
            step: of the autoencoder's optimizer, an integer scalar.
        """
        played = ops.cast(step - self.start_step + 1, "float32")
        return ops.clip(played / max(self.warmup_steps, 1), 0.0, 1.0)

    def generator_loss(self, fake_logits: Any) -> Any:
        """Generator's loss L_G of each image.

        Args:
            fake_logits: of reconstructions, (B, h, w, 1).

        Returns:
            (B,).
        """
        if self.loss == "hinge":
            return -_over_patches(fake_logits)
        return _over_patches(ops.softplus(-fake_logits))

    def discriminator_loss(self, real_logits: Any, fake_logits: Any) -> Any:
        """Discriminator's loss L_D of each pair, without R1.

        Args:
            real_logits: of images, (B, h, w, 1).
            fake_logits: of reconstructions, (B, h, w, 1).

        Returns:
            (B,).
        """
        if self.loss == "hinge":
            real, fake = ops.relu(1 - real_logits), ops.relu(1 + fake_logits)
        else:
            real, fake = ops.softplus(-real_logits), ops.softplus(fake_logits)
        return 0.5 * (_over_patches(real) + _over_patches(fake))


def adaptive_weight(reconstruction_gradient: Any, generator_gradient: Any) -> Any:
    """Weight λ of the generator's loss, a scalar in [0, `MAX_WEIGHT`].

    Args:
        reconstruction_gradient, generator_gradient: of L_rec and of L_G at the decoder's last
            kernel, over the whole global batch; both of the kernel's shape.
    """
    ratio = _norm(reconstruction_gradient) / (_norm(generator_gradient) + DELTA)
    return ops.clip(ratio, 0.0, MAX_WEIGHT)


def _norm(gradient: Any) -> Any:
    return ops.sqrt(ops.sum(ops.square(gradient)))


def _over_patches(values: Any) -> Any:
    return ops.mean(values, axis=(1, 2, 3))
