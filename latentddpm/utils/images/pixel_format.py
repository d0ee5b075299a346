"""Pixel format: channels, bit depth and window of stored images; their way to [-1, 1] and back.

    images = (values − low) / ((high − low) / 2) − 1         float32, in [-1, 1]
    values = (images + 1) · (high − low) / 2 + low           clipped; rounded, if they are whole

[low, high] is the window; without one it is the whole range: 0 … 255 for 8 bits, 0 … 65,535 for
16 bits, and [0, 1] for floating point.

Nothing is lost on the way of 16 bits. With u = 2⁻²⁴, the largest relative rounding error of
float32, the quotient is at most 2 and is off by u, the difference by u/2, the sum on the way back
by u again, and the product by u · 65,535: together less than 3.5 · u · 32,768 + u · 65,535 < 0.011
of a value, so rounding to the nearest whole number finds it again.

Signals (L, C) have a pixel format, too: `spatial_dims` 1. With a sample rate they are WAV files.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from latentddpm.errors import UserError
from latentddpm.utils.images.plots import plot
from latentddpm.utils.pixels import as_rgb, to_pixels

FLOAT = "float"
DEPTHS: dict[int | str, tuple[str, float]] = {
    8: ("uint8", 255.0),
    16: ("uint16", 65535.0),
    FLOAT: ("float32", 1.0),
}
"""Bit depth → dtype of the values, and the largest of their whole range, which begins at 0."""

NAMES = {1: "gray", 3: "RGB", 4: "RGBA"}
"""Number of channels → what it is called; any other number is an array."""
MAX_CHANNELS = 4096


def _is_whole(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class PixelFormat:
    """Pixel format of a model or of data: how stored values become images, and the reverse.

    Args:
        channels: 1 gray, 3 RGB, 4 RGBA with its transparency, or any other number.
        bit_depth: 8, 16, or "float" (32 bits).
        window: (low, high), the values that become −1 and 1; values outside are clipped. None for
            the whole range.
        spatial_dims: 2 for images (H, W, C), 1 for signals (L, C).
        rate: of signals, in samples a second; None for none.

    Raises:
        UserError: an invalid channel number, bit depth, window or rate.

    Example:
        >>> import numpy as np
        >>> from latentddpm.utils.images.pixel_format import PixelFormat
        >>> pixels = PixelFormat(channels=1, bit_depth=16)
        >>> images = pixels.to_images(np.uint16([0, 32768, 65535]))
        >>> pixels.from_images(images).tolist()
        [0, 32768, 65535]
    """

    channels: int = 3
    bit_depth: int | str = 8
    window: tuple[float, float] | None = None
    spatial_dims: int = 2
    rate: int | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.channels) or not 1 <= self.channels <= MAX_CHANNELS:
            raise UserError(f"channels: {self.channels!r}, expected 1 … {MAX_CHANNELS}")
        if isinstance(self.bit_depth, bool) or self.bit_depth not in DEPTHS:
            raise UserError(f"bit_depth: {self.bit_depth!r}, expected 8, 16 or 'float'")
        if self.window is not None:
            object.__setattr__(self, "window", self._checked_window())
        if self.spatial_dims not in (1, 2):
            raise UserError(f"spatial_dims: {self.spatial_dims!r}, expected 1 or 2")
        if self.rate is not None and not (_is_whole(self.rate) and 0 < self.rate < 1 << 31):
            raise UserError(f"rate: {self.rate!r}, expected samples a second, 1 … {2**31 - 1}")
        if self.rate is not None and self.spatial_dims != 1:
            raise UserError(f"rate: {self.rate}, but only signals have one (spatial_dims 1)")

    def _checked_window(self) -> tuple[float, float]:
        window = self.window
        numbers = isinstance(window, tuple | list) and len(window) == 2
        if not numbers or not all(map(_is_number, window)) or not window[0] < window[1]:
            raise UserError(f"window: {window!r}, expected [low, high], low below high")
        low, high = map(float, window)
        if self.bit_depth != FLOAT:
            top = self.top
            if not (low >= 0 and high <= top and low.is_integer() and high.is_integer()):
                raise UserError(
                    f"window: [{low:g}, {high:g}], expected whole numbers in 0 … {top:g}, "
                    f"the values of {self.bit_depth} bits"
                )
        return low, high

    @property
    def dtype(self) -> str:
        """Dtype of the values: "uint8", "uint16" or "float32"."""
        return DEPTHS[self.bit_depth][0]

    @property
    def top(self) -> float:
        """Largest value of the whole range, which begins at 0."""
        return DEPTHS[self.bit_depth][1]

    @property
    def range(self) -> tuple[float, float]:
        """Values (low, high) that become −1 and 1."""
        return self.window or (0.0, self.top)

    @property
    def levels(self) -> int | None:
        """Number of whole values in the range; None for floating point."""
        low, high = self.range
        return None if self.bit_depth == FLOAT else int(high - low) + 1

    @property
    def is_default(self) -> bool:
        """True for RGB at 8 bits without a window, which is not written down."""
        return self == PixelFormat()

    @property
    def suffix(self) -> str:
        """Suffix of the files it is written to.

        Images: ".png" where PNG has the format, else ".npy". Signals: ".wav" with a rate, numbers
        and a window inside [-1, 1], the range of such a file, else ".npy".
        """
        if self.spatial_dims == 1:
            inside = self.bit_depth == FLOAT and self.range[0] >= -1 and self.range[1] <= 1
            return ".wav" if self.rate and inside else ".npy"
        png = self.channels in NAMES if self.bit_depth == 8 else self.bit_depth == 16
        return ".png" if png and (self.bit_depth == 8 or self.channels == 1) else ".npy"

    def to_images(self, values: Any, cast: Callable[[Any, type], Any] = np.asarray) -> Any:
        """Images, float32, in [-1, 1] where the values are in the range.

        Args:
            values: an array or a tensor of any shape.
            cast: `cast(values, dtype)` of the library that they belong to; NumPy's by default.
        """
        low, high = self.range
        values = cast(values, np.float32)
        return (values - low if low else values) / ((high - low) / 2) - 1.0

    def from_images(self, images: Any) -> np.ndarray:
        """Values of images in [-1, 1], of any shape: clipped, and rounded where they are whole.

        Args:
            images: an array or a tensor.
        """
        low, high = self.range
        images = np.asarray(images, np.float32)
        values = (images + np.float32(1)) * np.float32((high - low) / 2)
        if low:
            values = values + np.float32(low)
        if self.bit_depth != FLOAT:
            values = np.rint(values)
        return np.clip(values, low, high).astype(self.dtype)

    @classmethod
    def of(cls, settings: Any) -> PixelFormat:
        """Pixel format of settings.

        Args:
            settings: the section `data:` of a configuration; where null, 8-bit RGB. Without a
                bit depth a window is not known yet.

        Raises:
            UserError: an invalid value.
        """
        window = settings.window if settings.bit_depth else None
        try:
            return cls(
                settings.channels or 3,
                settings.bit_depth or 8,
                window and tuple(window),
                settings.spatial_dims,
                settings.rate,
            )
        except UserError as error:
            raise UserError(f"data.{error}") from None

    def to_rgb(self, values: np.ndarray) -> np.ndarray:
        """Values for people to look at, uint8 (..., 3); see `utils.pixels.as_rgb`.

        Args:
            values: of this format, (..., C). Signals (..., L, C) become plots.
        """
        if self.spatial_dims == 1:
            return plot(self.to_images(values))
        return values if self.is_default else as_rgb(to_pixels(self.to_images(values)))

    def to_levels(self, values: np.ndarray) -> np.ndarray:
        """Values in levels 0 … 255 of their range, in which PSNR and SSIM are measured.

        Args:
            values: of this format.

        Returns:
            `values` themselves where these are of 8 bits without a window, else float32.
        """
        if self.bit_depth == 8 and self.window is None:
            return values
        return (self.to_images(values) + np.float32(1)) * np.float32(127.5)

    def seen(self) -> str:
        """Part of it that networks and people see who know 8-bit RGB; "" for 8-bit RGB itself."""
        if self.is_default:
            return ""
        words = {1: "gray repeated", 2: "the first channel", 3: "", 4: "RGBA over white"}
        what = words.get(self.channels, "the first three channels")
        return " ".join(filter(None, (what, "" if self.bit_depth == 8 else "at 8 bits")))

    def to_json(self) -> dict[str, Any]:
        """Its arguments, as JSON holds them; of images without those of signals."""
        arguments = {**asdict(self), "window": list(self.window) if self.window else None}
        if self.spatial_dims == 2:
            del arguments["spatial_dims"], arguments["rate"]
        return arguments

    @classmethod
    def from_json(cls, arguments: Mapping[str, Any] | None) -> PixelFormat:
        """Pixel format of what `to_json` gave; the default for None.

        Args:
            arguments: by name.

        Raises:
            UserError: an unknown name, or an invalid value.
        """
        arguments = dict(arguments or {})
        unknown = arguments.keys() - cls.__dataclass_fields__.keys()
        if unknown:
            raise UserError(f"pixels: {sorted(unknown)} are not known")
        return cls(**arguments)

    def __str__(self) -> str:
        if self.spatial_dims == 1:
            rate = f" at {self.rate:,} samples a second" if self.rate else ""
            name = f"signals{rate}, {self.channels} channel{'s' * (self.channels > 1)}"
        else:
            name = NAMES.get(self.channels, f"{self.channels} channels")
        depth = "floating point" if self.bit_depth == FLOAT else f"{self.bit_depth} bits"
        window = f", {self.window[0]:g} … {self.window[1]:g}" if self.window else ""
        return f"{name}, {depth}{window}"


RGB = PixelFormat()
"""Pixel format of almost all pictures: 8-bit RGB."""
