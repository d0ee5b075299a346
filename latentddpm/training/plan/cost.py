"""Cost of a run, estimated before it starts: time and memory, for plans that are far too large.

    time     3 · 2 · multiply-adds of an image · images / operations per second
    memory   feature maps that the backward pass needs, of the examples held at a time

A backward pass costs about twice a forward pass. The multiply-adds are those of the convolutions
and of attention, within about a third of the real number; the speed is that of a matrix product,
of which a network reaches a part. That is enough to tell hours from months. On an accelerator
only the first steps tell.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from latentddpm.config import AutoencoderConfig, AutoencoderRun, DiffusionRun, UNetConfig
from latentddpm.training.plan.resolve import LARGEST
from latentddpm.utils.timing import duration

LONG_SECONDS = 24 * 3600.0
"""Duration from which a run is called long, once it is measured."""
HOPELESS_SECONDS = 3 * LONG_SECONDS
"""Duration from which it is called so by the estimate, which may be off by a factor of two."""
SHARE_OF_PEAK = 0.4
"""Operations per second of a network, as a share of those of a matrix product."""
PROBE_SECONDS = 0.2
MAPS_OF_A_BLOCK = 6
"""Feature maps of a residual block that the backward pass reads: norm, SiLU and convolution, twice
each."""


@dataclass(frozen=True)
class Cost:
    """Cost of one image in a forward pass.

    Attributes:
        multiply_adds: of its convolutions and attention.
        numbers: in feature maps that a backward pass needs.
    """

    multiply_adds: float
    numbers: float


def cost_of(config: AutoencoderRun | DiffusionRun, factor: int = 1) -> Cost:
    """Cost of one image of a run.

    Args:
        config: complete settings.
        factor: downsample factor of the autoencoder whose latents a UNet is trained on; 1 for
            pixels.
    """
    if isinstance(config, AutoencoderRun):
        side, own = config.data.resolution, config.autoencoder
        blocks_of = _blocks(own, side, 2, ())
    else:
        side, own = config.data.resolution // factor, config.unet
        blocks_of = BLOCKS[own.kind](own, side)
    adds = numbers = 0.0
    for width, square, blocks, inputs, attends in blocks_of:
        area = square ** (config.data.spatial_dims / 2)
        adds += blocks * area * 3**config.data.spatial_dims * (inputs * width + width**2)
        numbers += blocks * MAPS_OF_A_BLOCK * area * width
        if attends:
            adds += blocks * (16 * width**2 * area + 2 * width * area**2)
            numbers += blocks * 12 * width * area  # many scores are not kept
    return Cost(adds, numbers)


def _blocks(
    own: AutoencoderConfig | UNetConfig, side: int, up: int, attention: Sequence[int]
) -> Iterator[tuple[int, int, int, int, bool]]:
    """Residual blocks of each level: width, positions, number, input channels, attention."""
    below = own.channels
    for level, multiplier in enumerate(own.channel_multipliers):
        width, area, count = own.channels * multiplier, (side >> level) ** 2, own.num_res_blocks
        if count:
            mean = (below + width * (count - 1)) // count
            yield width, area, count, mean, level in attention
        # On the way up each block takes the level below or, in a UNet, a skip connection too.
        yield width, area, count + 1, width * (up - 1), level in attention
        below = width
    yield below, area, 2, below, True


def _unet_blocks(own: UNetConfig, side: int) -> Iterator[tuple[int, int, int, int, bool]]:
    return _blocks(own, side, 3, own.attention_levels)


def _classic_blocks(own: UNetConfig, side: int) -> Iterator[tuple[int, int, int, int, bool]]:
    """Pairs of convolutions of each level; those on the way up see twice the width."""
    below = own.channels
    *widths, bottom = (own.channels * multiplier for multiplier in own.channel_multipliers)
    for level, width in enumerate(widths):
        area = (side >> level) ** 2
        yield width, area, 1, below, False
        yield width, area, 1, 2 * width, False
        below = width
    yield bottom, (side >> len(widths)) ** 2, 1, below, False


def _basic_blocks(own: UNetConfig, side: int) -> Iterator[tuple[int, int, int, int, bool]]:
    """The six 5×5 convolutions, by the multiply-adds of as many pairs of 3×3 ones."""
    for level, width in enumerate((32, 64, 96)):
        yield width, (side >> level) ** 2, 1, width, False


BLOCKS = {"unet": _unet_blocks, "classic": _classic_blocks, "basic": _basic_blocks}
"""Kind of a UNet → its residual blocks, as of `_blocks`."""


def matrix_speed() -> float:
    """Floating-point operations per second of a matrix product on this processor."""
    matrix = np.ones((768, 768), np.float32)
    matrix @ matrix
    start, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < PROBE_SECONDS:
        matrix @ matrix
        count += 1
    return 2 * len(matrix) ** 3 * count / spent


def plan_note(
    config: AutoencoderRun | DiffusionRun,
    cost: Cost,
    speed: float,
    memory: int | None,
    factor: int = 1,
) -> str:
    """Note on a plan that takes days, or more memory than there is; "" for any other.

    Args:
        config: complete settings.
        cost: of one image.
        speed: operations per second, as of `matrix_speed`.
        memory: free bytes; None where they are not known.
        factor: see `smaller_plan`.
    """
    training = config.training
    images = training.num_steps * training.batch_size
    seconds = 6 * cost.multiply_adds * images / (SHARE_OF_PEAK * speed)
    held = -(-training.batch_size // training.accumulation_steps)
    needed = 4 * cost.numbers * held
    found = []
    if seconds > HOPELESS_SECONDS:
        found.append(f"about {duration(seconds)} by estimate; the first steps will tell")
    if memory is not None and needed > memory:
        text = f"about {needed / 1e9:.3g} GB of memory, {memory / 1e9:.3g} GB are free"
        micro = training.accumulation_steps * int(np.ceil(needed / memory))
        if micro <= training.batch_size:
            text += (
                " (fewer examples at a time, with the same result: "
                f"--set training.accumulation_steps={micro})"
            )
        found.append(text)
    if not found:
        return ""
    return f"a large plan for this processor: {'; '.join(found)}; {smaller_plan(config, factor)}"


def smaller_plan(config: AutoencoderRun | DiffusionRun, factor: int = 1) -> str:
    """Advice that names a smaller plan.

    Args:
        config: complete settings.
        factor: downsample factor of the autoencoder whose latents a UNet is trained on; 1 for
            pixels.
    """
    resolution, file = config.data.resolution or LARGEST, ""
    if isinstance(config, AutoencoderRun):
        file, ways = "small-64-vae", ["data.resolution=64"] * (resolution > 64)
        ways += ["autoencoder.channels=32"] * (config.autoencoder.channels > 32)
    else:
        ways = ["unet.channels=64"] * (config.unet.arguments.get("channels", 0) > 64)
        if factor > 1:
            file = "small-64-diffusion"
        else:  # no configuration for latents suits pixels
            ways = ["data.resolution=32"] * (resolution > 32) + ways
    if not ways or config.init:
        return f"shorter: --set training.num_steps={max(config.training.num_steps // 10, 1)}"
    whole = f"--config {file}, or " if file else ""
    return f"smaller: {whole}--set {' --set '.join(ways)}"
