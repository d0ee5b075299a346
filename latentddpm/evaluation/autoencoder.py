"""Evaluation of an autoencoder: reconstructions compared with images, statistics of the latents.

An image x is reconstructed from the mode of the posterior, as when latents are cached,

    x̂ = decode(mean(encode(x)))            both of 8 bits

and compared with x, image by image (PSNR, SSIM, RMSE, a perceptual distance). All x̂ and all x are
compared as distributions, by Fréchet and kernel distance of their features. With ImageNet's
Inception-v3 these are rFID and rKID; with another network they are called by its name.

Latents are scaled, as a UNet sees them. Their standard deviation over all channels should be
about 1.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from keras import ops

from latentddpm.errors import UserError
from latentddpm.evaluation.extractors import Extractor
from latentddpm.evaluation.images import ImageSet
from latentddpm.evaluation.metrics.frechet import Statistics, frechet_distance
from latentddpm.evaluation.metrics.kernel import LEAST, paired_kernel_distance
from latentddpm.evaluation.metrics.pairwise import check_count
from latentddpm.evaluation.metrics.similarity import HIGHER_IS_BETTER, psnr, rmse, ssim
from latentddpm.evaluation.report import Report, aligned, plain, shown
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.tiling import decode, encode
from latentddpm.models.perceptual import SMALLEST_SIDE, PerceptualDistance
from latentddpm.utils.images.pixel_format import RGB, PixelFormat
from latentddpm.utils.pixels import from_pixels, grid, save_png

BATCH = 16
GRID = "reconstructions.png"
GRID_COLUMNS = 8
GROUPS = ("best", "median", "worst")
GROUP_GAP = 12  # pixels
LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "rmse": "RMSE (of 255)"}


def evaluate_autoencoder(
    autoencoder: Autoencoder,
    images: ImageSet,
    *,
    perceptual: PerceptualDistance | None = None,
    extractor: Extractor | None = None,
    out: Path | None = None,
    quiet: bool = False,
) -> Report:
    """Compare images with their reconstructions.

    Args:
        autoencoder: to evaluate.
        images: to reconstruct.
        perceptual: distance to report too; None for none.
        extractor: features for the Fréchet and kernel distances; None leaves these out.
        out: folder for a picture of the best, median and worst reconstructions, by the perceptual
            distance, or by PSNR without one; None for no picture.
        quiet: show no progress.

    Returns:
        Report with mean, median and worst value of each metric of single images, the distances,
        and the statistics of the latents.

    Raises:
        UserError: too few or too small images for a metric, or a size that the autoencoder does
            not accept.
    """
    if extractor is not None:
        check_count(extractor.kernel_name, len(images), LEAST)
    if perceptual is not None and min(images.size) < SMALLEST_SIDE:
        raise UserError(
            f"{perceptual.label} needs images of at least {SMALLEST_SIDE}×{SMALLEST_SIDE}"
        )
    labels = {**LABELS, **({"perceptual": perceptual.label} if perceptual else {})}
    each: dict[str, list[np.ndarray]] = {name: [] for name in labels}
    features = []  # of batches: (2, B, d)
    statistics = Statistics()  # of the latents at every position
    pixels = images.pixels
    for originals in images.batches(BATCH, "reconstruct", quiet):
        latents, rebuilt = reconstruct(autoencoder, originals, pixels)
        statistics.add(latents.reshape(-1, latents.shape[-1]))
        levels = pixels.to_levels(rebuilt), pixels.to_levels(originals)
        originals, rebuilt = pixels.to_rgb(originals), pixels.to_rgb(rebuilt)
        for name, measure in (("psnr", psnr), ("ssim", ssim), ("rmse", rmse)):
            each[name].append(measure(*levels))
        if perceptual is not None:
            pair = from_pixels(rebuilt), from_pixels(originals)
            each["perceptual"].append(ops.convert_to_numpy(perceptual(*pair)))
        if extractor is not None:
            both = extractor.features(np.concatenate([originals, rebuilt]))
            features.append(both.reshape(2, len(originals), -1))
    values = {name: np.concatenate(parts) for name, parts in each.items()}
    parts = [_per_image(labels, values)]
    if extractor is not None:
        parts.append(_distances(extractor, *np.concatenate(features, axis=1)))
    parts.append(_latents(statistics))
    if out is not None:
        key = "perceptual" if perceptual else "psnr"
        order = np.argsort(values[key] if perceptual else -values[key], kind="stable")
        names = _save_grid(out / GRID, autoencoder, images, order)
        line = f"{out / GRID}: best, median and worst by {labels[key]}"
        parts.append(Report(line, {"shown": names}))
    text = "\n\n".join(part.text for part in parts)
    return Report(text, {name: value for part in parts for name, value in part.values.items()})


def reconstruct(
    autoencoder: Autoencoder, values: np.ndarray, pixels: PixelFormat = RGB
) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstructions of images, from the mode of the posterior.

    Args:
        autoencoder: to use.
        values: (B, H, W, C).
        pixels: their format.

    Returns:
        Scaled latents, float32 (B, h, w, c), and reconstructions in the same format.
    """
    mean, _ = encode(autoencoder, pixels.to_images(values))
    latents = ops.convert_to_numpy(autoencoder.to_latents(mean))
    return latents, pixels.from_images(decode(autoencoder, latents))


def _per_image(labels: dict[str, str], values: dict[str, np.ndarray]) -> Report:
    rows, found = [["", "mean", "median", "worst"]], {}
    for name, label in labels.items():
        each = values[name]
        worst = each.min() if name in HIGHER_IS_BETTER else each.max()
        numbers = {"mean": each.mean(), "median": np.median(each), "worst": worst}
        rows.append([label, *map(shown, numbers.values())])
        found[name] = {key: plain(number) for key, number in numbers.items()}
    return Report(aligned(rows), found)


def _distances(extractor: Extractor, originals: np.ndarray, rebuilt: np.ndarray) -> Report:
    prefix = "r" if extractor.is_inception else ""
    statistics = [Statistics().add(features) for features in (originals, rebuilt)]
    frechet, kernel = frechet_distance(*statistics), paired_kernel_distance(originals, rebuilt)
    low, high = map(shown, kernel.interval)
    text = aligned(
        [
            [prefix + extractor.frechet_name, shown(frechet)],
            [prefix + extractor.kernel_name, shown(kernel.value), f"95 %: {low} … {high}"],
        ]
    )
    count, width = originals.shape
    if count <= width:
        text += f"\n{count} images, {width} features: the Fréchet distance has not converged"
    errors = {"value": kernel.value, "standard_error": kernel.standard_error}
    return Report(text, {"frechet_distance": frechet, "kernel_distance": errors})


def _latents(statistics: Statistics) -> Report:
    """Report of the latents' mean and standard deviation, by channel and over all channels."""
    means, variances = statistics.mean, np.diag(statistics.covariance)
    stds = np.sqrt(variances)
    mean, std = means.mean(), np.sqrt(variances.mean() + means.var())
    rows = [["latents", "mean", "std"]]
    for channel, numbers in enumerate(zip(means, stds, strict=True)):
        rows.append([f"  channel {channel}", *map(shown, numbers)])
    rows.append(["  all", shown(mean), shown(std)])
    found = {"mean": float(mean), "std": float(std), "means": means.tolist()}
    return Report(aligned(rows), {"latents": {**found, "stds": stds.tolist()}})


def _save_grid(
    path: Path, autoencoder: Autoencoder, images: ImageSet, order: np.ndarray
) -> dict[str, list[str]]:
    """Write a picture of originals above reconstructions, in three groups.

    Args:
        order: numbers of all images, best first.

    Returns:
        Names of the images in each group.
    """
    columns = min(GRID_COLUMNS, max(len(order) // len(GROUPS), 1))
    middle = (len(order) - columns) // 2
    groups = (order[:columns], order[middle : middle + columns], order[-columns:])
    pictures, names = [], {}
    for title, numbers in zip(GROUPS, groups, strict=True):
        originals = images.values(numbers)
        pair = originals, reconstruct(autoencoder, originals, images.pixels)[1]
        pictures.append(grid([images.pixels.to_rgb(one) for one in pair]))
        names[title] = [images.where(number) for number in numbers]
    gap = np.full((GROUP_GAP, *pictures[0].shape[1:]), 255, np.uint8)
    best, median, worst = pictures
    save_png(path, np.concatenate([best, gap, median, gap, worst]), names)
    return names
