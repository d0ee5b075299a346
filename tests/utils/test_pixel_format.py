"""Pixel formats: nothing is lost on the way to [-1, 1] and back, and bad ones are refused."""

import numpy as np
import pytest

from latentddpm.errors import UserError
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import from_pixels, to_pixels


@pytest.mark.parametrize("window", [None, (0, 65535), (1000, 65535), (300, 301)])
def test_every_16_bit_value_comes_back(window):
    pixels = PixelFormat(1, 16, window)
    low, high = map(int, pixels.range)
    ramp = np.arange(low, high + 1, dtype=np.uint16)
    images = pixels.to_images(ramp)
    assert (images.dtype, images.min(), images.max()) == (np.float32, -1, 1)
    np.testing.assert_array_equal(pixels.from_images(images), ramp)


def test_default_format_is_that_of_8_bit_rgb_to_the_bit():
    values, pixels = np.arange(256, dtype=np.uint8), PixelFormat()
    assert pixels.to_images(values).tobytes() == from_pixels(values).tobytes()
    images = np.random.default_rng(0).normal(0, 1, 9999).astype(np.float32)
    assert pixels.from_images(images).tobytes() == to_pixels(images).tobytes()


def test_window_of_floats_and_clipping():
    pixels = PixelFormat(1, "float", [-1000, 400])
    images = pixels.to_images(np.float32([-1000, -300, 400]))
    np.testing.assert_allclose(images, [-1, 0, 1], atol=1e-7)
    np.testing.assert_array_equal(
        pixels.from_images([-1.5, -1, 1, 9]), np.float32([-1000, -1000, 400, 400])
    )


@pytest.mark.parametrize(
    "pixels", [PixelFormat(), PixelFormat(5, "float", (-1.5, 2)), PixelFormat(4)], ids=str
)
def test_json_and_back(pixels):
    assert PixelFormat.from_json(pixels.to_json()) == pixels
    assert PixelFormat.from_json(None).is_default


def test_suffix_says_what_png_holds():
    png = [PixelFormat(1), PixelFormat(3), PixelFormat(4), PixelFormat(1, 16)]
    npy = [PixelFormat(2), PixelFormat(3, 16), PixelFormat(1, "float"), PixelFormat(5)]
    assert {one.suffix for one in png} == {".png"}
    assert {one.suffix for one in npy} == {".npy"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": 0}, "channels: 0, expected 1"),
        ({"channels": True}, "channels: True, expected 1"),
        ({"bit_depth": 12}, "bit_depth: 12, expected 8, 16 or 'float'"),
        ({"window": [1]}, "window: \\[1\\], expected \\[low, high\\]"),
        ({"window": [5, 5]}, "low below high"),
        ({"window": [0, 300]}, "whole numbers in 0 … 255"),
        ({"depth": 8}, "pixels: \\['depth'\\] are not known"),
    ],
)
def test_bad_formats_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        PixelFormat.from_json(arguments)
