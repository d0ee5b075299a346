"""Are reconstructions as sharp as their originals, and are plain surfaces left plain?

    python benchmarks/sharpness.py DATA MODEL [MODEL ...] [--resolution 128]

Of validation images, pixels by how their surroundings look in the original:

    |∇²x| = |4 x − its four neighbours|, the largest of the three colours       sharp details: high
    detail   pixels with |∇²| ≥ 3 (of 255) within 4 pixels         plain   all others

    sharpness   mean |∇²| of reconstructions over that of originals, at detail: 1 is as sharp
    plain       mean |∇²| of reconstructions, at plain: ripples where there is nothing
    error       mean absolute error at detail, of 255

A model of smaller images than `--resolution` reconstructs at its own size, and the result is
enlarged (bicubic): what its pictures would be worth without a model of that size.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import maximum_filter

from latentddpm.config import DataConfig
from latentddpm.evaluation.images import open_images
from latentddpm.evaluation.metrics.similarity import psnr
from latentddpm.evaluation.report import aligned, shown
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.utils.pixels import to_pixels

THRESHOLD, REACH, BATCH = 3.0, 4, 32


def laplacian(pixels: np.ndarray) -> np.ndarray:
    """|∇²| of (N, H, W, 3), the largest of the colours: (N, H − 2, W − 2)."""
    pixels = pixels.astype(np.float32)
    centre, around = pixels[:, 1:-1, 1:-1], (pixels[:, :-2, 1:-1], pixels[:, 2:, 1:-1])
    around += (pixels[:, 1:-1, :-2], pixels[:, 1:-1, 2:])
    return np.abs(4 * centre - sum(around)).max(axis=-1)


def reconstructed(autoencoder: Autoencoder, pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3), by way of the posterior's mode."""
    parts = []
    for start in range(0, len(pixels), BATCH):
        images = pixels[start : start + BATCH].astype(np.float32) / 127.5 - 1.0
        mean, _ = autoencoder.encode_on_batch(images)
        parts.append(to_pixels(autoencoder.decode(autoencoder.to_latents(mean))))
    return np.concatenate(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--resolution", type=int, default=128)
    arguments = parser.parse_args()
    split = DataConfig(validation_fraction=0.03, validation_by="caption")

    def kept_out(side: int) -> np.ndarray:
        with tempfile.TemporaryDirectory() as folder:
            place = arguments.data, Path(folder), (side, side)
            images = open_images(*place, split="validation", data=split, quiet=True)
            return images.read(np.arange(len(images)))

    originals = kept_out(arguments.resolution)
    edges = laplacian(originals)
    detail = maximum_filter(edges, size=(1, 2 * REACH + 1, 2 * REACH + 1)) >= THRESHOLD
    rows = [[f"{len(originals)} images", "PSNR (dB)", "sharpness", "plain", "error"]]
    rows.append(["originals", "", "1", shown(edges[~detail].mean()), "0"])
    for name in arguments.models:
        model = read_model_folder(name)
        side = min(model.image_size[0], arguments.resolution)
        pixels = originals if side == arguments.resolution else kept_out(side)
        pixels = reconstructed(load_archive(model.file("vae"), Autoencoder), pixels)
        if side < arguments.resolution:
            size, way = originals.shape[2:0:-1], Image.Resampling.BICUBIC
            pixels = np.stack([np.asarray(Image.fromarray(p).resize(size, way)) for p in pixels])
        found = laplacian(pixels)
        error = np.abs(originals.astype(np.float32) - pixels)[:, 1:-1, 1:-1][detail].mean()
        sharpness = found[detail].mean() / edges[detail].mean()
        numbers = psnr(pixels, originals).mean(), sharpness, found[~detail].mean(), error
        rows.append([name, *map(shown, numbers)])
    print(aligned(rows))
