"""Classifier-free guidance (CFG): a denoiser that wraps a denoiser.

CFG (Ho & Salimans 2022, eq. 6) moves the prediction away from the one without the prompt, by the
guidance scale s = 1 + w, with the w of the paper:

    ε̃ = ε(x_t, ∅) + s · (ε(x_t, c) − ε(x_t, ∅))

s = 0 ignores the prompt, s = 1 is the conditional prediction itself, s > 1 follows the prompt more
closely, with less variety. The formula is linear, so it is the same for predictions of ε, of v and
of x0 at a given x_t.

A large s also gives predictions larger than those the network was trained for. Images become
over-exposed, most of all with zero terminal SNR. Rescaling by a share φ gives each example's
prediction the standard deviation of its conditional prediction (Lin 2023, §3.4, eq. 15, 16):

    ε̃ ← φ · (std(ε(x_t, c)) / std(ε̃)) · ε̃ + (1 − φ) · ε̃
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from latentddpm.diffusion.options import check_guidance_rescale, check_guidance_scale
from latentddpm.errors import UserError
from latentddpm.utils import arrays
from latentddpm.utils.arrays import Array

Context = Array | Mapping[str, Array]
"""What a network is told: one array (B, …), or a mapping from its inputs to theirs."""


class ClassifierFreeGuidance:
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
        UserError: shapes or inputs that do not match, a negative or non-finite scale, or a rescale
            outside 0 .. 1.

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
        denoiser: Callable[[Array, Array, Context], Array],
        context: Context,
        null_context: Context,
        guidance_scale: float,
        guidance_rescale: float = 0.0,
    ) -> None:
        check_guidance_scale(guidance_scale)
        check_guidance_rescale(guidance_rescale)
        self.denoiser = denoiser
        self.guidance_scale = float(guidance_scale)
        self.guidance_rescale = float(guidance_rescale)
        self.batch_size = _batch_size(context)
        null_context = _like_context(null_context, context)
        halves = [context] if self.guidance_scale == 1 else [null_context, context]
        self.context = _concatenated(halves)  # (B, …) or (2B, …)

    def __call__(self, noisy_latents: Array, timesteps: Array) -> Array:
        if noisy_latents.shape[0] != self.batch_size:
            raise UserError(
                f"noisy_latents: expected the batch size of context, {self.batch_size}, "
                f"got {noisy_latents.shape[0]}"
            )
        if self.guidance_scale == 1:
            prediction = self.denoiser(noisy_latents, timesteps, self.context)
            return arrays.cast(prediction, "float32")
        prediction = self.denoiser(
            arrays.concatenate([noisy_latents, noisy_latents]),  # (2B, h, w, c)
            arrays.concatenate([timesteps, timesteps]),  # (2B,)
            self.context,
        )
        unconditional, conditional = arrays.split(arrays.cast(prediction, "float32"), 2)
        channels = noisy_latents.shape[-1]
        variance = conditional[..., channels:]  # a learned one is not guided
        unconditional, conditional = unconditional[..., :channels], conditional[..., :channels]
        guided = unconditional + self.guidance_scale * (conditional - unconditional)
        if self.guidance_rescale != 0:
            guided = _rescale(guided, conditional, self.guidance_rescale)
        return arrays.concatenate([guided, variance], axis=-1)


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
    if isinstance(context, Mapping):
        if not isinstance(null_context, Mapping) or {*null_context} != {*context}:
            found = [*null_context] if isinstance(null_context, Mapping) else "an array"
            raise UserError(f"null_context: expected the inputs {[*context]}, got {found}")
        return {
            name: _like_values(null_context[name], values, f"[{name!r}]")
            for name, values in context.items()
        }
    return _like_values(null_context, context)


def _like_values(null_values: Array, values: Array, which: str = "") -> Array:
    """`null_values`, broadcast to the shape of `values`."""
    shape, null_shape = tuple(values.shape), tuple(null_values.shape)
    if null_shape not in (shape, (1, *shape[1:])):
        raise UserError(
            f"null_context{which}: expected the shape of context{which}, {shape}, or "
            f"{(1, *shape[1:])}, got {null_shape}"
        )
    return arrays.broadcast_to(null_values, shape)


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
