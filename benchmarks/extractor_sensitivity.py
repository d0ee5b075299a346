"""How far an extractor's features move when images are damaged: does a distance rise with harm?

    python benchmarks/extractor_sensitivity.py DATA --extractor hed --extractor FILE.keras

Validation images are blurred, compressed as JPEG, and given noise, each in rising
strength; all distances are between the same images before and after, as `evaluate --autoencoder`
takes them between images and reconstructions, so that its numbers compare with these.
"""

import argparse
import io
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from latentddpm.config import DataConfig
from latentddpm.evaluation.extractors import load_extractor
from latentddpm.evaluation.images import open_images
from latentddpm.evaluation.metrics.frechet import Statistics, frechet_distance
from latentddpm.evaluation.metrics.kernel import paired_kernel_distance
from latentddpm.evaluation.report import aligned, shown

BLURS = (0.4, 0.6, 0.8, 1.2, 2.0)  # σ of a Gaussian, pixels
QUALITIES = (95, 85, 70, 50, 25)
NOISES = (2, 4, 8, 16, 32)  # σ of a Gaussian, of 255


def damages() -> Iterator[tuple[str, Callable[[np.ndarray], np.ndarray]]]:
    """Names, and functions of uint8 (H, W, 3)."""
    for sigma in BLURS:
        yield f"blur σ={sigma}", lambda pixels, sigma=sigma: blurred(pixels, sigma)
    for quality in QUALITIES:
        yield f"JPEG {quality}", lambda pixels, quality=quality: compressed(pixels, quality)
    for sigma in NOISES:
        numbers = np.random.default_rng(0)
        yield (
            f"noise σ={sigma}",
            lambda pixels, sigma=sigma, numbers=numbers: noised(pixels, sigma, numbers),
        )


def blurred(pixels: np.ndarray, sigma: float) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(sigma)))


def compressed(pixels: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def noised(pixels: np.ndarray, sigma: float, numbers: np.random.Generator) -> np.ndarray:
    noise = sigma * numbers.standard_normal(pixels.shape)
    return np.clip(np.round(pixels + noise), 0, 255).astype(np.uint8)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", action="append", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    arguments = parser.parse_args()
    data = DataConfig(validation_fraction=0.03, validation_by="caption")
    size = (arguments.resolution, arguments.resolution)
    with tempfile.TemporaryDirectory() as catalog:
        kept_out = open_images(
            arguments.data, Path(catalog), size, split="validation", data=data, quiet=True
        )
        images = kept_out.read(np.arange(len(kept_out)))
    extractors = [load_extractor(name) for name in arguments.extractor]
    originals = [extractor.features(images) for extractor in extractors]
    rows = [[f"{len(images)} images"]]
    for extractor in extractors:
        rows[0] += [extractor.frechet_name, extractor.kernel_name]
    for name, damage in damages():
        damaged = np.stack([damage(pixels) for pixels in images])
        row = [name]
        for extractor, before in zip(extractors, originals, strict=True):
            after = extractor.features(damaged)
            frechet = frechet_distance(*(Statistics().add(each) for each in (before, after)))
            row += [shown(frechet), shown(paired_kernel_distance(before, after).value)]
        rows.append(row)
    print(aligned(rows))
