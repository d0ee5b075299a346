"""A VGG16 of random weights, and pairs of images: the same for `lpips` and for our model.

NumPy's `RandomState` draws the same numbers in all versions, so the 59 MB need no file.
"""

import numpy as np

WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Of the convolutions in torchvision's `vgg16().features`."""

SIZES = ((3, 32, 48), (2, 50, 35))
"""Batches of pairs: (pairs, height, width)."""


def random_vgg16():
    """Kernels (out, in, 3, 3) and biases that let signals through, under torchvision's names."""
    numbers = np.random.RandomState(7)
    weights, width = {}, 3
    for place, out in zip(PLACES, WIDTHS, strict=True):
        kernel = np.sqrt(2 / (9 * width)) * numbers.standard_normal((out, width, 3, 3))
        weights[f"features.{place}.weight"] = kernel.astype(np.float32)
        weights[f"features.{place}.bias"] = (0.1 * numbers.standard_normal(out)).astype(np.float32)
        width = out
    return weights


def random_pairs(size):
    """Images (B, H, W, 3) in [-1, 1], and others more and more unlike them."""
    numbers = np.random.RandomState(11)
    count, height, width = size
    images = numbers.uniform(-1, 1, (count, height, width, 3)).astype(np.float32)
    strength = np.linspace(0.05, 0.5, count)[:, None, None, None]
    others = images + strength * numbers.standard_normal(images.shape)
    return images, np.clip(others, -1, 1).astype(np.float32)
