"""Trainer of a consistency model: distillation of a denoiser into one that needs few steps.

With the student's weights θ, their moving average θ⁻ and the teacher's weights φ, for an example
at a timestep t of the solver and the one below it, t' = max(t − k, 0):

    x      = s x0 + n ε                                      noisy latents, drawn with the data
    ε̂      = ε_φ(x, t, ∅) + w (ε_φ(x, t, c) − ε_φ(x, t, ∅))              teacher with guidance w
    x'     = s' x̂0(ε̂) + n' ε̂                                 one step of DDIM, the solver
    ℓ      = d(f_θ(x, t, c), f_θ⁻(x', t', c))                f as in `samplers.lcm`
    d(a, b) = √(‖a − b‖²/D + h²) − h                         pseudo-Huber, of D numbers

(Luo 2023, algorithm 1: latent consistency distillation with skipping steps). At t' = 0 the
boundary condition makes f_θ⁻ the solver's own result. From there it spreads to more noise, until f
gives everywhere the end of the teacher's guided path. d is that of Song & Dhariwal 2023 (eq. 7)
with c = h √D, divided by √D. So guidance is learned, and is not asked for when sampling. Unlike
the paper's student this one is not told w; where w varies it learns the mean over it, as LCM-LoRA
does (Luo 2023b).

Three networks of one shape are one network called with three sets of weights: θ; θ⁻, which is the
EMA of the optimizer that every run keeps, validates and saves; φ, what θ was at the start. With a
LoRA these are the LoRA's matrices alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.diffusion.samplers.lcm import boundary_scalings
from latentddpm.models.denoisers.base import Denoiser
from latentddpm.models.functional import freeze
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.training.step.trainer import Term, on_tensorflow

Inputs = dict[str, Any]
"""Inputs of the UNet beside noisy latents and timesteps, (B, …) each."""


class ConsistencyTrainer(DenoisingTrainer):
    """Trainer that distils a UNet into a consistency model; TensorFlow only.

    `fit` takes the batches of `data.examples.diffusion_examples` with `timesteps`, those of the
    solver, and for guidance with `guidance_scales`. Their target is not used. The logs are those
    of `DenoisingTrainer`, of d in place of the squared error.

    Args:
        unet: the finished model's. Its trainable weights are the student's; what they are now is
            the teacher.
        schedule: its noise schedule.
        stride: k, timesteps between two of the solver.
        huber: h, errors below which d is a square, in units of the latents.
        text_encoder: of the model, which stays as it is; None for an unconditional UNet.
        null_token_ids: tokens of the empty prompt, (L,); with a text encoder.
        null_inputs: input of the UNet for a condition → what it is where the condition is not
            told, (1, …); see `Conditions.untold`. Inputs that are not here are the same in both
            halves of guidance.

    Call arguments:
        inputs: `{"noisy_latents": (B, h, w, c), "timesteps": (B,)}`, with a text encoder also
            `"token_ids"`, (B, L), for guidance `"guidance_scale"`, (B,), and the inputs of the
            UNet's conditions.

    Returns:
        f_θ(x, t) and f_θ⁻(x', t'), two of (B, h, w, c); no gradient flows into the second.

    Raises:
        ValueError: see `DenoisingTrainer`; another backend; a conditional UNet without text
            encoder; or no tokens of the empty prompt.

    Example:
        ```python
        trainer = ConsistencyTrainer(model.unet, model.schedule, stride=20)
        trainer.compile(keras.optimizers.AdamW(1e-4, use_ema=True, ema_momentum=0.95))
        trainer.fit(batches, steps_per_epoch=1000)
        ```
    """

    def __init__(
        self,
        unet: Denoiser,
        schedule: ForwardProcess,
        stride: int,
        huber: float = 1e-3,
        text_encoder: TextEncoder | None = None,
        null_token_ids: Sequence[int] | None = None,
        null_inputs: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        if not on_tensorflow():
            raise ValueError("distillation: needs the TensorFlow backend of Keras")
        if (text_encoder is None) != (unet.context_dim is None):
            raise ValueError("text_encoder: expected one for a conditional UNet, and for no other")
        if (text_encoder is None) != (null_token_ids is None):
            raise ValueError("null_token_ids: expected with a text encoder, and only then")
        if text_encoder is not None:
            freeze(text_encoder)
        super().__init__(unet, schedule, text_encoder, name="consistency_trainer")
        self.stride, self.huber = stride, huber
        self.null_token_ids = None if null_token_ids is None else np.array(null_token_ids)[None]
        self.null_inputs = dict(null_inputs or {})
        self.student = list(unet.trainable_variables)
        self.teacher = [
            self.add_weight(
                shape=variable.shape,
                initializer=lambda shape, dtype=None, value=variable.value: ops.cast(value, dtype),
                dtype=variable.dtype,
                trainable=False,
                name=f"teacher_{number}",
            )
            for number, variable in enumerate(self.student)
        ]
        for variable in self.teacher:  # not in checkpoints: it is what a run starts from
            variable.frozen = True

    def call(self, inputs, training=None):
        inputs = {name: ops.convert_to_tensor(value) for name, value in inputs.items()}
        scale = inputs.pop("guidance_scale", None)
        latents, timesteps = inputs.pop("noisy_latents"), inputs.pop("timesteps")
        told, untold = self._told(inputs)
        earlier = ops.maximum(timesteps - self.stride, 0)
        estimate = self._x0(latents, timesteps, told, training)
        with self._weights(self.teacher):
            prediction = self._guided(latents, timesteps, told, untold, scale)
        x0 = self.schedule.predict_x0(prediction, latents, timesteps)
        epsilon = self.schedule.predict_noise(prediction, latents, timesteps)
        solved = self.schedule.add_noise(x0, epsilon, earlier)  # the step of DDIM
        with self._weights(self._averages()):
            target = self._x0(solved, earlier, told, training=False)
        return estimate, ops.stop_gradient(target)

    def compile(self, optimizer: Any = "adamw", **kwargs: Any) -> None:
        """Set up training; arguments as of `Trainer.compile`, without a loss."""
        super().compile(optimizer, loss=None, **kwargs)

    def loss_terms(
        self, x: Any, y: Any, y_pred: Any, sample_weight: Any, training: bool
    ) -> dict[str, Term]:
        """Terms of the logs: the mean of d, as `loss`, and that of each quarter of the timesteps.

        Arguments are those of `Trainer.loss_terms`; the target and its weight play no part.
        """
        estimate, target = y_pred
        squares = ops.square(estimate - target)
        mean = ops.mean(squares, axis=tuple(range(1, len(squares.shape))))
        errors = ops.sqrt(mean + self.huber**2) - self.huber
        return {"loss": ops.mean(errors), **self.quartile_terms(x, errors)}

    def _told(self, inputs: Mapping[str, Any]) -> tuple[Inputs, Inputs]:
        """Inputs beside noisy latents and timesteps, (B, …) each: of the examples, and of none."""
        told, untold = dict(inputs), dict(inputs)
        if self.text_encoder is not None:
            token_ids = told.pop("token_ids")
            del untold["token_ids"]
            null = ops.cast(self.null_token_ids, token_ids.dtype)
            both = ops.concatenate([token_ids, null])
            states = self.text_encoder({"token_ids": both}, training=False)
            told["context"], untold["context"] = states[:-1], states[-1:]
        untold |= {name: ops.convert_to_tensor(one) for name, one in self.null_inputs.items()}
        like = {name: ops.broadcast_to(untold[name], ops.shape(one)) for name, one in told.items()}
        return told, like

    def _predict(self, latents: Any, timesteps: Any, told: Inputs, training: bool) -> Any:
        inputs = {"noisy_latents": latents, "timesteps": timesteps, **told}
        return self.unet(inputs, training=training)

    def _guided(
        self, latents: Any, timesteps: Any, told: Inputs, untold: Inputs, scale: Any
    ) -> Any:
        """Prediction with guidance of each example's own scale, where there is one."""
        if scale is None:
            return self._predict(latents, timesteps, told, training=False)
        unconditional, conditional = ops.split(
            self._predict(
                ops.concatenate([latents, latents]),
                ops.concatenate([timesteps, timesteps]),
                {name: ops.concatenate([untold[name], one]) for name, one in told.items()},
                training=False,
            ),
            2,
        )
        return unconditional + _like(scale, latents) * (conditional - unconditional)

    def _x0(self, latents: Any, timesteps: Any, told: Inputs, training: bool) -> Any:
        """f(x, t): the estimate of x0, at t = 0 x itself."""
        prediction = self._predict(latents, timesteps, told, training)
        skip, out = boundary_scalings(ops.cast(timesteps, "float32"))
        x0 = self.schedule.predict_x0(prediction, latents, timesteps)
        return _like(skip, latents) * latents + _like(out, latents) * x0

    def _weights(self, values: Sequence[Any]) -> keras.StatelessScope:
        """Scope inside which the network has other weights than the student's."""
        return keras.StatelessScope(list(zip(self.student, values, strict=True)))

    def _averages(self) -> list[Any]:
        """Weights θ⁻: the EMA, or before the first step, and without one, the student's."""
        from latentddpm.training.step.optimizer import moving_averages

        own = [variable.value for variable in self.student]
        if not self.compiled or not self.optimizer.built:
            return own
        return moving_averages(self.optimizer, own)


def _like(values: Any, latents: Any) -> Any:
    """Numbers (B,) in the rank of latents, (B, 1, …)."""
    return ops.reshape(values, (-1, *[1] * (len(latents.shape) - 1)))
