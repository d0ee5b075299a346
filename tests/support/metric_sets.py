"""Images and features to measure: of a folder, or made of sines, the same on every machine."""

import numpy as np

from latentddpm.data.dataset import open_dataset
from latentddpm.evaluation.images import spread_images


def image_pairs(count=5, side=24):
    """uint8 (N, H, W, 3) twice: waves of growing frequency, and the same with growing errors."""
    y, x, channel = np.meshgrid(*[np.arange(side)] * 2, np.arange(3), indexing="ij")
    images = [
        127.5 + 120 * np.sin(0.2 * (n + 1) * x + channel) * np.cos(0.1 * y * n)
        for n in range(count)
    ]
    errors = [
        3 * (n + 1) ** 1.5 * np.sin(12.9898 * x + 78.233 * y * channel) for n in range(count)
    ]
    references = np.clip(np.array(images) + errors, 0, 255)
    return np.round(images).astype(np.uint8), np.round(references).astype(np.uint8)


def feature_sets(count=40, width=6):
    """float64 (N, d) twice: two clouds that overlap in part."""
    grid = np.arange(1, 2 * count * width + 1, dtype=np.float64)
    noise = np.sin(grid**2 * 0.7548776662).reshape(2, count, width)
    return noise[0], 0.9 * noise[1] + 0.5 * np.sin(np.arange(width))


def image_set(place, catalog, size, split="all", limit=None, data=None):
    """Images of a place as `evaluate` takes them."""
    dataset = open_dataset(place, catalog, data, quiet=True)
    return spread_images(dataset, dataset.split(split), size, limit)
