"""Step of an autoencoder and its discriminator, with two optimizers; TensorFlow.

Let x̂ be the reconstruction, L_rec the reconstruction loss with its perceptual term, L_G the
generator's loss, θ_L the last kernel of the decoder. Both losses reach the autoencoder through x̂
alone, so by the chain rule one backward pass through it is enough for both:

    s_rec = ∂L_rec/∂x̂        s_G = ∂L_G/∂x̂               back through VGG16 and D
    λ     = ‖s_rec · ∂x̂/∂θ_L‖ / (‖s_G · ∂x̂/∂θ_L‖ + δ)    the last layer only
    ∇θ    = (s_rec + w_t w s_G) · ∂x̂/∂θ + ∇θ (w_KL L_KL)    the whole autoencoder

λ belongs to the global batch: the two gradients at the last layer are summed over micro-batches
and replicas before their norms are taken. With several micro-batches (`accumulation_steps`) the
forward pass is therefore computed twice, once for λ and once for ∇θ, and not kept in memory.

The discriminator learns from the same x̂, as a constant. Each of the two gradients is taken for
its own network's variables only, so neither update changes the other's weights. Before
`start_step` the discriminator is not run and its optimizer does not step; its branch of the
`tf.cond` holds no collective operation and no update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from latentddpm.distribution.replicas import all_reduce
from latentddpm.training.step.adversarial import DISCRIMINATOR_TERMS, Adversary, adaptive_weight
from latentddpm.training.step.trainer import dense_gradients
from latentddpm.training.step.update import apply_gradients


@dataclass
class RecordedStep:
    """Recorded forward pass of a micro-batch, with the gradients of both losses at its outputs.

    Losses are summed over the micro-batch and scaled as their optimizer asks.

    Attributes:
        tape: of the whole forward pass.
        last: tape of the decoder's last convolution only, enough for λ.
        outputs: of the autoencoder: reconstruction, mean, logvar.
        pull: ∂(L_rec + w_KL L_KL)/∂outputs, by the outputs' names.
        generator_pull: ∂L_G/∂x̂, (B, H, W, 3).
        discriminator_gradients: of L_D, one for each trainable variable of the discriminator.
        terms: of the logs, scalars by name.
    """

    tape: tf.GradientTape
    last: tf.GradientTape
    outputs: dict[str, tf.Tensor]
    pull: dict[str, tf.Tensor]
    generator_pull: tf.Tensor
    discriminator_gradients: list[tf.Tensor]
    terms: dict[str, tf.Tensor]

    def at_last(self, kernel: keras.Variable) -> list[tf.Tensor]:
        """Gradients of L_rec and of L_G at the decoder's last kernel, both of its shape.

        Args:
            kernel: the decoder's last kernel.
        """
        pulls = self.pull["reconstruction"], self.generator_pull
        end = self.outputs["reconstruction"]
        return [self.last.gradient(end, kernel.value, output_gradients=pull) for pull in pulls]

    def gradients(self, variables: list[keras.Variable], weight: tf.Tensor) -> list[tf.Tensor]:
        """Gradients ∇θ of the whole loss, one for each variable.

        Args:
            variables: θ, the autoencoder's trainable variables.
            weight: w_t · w, scalar.
        """
        pull = dict(self.pull)
        pull["reconstruction"] += weight * self.generator_pull
        return self.tape.gradient(
            self.outputs,
            [variable.value for variable in variables],
            output_gradients=pull,
            unconnected_gradients="zero",
        )


def adversarial_step(trainer: Any, *arguments: Any) -> dict[str, Any]:
    """Update the autoencoder and its discriminator on one batch.

    Args:
        trainer: a compiled `AutoencoderTrainer` with an `adversary`.
        arguments: those of a Keras `train_step`.

    Returns:
        Logs of the step: name → scalar.
    """
    adversary: Adversary = trainer.adversary
    variables = trainer.trainable_variables
    last = trainer.autoencoder.decoder.last_kernel
    active = trainer.optimizer.iterations >= adversary.start_step
    adversary.discriminator.refine()
    recorded: list[RecordedStep] = []

    def record(x: Any, y: Any, sample_weight: Any, number: Any) -> Any:
        recorded[:] = [_record(trainer, x, number, active)]
        sums = recorded[0].at_last(last), recorded[0].discriminator_gradients
        return sums, recorded[0].terms

    (at_last, discriminator_gradients), terms, number = trainer.over_batch(*arguments, record)
    weight = adversary.share(trainer.optimizer.iterations)
    if adversary.adaptive:
        scale = trainer.optimizer.scale_loss(number)
        weight *= adaptive_weight(*(pull / scale for pull in all_reduce(at_last)))

    def gradients(x: Any, y: Any, sample_weight: Any, number: Any) -> Any:
        kept = trainer.accumulation_steps == 1
        step = recorded[0] if kept else _record(trainer, x, number, active)
        return step.gradients(variables, weight * adversary.weight), {}

    sums, _, _ = trainer.over_batch(*arguments, gradients)
    loss = terms["loss"][0] + weight * adversary.weight * terms["generator"][0]
    finite = tf.math.is_finite(loss + terms["discriminator"][0])
    norm, updated = apply_gradients(trainer.optimizer, variables, sums, number, finite)
    discriminator_norm, _ = apply_gradients(
        adversary.optimizer,
        adversary.discriminator.trainable_variables,
        discriminator_gradients,
        number,
        enabled=tf.logical_and(active, updated),
    )
    once = {
        "adaptive_weight": weight,
        "gradient_norm": norm,
        "discriminator_gradient_norm": discriminator_norm,
    }
    once = {name: (value, 1.0) for name, value in once.items()}
    return trainer.report({**terms, "loss": (loss, number), **once}, updated)


def _record(trainer: Any, x: Any, number: tf.Tensor, active: tf.Tensor) -> RecordedStep:
    """Forward pass through the autoencoder, then back from both losses to its outputs."""

    def total(mean: tf.Tensor) -> tf.Tensor:
        """Sum over the micro-batch from a mean over it, scaled by the optimizer's loss scale."""
        return trainer.optimizer.scale_loss(mean * number)

    recorded = tf.GradientTape()
    last = tf.GradientTape(persistent=True, watch_accessed_variables=False)
    with recorded, last:
        last.watch(trainer.autoencoder.decoder.last_kernel.value)
        outputs = trainer(x, training=True)
    with tf.GradientTape() as ends:
        ends.watch(outputs)
        terms = trainer.loss_terms(x, None, outputs, None, True)
        loss = total(terms["loss"])
    pull = ends.gradient(loss, outputs, unconnected_gradients="zero")

    adversary: Adversary = trainer.adversary
    images, reconstruction = x["images"], outputs["reconstruction"]
    generator_pull, gradients, values = tf.cond(
        active,
        lambda: _against(adversary, images, reconstruction, total, number),
        lambda: (
            tf.zeros_like(reconstruction),
            [tf.zeros(v.shape, v.dtype) for v in adversary.discriminator.trainable_variables],
            [tf.zeros(()) for _ in DISCRIMINATOR_TERMS],
        ),
    )
    terms = {**terms, **dict(zip(DISCRIMINATOR_TERMS, values, strict=True))}
    return RecordedStep(recorded, last, outputs, pull, generator_pull, gradients, terms)


def _against(
    adversary: Adversary,
    images: tf.Tensor,
    reconstruction: tf.Tensor,
    total: Callable[[tf.Tensor], tf.Tensor],
    number: tf.Tensor,
) -> tuple[tf.Tensor, list[tf.Tensor], list[tf.Tensor]]:
    """Gradients ∂L_G/∂x̂ and ∂L_D of the discriminator's variables, and `DISCRIMINATOR_TERMS`.

    The discriminator sees each image once: both losses share its logits.
    """
    network = adversary.discriminator
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(reconstruction)
        fake = network(reconstruction, training=True)
        generator = tf.reduce_mean(adversary.generator_loss(fake))
        generator_total = total(generator)
        if adversary.r1_weight:
            real, penalty = _slope_penalty(network, images)
        else:
            real, penalty = network(images, training=True), 0.0
        discriminator = tf.reduce_mean(adversary.discriminator_loss(real, fake))
        loss = discriminator + adversary.r1_weight * penalty
        discriminator_total = adversary.optimizer.scale_loss(loss * number)
    return (
        tape.gradient(generator_total, reconstruction),
        dense_gradients(tape, discriminator_total, network.trainable_variables),
        [generator, discriminator, tf.reduce_mean(real), tf.reduce_mean(fake)],
    )


def _slope_penalty(network: keras.Model, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Logits of real images, and ½ E‖∇_x D(x)‖²."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        logits = network(images, training=True)
        # An image's logits depend on that image only, so the sum's gradient holds each image's.
        judgement = tf.reduce_sum(tf.reduce_mean(logits, axis=(1, 2, 3)))
    slopes = tf.square(tape.gradient(judgement, images))
    return logits, 0.5 * tf.reduce_mean(tf.reduce_sum(slopes, axis=(1, 2, 3)))
