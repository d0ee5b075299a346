"""What the autoencoder alone costs a generator's numbers, and whether `near` would find a copy.

    python benchmarks/through_autoencoder.py MODEL DATA --extractor hed --extractor FILE.keras

The numbers of `evaluate --generator`, for images that no UNet has drawn: the validation images of
training, as they are and after the autoencoder, which is the best that a generator with this
decoder can do; and as many training images after the autoencoder, the best copies that it can
make, so that their `near` is the share of copies that the extractor would notice.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

from latentddpm.config import DataConfig
from latentddpm.evaluation.autoencoder import BATCH, reconstruct
from latentddpm.evaluation.extractors import load_extractor
from latentddpm.evaluation.generator import References
from latentddpm.evaluation.images import open_images
from latentddpm.evaluation.report import aligned, shown
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

MEASURES = ("frechet", "kernel", "kernel_error", "precision", "recall", "density", "near")


def after(autoencoder: Autoencoder, pixels: np.ndarray) -> np.ndarray:
    """Reconstructions of uint8 (N, H, W, 3)."""
    starts = range(0, len(pixels), BATCH)
    return np.concatenate([reconstruct(autoencoder, pixels[k : k + BATCH])[1] for k in starts])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--extractor", action="append", required=True)
    parser.add_argument("--resolution", type=int, default=64)
    arguments = parser.parse_args()
    autoencoder = LatentDiffusion.load(arguments.model).autoencoder

    with tempfile.TemporaryDirectory() as catalog:

        def read(split: str, limit: int | None = None) -> np.ndarray:
            data = DataConfig(validation_fraction=0.03, validation_by="caption")
            size = (arguments.resolution, arguments.resolution)
            images = open_images(
                arguments.data, Path(catalog), size, split=split, data=data, limit=limit
            )
            return images.read(np.arange(len(images)))

        training, validation = read("training"), read("validation")
        seen = read("training", len(validation))
    sets = {
        "validation": validation,
        "validation, after": after(autoencoder, validation),
        "training, after": after(autoencoder, seen),
    }
    for name in arguments.extractor:
        extractor = load_extractor(name)
        features = {row: extractor.features(pixels) for row, pixels in sets.items()}
        known = References(extractor.features(training), features["validation"])
        rows = [[f"{extractor.label}, n = {len(validation)}", *MEASURES]]
        for row, each in features.items():
            measures = known.measure(each)
            rows.append([row, *(shown(getattr(measures, key)) for key in MEASURES)])
        print(aligned(rows), flush=True)
