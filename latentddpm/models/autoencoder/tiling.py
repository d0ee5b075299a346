"""Tiling: encoding and decoding of any size, in one pass or in strips.

    tile = "auto"   the whole batch at once; if that needs more memory than is free, or runs out
                    of it, one image at a time, in strips of its rows
    tile = "off"    always the whole batch at once
    tile = N        strips of N pixels in height

Strips give the same result as one pass, without seams: see `models.autoencoder.strips`. A result
that overflows in half precision is computed again in float32. A warning tells when strips or
float32 were used without being asked for.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.errors import UserError
from latentddpm.models.autoencoder.facts import LOGVAR_RANGE
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.graph_networks import GraphNetwork
from latentddpm.models.inference import compiled, has_replicas
from latentddpm.utils.images.sizes import AUTO, OFF, Tile, check_tile
from latentddpm.utils.machine.memory import MOST_SCORES, available_memory, is_out_of_memory
from latentddpm.utils.startup import import_keras

if TYPE_CHECKING:
    import keras

    from latentddpm.models.autoencoder.autoencoder import Autoencoder

MAPS_OF_ONE_PASS = 8
"""Memory of one pass beside its weights, in float32 feature maps of the widest block at full size;
measured with Stable Diffusion's autoencoder (docs/guides/generate.md)."""
STRIP_PIXELS = 1 << 15
"""Pixels of a strip: at 256 channels a feature map of 32 MiB, of which there are about ten."""


FirstStage = "Autoencoder | GraphAutoencoder | PixelSpace"
"""First stage: turns images into latents and back."""
Half = "keras.Model | GraphNetwork"
"""Encoder or decoder."""


def decode(
    autoencoder: FirstStage, latents: Any, tile: Tile = AUTO, progress: bool = False
) -> np.ndarray:
    """Images of latents.

    Args:
        autoencoder: with the decoder, or a pixel space.
        latents: scaled, (B, h, w, c).
        tile: "auto", "off" or the height of a strip in pixels, a multiple of f.
        progress: show a progress bar on stderr while strips are decoded.

    Returns:
        float32 (B, h·f, w·f, 3), about [-1, 1].

    Raises:
        UserError: an invalid `tile`, or "off" and not enough memory.
        ArithmeticError: the decoder gives numbers that are not finite, in float32 too.
    """
    rows = _rows(tile, autoencoder.downsample_factor)
    latents = np.asarray(latents, np.float32)
    if isinstance(autoencoder, PixelSpace):
        return _finite(latents)
    decoder, factor = autoencoder.decoder, autoencoder.downsample_factor
    raw = autoencoder.latent_space.to_raw(latents)

    def run(network: Half) -> np.ndarray:
        return AutoencoderHalf(network, autoencoder, "decode", 1, factor).run(
            raw, tile, rows, progress
        )

    images = run(decoder)
    bad = _unusable(images)
    precision = autoencoder.compute_dtype
    if bad.any() and precision != "float32":
        warnings.warn(
            f"decode: {bad.sum()} of {len(bad)} images came out black or not finite in "
            f"{precision}; decoded again in float32",
            stacklevel=2,
        )
        images = run(_in_float32(decoder))
    return _finite(images)


def encode(
    autoencoder: FirstStage, images: Any, tile: Tile = AUTO, progress: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Posterior of images: mean and log-variance of their raw latents.

    Args:
        autoencoder: with the encoder, or a pixel space.
        images: float (B, H, W, 3) in [-1, 1]; H and W are multiples of f.
        tile: "auto", "off" or the height of a strip in pixels, a multiple of f.
        progress: show a progress bar on stderr while strips are encoded.

    Returns:
        mean and logvar, (B, h, w, c) each, unscaled.

    Raises:
        UserError: H or W is not a multiple of f, an invalid `tile`, or "off" and not enough
            memory.
        ArithmeticError: the encoder gives numbers that are not finite, in float32 too.
    """
    rows = _rows(tile, autoencoder.downsample_factor)
    images = np.asarray(images, np.float32)
    if isinstance(autoencoder, PixelSpace):
        return autoencoder.encode_on_batch(images)
    encoder, factor = autoencoder.encoder, autoencoder.downsample_factor
    autoencoder.check_size(*images.shape[1:3])

    def run(network: Half) -> np.ndarray:
        return AutoencoderHalf(network, autoencoder, "encode", factor, 1).run(
            images, tile, rows, progress
        )

    moments = run(encoder)
    precision = autoencoder.compute_dtype
    if not np.isfinite(moments).all() and precision != "float32":
        warnings.warn(
            f"encode: not finite in {precision}; encoded again in float32",
            stacklevel=2,
        )
        moments = run(_in_float32(encoder))
    if not np.isfinite(moments).all():
        raise ArithmeticError(
            "encode: numbers that are not finite; the images or the autoencoder's weights are "
            "broken"
        )
    mean, logvar = np.split(moments, 2, axis=-1)
    return mean, np.clip(logvar, *LOGVAR_RANGE)


def images_in_memory(autoencoder: Autoencoder, height: int, width: int) -> int | None:
    """Number of images that can be encoded in one pass in the memory that is free, 0 or more.

    Args:
        autoencoder: with the encoder.
        height, width: of the images, in pixels.

    Returns:
        The number; None where the free memory is not known, as on an accelerator.
    """
    free = available_memory()
    if free is None:
        return None
    half = AutoencoderHalf(autoencoder.encoder, autoencoder, "encode", 1, 1)
    return max(free // half.bytes_of_one_pass((1, height, width)), 0)


def _rows(tile: Tile, factor: int) -> int | None:
    """Height of a strip in rows of latents; None for "auto" and "off"."""
    tile = check_tile(tile, factor)
    return None if isinstance(tile, str) else tile // factor


class AutoencoderHalf:
    """Encoder or decoder that chooses between one pass and strips by the memory it needs.

    Args:
        network: the encoder or the decoder.
        autoencoder: to which it belongs.
        verb: "encode" or "decode".
        unit: rows of its input per row of latents.
        scale: pixels per position of its input, along a side.
    """

    def __init__(
        self, network: Half, autoencoder: FirstStage, verb: str, unit: int, scale: int
    ) -> None:
        self.network, self.verb, self.unit, self.scale = network, verb, unit, scale
        # The last level of a decoder starts from maps as wide as those of the level before.
        levels = autoencoder.channel_multipliers[: 2 if verb == "decode" else 1]
        self.widest = autoencoder.channels * max(levels)
        self.factor = autoencoder.downsample_factor

    def run(self, inputs: np.ndarray, tile: Tile, rows: int | None, progress: bool) -> np.ndarray:
        """Output of the network, in one pass or in strips.

        Args:
            inputs: (B, H, W, C).
            tile: "auto", "off" or a height of strips.
            rows: that height in rows of latents; None for "auto" and "off".
            progress: show a progress bar on stderr.

        Raises:
            UserError: `tile` is "off" and there is not enough memory.
        """
        if rows is None:
            free = available_memory() if tile == AUTO else None
            if free is None or self.bytes_of_one_pass(inputs.shape) < free:
                try:
                    several = len(inputs) > 1 and has_replicas(self.network)
                    network = compiled(self.network) if several else self.network
                    return np.asarray(network(inputs), np.float32)
                except Exception as error:
                    if not is_out_of_memory(error):
                        raise
                    if tile == OFF:
                        raise UserError(
                            f"{self.verb}: no memory for {self._size(inputs)} in one pass; leave "
                            "out --tile off"
                        ) from None
        if len(inputs) > 1:  # one at a time, in one pass if that fits
            each = [self.run(one[None], tile, rows, progress) for one in inputs]
            return np.concatenate(each)
        return self._in_strips(inputs, rows, progress)

    def _in_strips(self, inputs: np.ndarray, rows: int | None, progress: bool) -> np.ndarray:
        """Output in strips; their height is halved as long as memory runs out."""
        if rows is None:
            row = inputs.shape[2] * self.scale * self.factor  # pixels of one row of latents
            half = -(-inputs.shape[1] // self.unit // 2)
            rows = max(min(STRIP_PIXELS // row, half), 1)
            warnings.warn(
                f"{self.verb}: {self._size(inputs)} in one pass needs more memory than is free; "
                f"in strips of {rows * self.factor} pixels, which gives the same",
                stacklevel=2,
            )
        import_keras()
        from latentddpm.models.autoencoder.strips import run_in_strips

        network = self._of_layers()
        while True:
            try:
                return run_in_strips(network, inputs, rows * self.unit, progress)
            except Exception as error:
                if not is_out_of_memory(error) or rows == 1:
                    raise
            rows //= 2
            warnings.warn(
                f"{self.verb}: out of memory; in strips of {rows * self.factor} pixels",
                stacklevel=2,
            )

    def _of_layers(self) -> keras.Model:
        """Network of layers: strips take one layer after the other, and a graph has none."""
        if not isinstance(self.network, GraphNetwork):
            return self.network
        from latentddpm.models.archive import load_archive
        from latentddpm.models.autoencoder.autoencoder import Autoencoder

        whole = load_archive(self.network.graph.archive, Autoencoder)
        return whole.encoder if self.verb == "encode" else whole.decoder

    def bytes_of_one_pass(self, shape: tuple[int, ...]) -> int:
        """Peak memory of one pass over inputs of `shape` (B, H, W, c), estimated, in bytes."""
        batch, height, width = shape[:3]
        positions = height * width * self.scale**2
        tokens = positions // self.factor**2
        maps = MAPS_OF_ONE_PASS * positions * self.widest
        # Of the attention in the middle, before and after its softmax, a block at a time.
        scores = 2 * min(batch * tokens**2, MOST_SCORES)
        return 4 * max(batch * maps, scores)

    def _size(self, inputs: np.ndarray) -> str:
        batch, height, width = inputs.shape[:3]
        size = f"{width * self.scale}×{height * self.scale} pixels"
        return f"{batch} images of {size}" if batch > 1 else size


def _in_float32(network: keras.Model) -> keras.Model:
    """Copy of an encoder or decoder that computes in float32."""
    from latentddpm.models.functional import rebuild

    return rebuild(network, dtype="float32")


def _finite(images: np.ndarray) -> np.ndarray:
    """Images, after a check that their numbers are finite."""
    if not np.isfinite(images).all():
        count = int((~np.isfinite(images)).any(axis=(1, 2, 3)).sum())
        raise ArithmeticError(
            f"decode: {count} of {len(images)} images hold numbers that are not finite; the "
            "latents or the autoencoder's weights are broken"
        )
    return images


def _unusable(images: np.ndarray) -> np.ndarray:
    """True for images that are black or have a number that is not finite; bool (B,)."""
    flat = images.reshape(len(images), -1)
    with np.errstate(invalid="ignore"):
        return ~np.isfinite(flat).all(axis=1) | (flat <= -1).all(axis=1)
