"""Sizes that have to fit each other, judged before Keras is imported and anything is built.

The networks themselves refuse such sizes too; a test compares both.

    norm_groups, num_heads    divide every width that they are used at
    data.resolution           a multiple of the autoencoder's downsample factor, 2^(levels − 1)
    attention_levels          0 … levels − 1

A size that is null is not known yet and passes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from latentddpm.choices import CONDITIONAL, DENOISERS, PREDICTIONS, SAMPLERS
from latentddpm.config import (
    AutoencoderConfig,
    DiffusionData,
    DiffusionTraining,
    DiscriminatorConfig,
    SamplesConfig,
    ScheduleConfig,
    TextConfig,
    UNetConfig,
)
from latentddpm.config.diffusion import OF_KIND
from latentddpm.diffusion.betas import make_betas, with_zero_terminal_snr
from latentddpm.diffusion.options import check_num_steps, check_sampler_of_schedule
from latentddpm.errors import UserError, check_choice

SMALLEST_PERCEPTUAL = 16
"""Side of an image, at least, for VGG16: it halves the side four times."""
WIDEST_DISCRIMINATOR = 8
"""Largest width of the discriminator's layers, in units of its channels."""


def factor_of(channel_multipliers: Sequence[int]) -> int:
    """Downsample factor of a network: pixels or latents per position of its lowest level.

    Args:
        channel_multipliers: one for each level.
    """
    return 2 ** (len(channel_multipliers) - 1)


def check_multiple(key: str, size: int, factor: int, whose: str) -> None:
    """Refuse a side that a factor does not divide.

    Args:
        key: setting of the side, for the message.
        size: the side, in pixels.
        factor: that has to divide it.
        whose: what the factor is, for the message.

    Raises:
        UserError: naming the nearest valid sizes.
    """
    if size % factor:
        low = size // factor * factor
        near = " or ".join(str(side) for side in (low, low + factor) if side)
        raise UserError(
            f"{key} {size} is not a multiple of {factor}, {whose}; nearest valid: {near}"
        )


def check_sides(data: DiffusionData, factor: int) -> None:
    """Refuse a resolution, or a bucket step, that the autoencoder's factor does not divide.

    Args:
        data: the section `data:` of a configuration.
        factor: downsample factor of the autoencoder.

    Raises:
        UserError: naming the nearest valid sizes.
    """
    whose = "the autoencoder's downsample factor"
    for key in ("resolution", "bucket_step")[: 1 + data.aspect_buckets]:
        check_multiple(f"data.{key}", getattr(data, key), factor, whose)


def check_autoencoder(sizes: AutoencoderConfig) -> None:
    """Refuse sizes of an autoencoder that do not fit each other.

    Args:
        sizes: of it.

    Raises:
        UserError: `norm_groups` does not divide a width.
    """
    multipliers = sizes.channel_multipliers or [1]
    widths = [sizes.channels, *(sizes.channels * m for m in multipliers)]
    _check_divides("autoencoder.norm_groups", sizes.norm_groups, widths)


def check_unet(sizes: UNetConfig) -> None:
    """Refuse sizes of a UNet that do not fit each other, as far as its kind takes them.

    Args:
        sizes: of it.

    Raises:
        UserError: `norm_groups` or `num_heads` does not divide a width, an attention level does
            not exist, `num_heads` is a list of another length, or `channels` is odd.
    """
    taken = DENOISERS[sizes.kind]
    if "channels" in taken and sizes.channels % 2:
        near = " or ".join(str(n) for n in (sizes.channels - 1, sizes.channels + 1) if n)
        raise UserError(f"unet.channels: {sizes.channels} is odd; nearest valid: {near}")
    multipliers = sizes.channel_multipliers or [1]
    widths = [sizes.channels * m for m in multipliers]
    if "norm_groups" in taken:
        # Skip connections are concatenated, so the norm of an upward block sees sums of widths;
        # these are multiples of the groups too.
        _check_divides("unet.norm_groups", sizes.norm_groups, [sizes.channels, *widths])
    if "num_heads" not in taken or sizes.channel_multipliers is None:
        return
    count, heads = len(multipliers), sizes.num_heads
    if isinstance(heads, int):
        heads = [heads] * count
    elif len(heads) != count:
        raise UserError(
            f"unet.num_heads: {heads}, expected one number or {count}, one for each level"
        )
    levels = sizes.attention_levels or []
    unknown = sorted(set(levels) - set(range(count)))
    if unknown:
        raise UserError(
            f"unet.attention_levels: {unknown} do not exist; levels are 0 … {count - 1} "
            f"(unet.channel_multipliers has {count})"
        )
    for level in sorted({*levels, count - 1}):
        _check_divides("unet.num_heads", heads[level], [widths[level]])


def check_text(text: TextConfig, kind: str = "unet") -> None:
    """Refuse settings of a text encoder that do not fit each other, or the UNet.

    Args:
        text: its section.
        kind: `unet.kind`.

    Raises:
        UserError: naming the setting.
    """
    if kind not in CONDITIONAL and text.source not in ("auto", "none"):
        raise UserError(
            f"text.source: {text.source!r}, but unet.kind={kind} takes no text; expected 'none', "
            f"or unet.kind={' or '.join(CONDITIONAL)}"
        )
    if text.source == "scratch":
        if not text.trained:
            raise UserError(
                "text.trainable: a text encoder from scratch knows nothing until trained; leave "
                "text.trainable out"
            )
        _check_divides("text.num_heads", text.num_heads, [text.hidden_dim], "text.hidden_dim")
    if text.source in ("clip", "preset") and not text.path:
        raise UserError(f"text.path: needed with text.source={text.source}")


def check_discriminator(sizes: DiscriminatorConfig, resolution: int | None) -> None:
    """Refuse sizes of a discriminator that do not fit each other, or the resolution.

    Args:
        sizes: its section.
        resolution: of the images; None where it is not known yet.

    Raises:
        UserError: naming the setting.
    """
    needed = 4 * 2**sizes.num_layers  # for 2×2 logits
    if resolution is not None and resolution < needed:
        raise UserError(
            f"discriminator.num_layers: {sizes.num_layers} need a data.resolution of at least "
            f"{needed}, got {resolution}; take fewer"
        )
    if sizes.norm == "group":
        for level in range(1, sizes.num_layers + 1):
            width = sizes.channels * min(2**level, WIDEST_DISCRIMINATOR)
            groups = min(sizes.norm_groups, width)
            _check_divides("discriminator.norm_groups", groups, [width])


def check_schedule(
    schedule: ScheduleConfig, samples: SamplesConfig, training: DiffusionTraining
) -> None:
    """Refuse a noise schedule without sense, and a sampler or a recipe that does not fit it.

    Args:
        schedule: its section.
        samples: section of the sample grids.
        training: section of the training.

    Raises:
        UserError: naming the setting.
    """
    one = schedule
    _check_kind(one, training)
    if one.beta_start > one.beta_end:
        raise UserError(
            f"schedule.beta_start: {one.beta_start:g} is above schedule.beta_end {one.beta_end:g}"
        )
    if one.rescale_zero_terminal_snr and one.prediction_type == "epsilon":
        raise UserError(
            "schedule.rescale_zero_terminal_snr: at the last timestep there is only noise, and "
            "schedule.prediction_type=epsilon says nothing about the image there; choose "
            "schedule.prediction_type=v_prediction"
        )
    betas = make_betas(one.beta_schedule, one.beta_start, one.beta_end, one.num_train_timesteps)
    if one.rescale_zero_terminal_snr:
        betas = with_zero_terminal_snr(betas)[:-1]
    if (np.cumprod(1 - betas) < np.finfo("float32").tiny).any():
        raise UserError(
            f"schedule.beta_end: with {one.beta_end:g} over {one.num_train_timesteps} timesteps "
            "no signal is left at the last one; expected smaller betas or fewer timesteps"
        )
    check_choice("samples.sampler", samples.sampler, SAMPLERS)
    try:
        check_sampler_of_schedule(samples.sampler, {}, one.kind)
        check_num_steps(samples.num_steps, one.num_train_timesteps)
    except UserError as error:
        raise UserError(f"samples.{error}") from None


def _check_kind(schedule: ScheduleConfig, training: DiffusionTraining) -> None:
    """Refuse settings that belong to another kind of schedule."""
    kind, prediction = schedule.kind, schedule.prediction_type
    for other, keys in OF_KIND.items():
        for key in keys if other != kind else ():
            default = type(schedule).model_fields[key].default
            if getattr(schedule, key) != default:
                raise UserError(
                    f"schedule.{key}: only schedule.kind={other} has it, and this one is {kind}; "
                    f"leave it out"
                )
    if prediction not in PREDICTIONS[kind]:
        nearest = {"v_prediction": "velocity", "velocity": "v_prediction"}
        raise UserError(
            f"schedule.prediction_type: {prediction!r} is not for schedule.kind={kind}, whose "
            f"network predicts {' or '.join(PREDICTIONS[kind])}; choose "
            f"schedule.prediction_type={nearest.get(prediction, 'velocity')}"
        )
    if kind == "flow" and training.min_snr_gamma:
        raise UserError(
            "training.min_snr_gamma: schedule.kind=flow has no weights of timesteps; leave it "
            "out, or choose training.timestep_sampling=logit_normal"
        )


def _check_divides(key: str, divisor: int, widths: Iterable[int], what: str = "channels") -> None:
    """Refuse a divisor that does not divide every width; the nearest that does is named."""
    widths = sorted(set(widths))
    for width in widths:
        if width % divisor:
            shared = int(np.gcd.reduce(widths))
            valid = [n for n in range(1, shared + 1) if shared % n == 0]
            near = min(valid, key=lambda n: (abs(n - divisor), n))
            raise UserError(
                f"{key}={divisor} does not divide {width} {what}; nearest valid: {near}"
            )
