"""Guidance: denoisers that wrap a denoiser.

Classifier-free guidance (CFG; Ho & Salimans 2022, eq. 6) moves the prediction away from the one
without the prompt, by the guidance scale s = 1 + w, with the w of the paper:

    ε̃ = ε(x_t, ∅) + s · (ε(x_t, c) − ε(x_t, ∅))

s = 0 ignores the prompt, s = 1 is the conditional prediction itself, s > 1 follows the prompt more
closely, with less variety. The formula is linear, so it is the same for predictions of ε, of v and
of x0 at a given x_t.

Several conditions can have scales of their own. Stage 0 tells nothing, stage k tells more than
stage k − 1, and ε_k is the prediction of stage k (Brooks 2023, eq. 3, is that of two conditions):

    ε̃ = ε_0 + Σ_k s_k · (ε_k − ε_{k−1})

A large s also gives predictions larger than those the network was trained for. Images become
over-exposed, most of all with zero terminal SNR. Rescaling by a share φ gives each example's
prediction the standard deviation of its conditional prediction (Lin 2023, §3.4, eq. 15, 16):

    ε̃ ← φ · (std(ε(x_t, c)) / std(ε̃)) · ε̃ + (1 − φ) · ε̃

Autoguidance (Karras 2024, §4) moves away from a weaker network that is told the
same, which is of use without any condition, too:

    ε̃ = ε_weaker + w · (ε − ε_weaker)

Guidance helps at some noise levels and harms at others: an interval of timesteps limits it
(Kynkäänniemi 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from latentddpm.diffusion.options import (
    check_guidance_interval,
    check_guidance_rescale,
    check_guidance_scale,
)
from latentddpm.diffusion.samplers.base import Denoiser
from latentddpm.errors import UserError
from latentddpm.utils import arrays
from latentddpm.utils.arrays import Array

Context = Array | Mapping[str, Array]
"""Inputs that a network is told: one array (B, …), or a mapping from its inputs to theirs."""

Network = Callable[[Array, Array, Context], Array]  # (noisy_latents, timesteps, context)


class GuidanceChain:
    """Guidance with a scale for each condition: a `denoiser(noisy_latents, timesteps)`.

    All stages are one call of the network, with a batch of a multiple of B. A stage between two
    equal scales cancels out and is not computed, nor is stage 0 where s_1 is 1: with all scales 1
    the batch is B.

    Args:
        denoiser: `denoiser(noisy_latents, timesteps, context) -> prediction`, the network. Its
            context is an array or a mapping, as those of the stages.
        stages: what the network is told, from nothing to everything: arrays (B, …) each, or
            mappings of the same inputs. A first dimension of 1, but for the last stage, counts
            for the whole batch.
        scales: s_1 … of the stages after the first, at least 0 each.
        guidance_rescale: φ, from 0 (none) to 1, towards the deviation of the last stage.

    Call arguments:
        noisy_latents: (B, h, w, c).
        timesteps: int32 or float32 (B,).

    Returns:
        The guided prediction, float32 (B, h, w, c). The channels of a learned variance, which
        follow it, are those of the last stage.

    Raises:
        UserError: shapes, inputs or numbers of them that do not match, a negative or non-finite
            scale, or a rescale outside 0 .. 1.

    Example:
        >>> def unet(noisy_latents, timesteps, told):
        ...     return noisy_latents + told["picture"] + told["text"]
        >>> one = np.ones((2, 1, 1, 1), "float32")
        >>> nothing = {"picture": 0 * one, "text": 0 * one}
        >>> picture, both = {**nothing, "picture": one}, {"picture": one, "text": one}
        >>> guided = GuidanceChain(unet, [nothing, picture, both], [1.5, 7.5])
        >>> float(guided(np.zeros((2, 8, 8, 4), "float32"), np.array([999, 999]))[0, 0, 0, 0])
        9.0
    """

    def __init__(
        self,
        denoiser: Network,
        stages: Sequence[Context],
        scales: Sequence[float],
        guidance_rescale: float = 0.0,
    ) -> None:
        if len(scales) != len(stages) - 1:
            raise UserError(
                f"scales: {len(scales)} for {len(stages)} stages; expected one for each after the "
                "first"
            )
        for scale in scales:
            check_guidance_scale(scale)
        check_guidance_rescale(guidance_rescale)
        self.denoiser = denoiser
        self.guidance_rescale = float(guidance_rescale)
        self.batch_size = _batch_size(stages[-1])
        stages = [_like_context(stage, stages[-1]) for stage in stages]
        own = [1.0, *map(float, scales)]
        kept = [k for k in range(len(own)) if own[k : k + 1] != own[k + 1 : k + 2]]
        self.scales = tuple(own[k] for k in kept)  # the first is 1
        self.context = _concatenated([stages[k] for k in kept])  # (B · number of scales, …)

    def __call__(self, noisy_latents: Array, timesteps: Array) -> Array:
        if noisy_latents.shape[0] != self.batch_size:
            raise UserError(
                f"noisy_latents: expected the batch size of context, {self.batch_size}, "
                f"got {noisy_latents.shape[0]}"
            )
        number = len(self.scales)
        if number == 1:
            prediction = self.denoiser(noisy_latents, timesteps, self.context)
            return arrays.cast(prediction, "float32")
        prediction = self.denoiser(
            arrays.concatenate([noisy_latents] * number),
            arrays.concatenate([timesteps] * number),
            self.context,
        )
        prediction, variance = _guidable(prediction, noisy_latents)
        stages = arrays.split(prediction, number)
        guided = stages[0]
        for scale, before, stage in zip(self.scales[1:], stages, stages[1:], strict=False):
            guided = guided + scale * (stage - before)
        if self.guidance_rescale != 0:
            guided = _rescale(guided, stages[-1], self.guidance_rescale)
        return arrays.concatenate([guided, variance[-self.batch_size :]], axis=-1)


class ClassifierFreeGuidance(GuidanceChain):
    """Guidance without a classifier: a `denoiser(noisy_latents, timesteps)` for samplers.

    One call of the network with a batch of 2B gives the conditional and the unconditional
    prediction. With a guidance scale of 1 the batch is B, at no extra cost.

    A network that is told more than a text takes mappings, from the name of an input to its
    values: `{"context": (B, L, d), "digit": (B, 10)}`.

    Args:
        denoiser: `denoiser(noisy_latents, timesteps, context) -> prediction`, the network. Its
            context is an array or a mapping, as given here.
        context: text encodings of the prompts, (B, L, d); or a mapping of inputs, (B, …) each.
        null_context: text encodings of the empty or negative prompts, (B, L, d), or (1, L, d) for
            the whole batch; or a mapping of the same inputs, each (B, …) or (1, …).
        guidance_scale: s, at least 0; 1 is no guidance.
        guidance_rescale: φ, from 0 (none) to 1; Lin 2023 recommends 0.7.

    Call arguments:
        noisy_latents: (B, h, w, c).
        timesteps: int32 or float32 (B,).

    Returns:
        The guided prediction, float32 (B, h, w, c).

    Raises:
        UserError: see `GuidanceChain`.

    Example:
        >>> def unet(noisy_latents, timesteps, context):
        ...     return noisy_latents * keras.ops.mean(context, axis=(1, 2))[:, None, None, None]
        >>> context = np.ones((1, 77, 32), "float32")
        >>> guided = latentddpm.ClassifierFreeGuidance(unet, context, 0 * context, 7.5)
        >>> prediction = guided(np.ones((1, 8, 8, 4), "float32"), np.array([999]))
        >>> float(prediction[0, 0, 0, 0])
        7.5
    """

    def __init__(
        self,
        denoiser: Network,
        context: Context,
        null_context: Context,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
    ) -> None:
        super().__init__(denoiser, [null_context, context], [guidance_scale], guidance_rescale)
        self.guidance_scale = float(guidance_scale)


class AutoGuidance:
    """Guidance away from a weaker denoiser: a `denoiser(noisy_latents, timesteps)`.

    Both are told the same. A weaker one is a smaller network, or the same at an earlier step.
    With a scale of 1 it is not called.

    Args:
        denoiser: `denoiser(noisy_latents, timesteps) -> prediction`, which may be guided itself.
        weaker: the same; its prediction has to be of the same kind, at the same levels.
        scale: w, at least 0; 1 is no guidance.

    Call arguments:
        noisy_latents: (B, h, w, c).
        timesteps: int32 or float32 (B,).

    Returns:
        The guided prediction, float32 (B, h, w, c), and a learned variance of `denoiser` alone.

    Raises:
        UserError: a negative or non-finite scale.

    Example:
        >>> guided = AutoGuidance(lambda x, t: 3 * x, lambda x, t: 2 * x, 2.0)
        >>> float(guided(np.ones((1, 8, 8, 4), "float32"), np.array([999]))[0, 0, 0, 0])
        4.0
    """

    def __init__(self, denoiser: Denoiser, weaker: Denoiser, scale: float) -> None:
        check_guidance_scale(scale, "autoguidance_scale")
        self.denoiser, self.weaker, self.scale = denoiser, weaker, float(scale)

    def __call__(self, noisy_latents: Array, timesteps: Array) -> Array:
        prediction = self.denoiser(noisy_latents, timesteps)
        if self.scale == 1:
            return arrays.cast(prediction, "float32")
        strong, variance = _guidable(prediction, noisy_latents)
        weak, _ = _guidable(self.weaker(noisy_latents, timesteps), noisy_latents)
        weak = arrays.like(weak, strong)
        return arrays.concatenate([weak + self.scale * (strong - weak), variance], axis=-1)


class GuidanceInterval:
    """Guidance of some timesteps alone: a `denoiser(noisy_latents, timesteps)`.

    A call is of the one denoiser or of the other; only a batch with timesteps inside and outside
    calls both.

    Args:
        guided: `denoiser(noisy_latents, timesteps) -> prediction` inside of the interval.
        plain: the same outside of it.
        interval: (lowest, highest) t / T, both included: 0 is clean and 1 pure noise.
        num_train_timesteps: T.

    Call arguments:
        noisy_latents: (B, h, w, c).
        timesteps: int32 or float32 (B,), whose values are known.

    Returns:
        The prediction, float32 (B, h, w, c).

    Raises:
        UserError: an interval that is none, or reaches outside of 0 .. 1.

    Example:
        >>> denoiser = GuidanceInterval(lambda x, t: 2 * x, lambda x, t: x, (0.2, 0.8), 1000)
        >>> one = np.ones((1, 8, 8, 4), "float32")
        >>> [float(denoiser(one, np.array([t]))[0, 0, 0, 0]) for t in (999, 800, 200, 199)]
        [1.0, 2.0, 2.0, 1.0]
    """

    def __init__(
        self,
        guided: Denoiser,
        plain: Denoiser,
        interval: Sequence[float],
        num_train_timesteps: int,
    ) -> None:
        self.interval = tuple(check_guidance_interval(interval))
        self.guided, self.plain = guided, plain
        self.num_train_timesteps = num_train_timesteps

    def __call__(self, noisy_latents: Array, timesteps: Array) -> Array:
        shares = np.asarray(timesteps, "float64") / self.num_train_timesteps
        inside = (shares >= self.interval[0]) & (shares <= self.interval[1])
        wanted = [self.guided] * bool(inside.any()) + [self.plain] * (not inside.all())
        predictions = [arrays.cast(one(noisy_latents, timesteps), "float32") for one in wanted]
        if len(predictions) == 1:
            return predictions[0]
        return arrays.where(
            inside.reshape(-1, *[1] * (len(noisy_latents.shape) - 1)), *predictions
        )


def _guidable(prediction: Array, noisy_latents: Array) -> tuple[Array, Array]:
    """Prediction in float32, and the channels of a learned variance, which is not guided."""
    prediction, channels = arrays.cast(prediction, "float32"), noisy_latents.shape[-1]
    return prediction[..., :channels], prediction[..., channels:]


def _batch_size(context: Context) -> int:
    """B of an array (B, …), or of a mapping of inputs that all have it."""
    if not isinstance(context, Mapping):
        return context.shape[0]
    sizes = {name: values.shape[0] for name, values in context.items()}
    if len(set(sizes.values())) != 1:
        raise UserError(f"context: expected inputs of one batch size, got {sizes}")
    return next(iter(sizes.values()))


def _like_context(null_context: Context, context: Context) -> Context:
    """`null_context`, broadcast to the shapes of `context`."""
    if not isinstance(context, Mapping):
        return _like_values(null_context, context)
    if not isinstance(null_context, Mapping) or {*null_context} != {*context}:
        found = [*null_context] if isinstance(null_context, Mapping) else "an array"
        raise UserError(f"null_context: expected the inputs {[*context]}, got {found}")
    return {
        name: _like_values(null_context[name], values, f"[{name!r}]")
        for name, values in context.items()
    }


def _like_values(null_values: Array, values: Array, which: str = "") -> Array:
    """`null_values`, broadcast to the shape of `values`."""
    shape, null_shape = tuple(values.shape), tuple(null_values.shape)
    if null_shape not in (shape, (1, *shape[1:])):
        raise UserError(
            f"null_context{which}: expected the shape of context{which}, {shape}, or "
            f"{(1, *shape[1:])}, got {null_shape}"
        )
    return null_values if null_shape == shape else arrays.broadcast_to(null_values, shape)


def _concatenated(contexts: Sequence[Context]) -> Context:
    """One context of a batch in which those given follow each other."""
    first = contexts[0]
    if len(contexts) == 1:
        return first
    if isinstance(first, Mapping):
        return {name: arrays.concatenate([one[name] for one in contexts]) for name in first}
    return arrays.concatenate(list(contexts))


def _rescale(guided: Array, conditional: Array, share: float) -> Array:
    """`guided`, rescaled by `share` to the deviation of `conditional` (Lin 2023, eq. 15, 16)."""
    axes = tuple(range(1, len(guided.shape)))
    wanted = arrays.std(conditional, axis=axes, keepdims=True)
    found = arrays.std(guided, axis=axes, keepdims=True)
    # A constant prediction (the zeros of an untrained network) stays as it is.
    ratio = arrays.where(found > 0, wanted / arrays.where(found > 0, found, 1.0), 1.0)
    return (share * ratio + (1 - share)) * guided
