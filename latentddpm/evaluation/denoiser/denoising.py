"""Denoising of real images: the estimate x̂0 from noisy latents, level by level.

    image ─► x0, the mode of its latents ─► x_t = signal · x0 + noise · ε ─► network ─► x̂0 ─► image

The levels are the middles of equal parts of the timesteps, t = (k + ½) T / 8, in flow matching
σ = (k + ½) / 8: each stands for an eighth of what is trained on. x̂0 follows from what the network
predicts (`ForwardProcess.predict_x0`), told the image's first caption and its conditions where the
model takes them, without guidance. The best network answers E[x0 | x_t], so the least RMSE of a
level is the posterior's standard deviation: 0 without noise, that of the data where all is noise.

An estimate is compared with the image as `evaluate --autoencoder` compares reconstructions. For a
model of latents that holds the autoencoder's own error, which the row `clean` gives (x̂0 = x0);
the error of the latents does not.

ε is a function of the seed, the image and the level, whatever images are measured together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentddpm.diffusion.likelihood import predicted_x0, squared_errors
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.evaluation.denoiser.told import ImagesTold, untold
from latentddpm.evaluation.images import ImageSet
from latentddpm.evaluation.metrics.by_class import members
from latentddpm.evaluation.metrics.similarity import psnr, rmse
from latentddpm.evaluation.report import Report, aligned, plain, shown
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.autoencoder.tiling import decode, encode
from latentddpm.models.precision import finite
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils import signals
from latentddpm.utils.images.labels import written
from latentddpm.utils.pixels import grid, save_png

LEVELS = 8
BATCH = 16
PICTURE = "denoise.png"
SHOWN = 8
NARROWEST, WIDEST = 64, 128
"""Widths of an image in the picture, in pixels."""
GAP = 8  # pixels between the images
COLUMNS = {"rmse": "RMSE (of 255)", "psnr": "PSNR (dB)", "rmse_latents": "RMSE (latents)"}


def noise_levels(schedule: ForwardProcess, count: int = LEVELS) -> np.ndarray:
    """Timesteps of noise levels, evenly spread: the middles of equal parts.

    Args:
        schedule: of the denoiser.
        count: of the levels, at least 1.

    Returns:
        Increasing timesteps, float32 (count,) of a flow schedule, else int32; fewer where the
        schedule has fewer timesteps.

    Example:
        >>> noise_levels(latentddpm.NoiseSchedule())
        array([ 62, 187, 312, 437, 562, 687, 812, 937], dtype=int32)
    """
    middles = (np.arange(count) + 0.5) / count * schedule.num_train_timesteps
    return np.unique(middles.astype("float32" if schedule.continuous else "int32"))


@signals.listening()
def evaluate_denoising(
    model: LatentDiffusion,
    images: ImageSet,
    *,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
) -> Report:
    """Errors of the estimates of clean images at several noise levels.

    Args:
        model: with a UNet.
        images: at least 1.
        seed: of the noise, and of the choice of the images that are shown.
        out: folder for a picture of some images, their noisy versions and the estimates; None for
            no picture.
        quiet: show no progress.

    Returns:
        Report with "clean", the errors of the reconstruction (None for a model of pixels), and
        "levels": for each its "timestep", "signal_rate", "noise_rate", and the errors "rmse",
        "psnr" and, for a model of latents, "rmse_latents", means over the images; for a model that
        is told one class "classes": word → the number of its "images", and their mean errors over
        all levels.

    Raises:
        UserError: captions that do not fit.
        signals.Stopped: a signal came.
    """
    denoising = _Denoising(model, images, seed)
    timesteps = denoising.timesteps
    each: list[list[dict[str, np.ndarray]]] = [[] for _ in range(1 + len(timesteps))]
    done = 0
    for values in images.batches(BATCH, "denoise", quiet):
        numbers = np.arange(done, done := done + len(values))
        latents = denoising.latents(values)
        estimates = [
            latents,
            *(denoising.at(k, numbers, latents)[1] for k in range(len(timesteps))),
        ]
        for errors, estimate in zip(each, estimates, strict=True):
            errors.append(denoising.errors(values, latents, estimate))
    joined = [{name: np.concatenate([e[name] for e in one]) for name in one[0]} for one in each]
    clean, *levels = (
        {name: plain(errors.mean()) for name, errors in level.items()} for level in joined
    )
    bars = model.schedule.alphas_cumprod_at(timesteps)
    scales = np.array([model.schedule.scale(bar) for bar in bars])
    rates = np.stack([scales * np.sqrt(bars), scales * np.sqrt(1 - bars)], axis=1).tolist()
    values = {
        "images": len(images),
        "seed": seed,
        **denoising.told.values,
        "clean": None if denoising.of_pixels else clean,
        "levels": [
            {"timestep": t, "signal_rate": signal, "noise_rate": noise, **level}
            for t, (signal, noise), level in zip(timesteps.tolist(), rates, levels, strict=True)
        ],
    }
    if images.class_name:
        values["classes"] = _classes(images, joined[1:])
    text = _table(values)
    if images.class_name:
        text += f"\n\n{_class_table(images.class_name, values['classes'])}"
    if out is not None:
        count = min(SHOWN, len(images))
        numbers = np.sort(np.random.default_rng(seed).choice(len(images), count, replace=False))
        values["shown"] = [images.where(number) for number in numbers]
        save_png(out / PICTURE, _picture(denoising, numbers, values), {"shown": values["shown"]})
        text += f"\n\n{out / PICTURE}: {count} images, noisy above x̂0"
    return Report(text, values)


class _Denoising:
    """Noisy latents of images of a set, and the model's estimates of the clean ones."""

    def __init__(self, model: LatentDiffusion, images: ImageSet, seed: int) -> None:
        self.model, self.images, self.seed = model, images, seed
        self.told = ImagesTold(model, images)
        self.timesteps = noise_levels(model.schedule)
        self.of_pixels = isinstance(model.autoencoder, PixelSpace)
        self._network = finite(model.unet, "denoiser")

    def latents(self, values: np.ndarray) -> np.ndarray:
        """x0 of images, the mode of the posterior, float32 (B, h, w, c)."""
        autoencoder = self.model.autoencoder
        mean, _ = encode(autoencoder, self.images.pixels.to_images(values))
        return np.asarray(autoencoder.to_latents(mean))

    def at(
        self, level: int, numbers: np.ndarray, latents: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """x_t and x̂0 of the images `numbers` of the set, whose x0 are `latents`, at a level."""
        signals.check()
        told = self.told.inputs(numbers)
        rows = self.images.rows[numbers].tolist()
        noise = np.stack([self._noise(row, level, latents.shape[1:]) for row in rows])
        timesteps = np.repeat(self.timesteps[level], len(latents))

        def denoise(noisy_latents: Any, timesteps: Any) -> Any:
            return self._network({"noisy_latents": noisy_latents, "timesteps": timesteps, **told})

        noisy_latents = self.model.schedule.add_noise(latents, noise, timesteps)
        return noisy_latents, predicted_x0(self.model.schedule, denoise, latents, noise, timesteps)

    def errors(
        self, values: np.ndarray, latents: np.ndarray, estimate: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Errors of an estimate x̂0 of each image, float64 (B,), by the keys of `COLUMNS`."""
        pixels = self.images.pixels
        pair = [pixels.to_levels(one) for one in (self.decoded(estimate), values)]
        found = {"rmse": rmse(*pair), "psnr": psnr(*pair)}
        if not self.of_pixels:
            found["rmse_latents"] = np.sqrt(squared_errors(latents, estimate))
        return found

    def decoded(self, latents: np.ndarray) -> np.ndarray:
        """Values of latents, in the format of the images."""
        return self.images.pixels.from_images(decode(self.model.autoencoder, latents))

    def _noise(self, row: int, level: int, shape: Sequence[int]) -> np.ndarray:
        return np.random.default_rng((self.seed, row, level)).standard_normal(shape, "float32")


def _table(values: dict[str, Any]) -> str:
    names = [name for name in COLUMNS if name in values["levels"][0]]
    rows = [["timestep", "signal", "noise", *(COLUMNS[name] for name in names)]]
    clean = values["clean"] and {"signal_rate": 1.0, "noise_rate": 0.0, **values["clean"]}
    for level in filter(None, (clean, *values["levels"])):
        rates = (f"{level[name]:.3f}" for name in ("signal_rate", "noise_rate"))
        errors = (shown(np.inf if level[name] is None else level[name]) for name in names)
        rows.append([_timestep(level) or "clean", *rates, *errors])
    return (
        f"{aligned(rows)}\n"
        "x̂0 of one pass of the network at each level, without guidance, against the image; "
        f"means over images\nseed {values['seed']}; {untold(values)}"
    )


def _classes(
    images: ImageSet, levels: Sequence[dict[str, np.ndarray]]
) -> dict[str, dict[str, Any]]:
    """Number of the images of each class, and their mean errors over all levels."""
    words = [one.get(images.class_name) for one in images.told()]
    return {
        word: {
            "images": len(own),
            **{
                name: plain(np.mean([level[name][own].mean() for level in levels]))
                for name in levels[0]
            },
        }
        for word, own in members(words).items()
    }


def _class_table(name: str, classes: dict[str, dict[str, Any]]) -> str:
    names = [key for key in COLUMNS if key in next(iter(classes.values()), {})]
    rows = [[name, "n", *(COLUMNS[key] for key in names)]]
    for word, entry in classes.items():
        errors = (shown(np.inf if entry[key] is None else entry[key]) for key in names)
        rows.append([word, str(entry["images"]), *errors])
    return f"{aligned(rows)}\nmeans over the images of a class and all levels"


def _timestep(level: dict[str, Any]) -> str:
    return f"{level['timestep']:g}" if "timestep" in level else ""


def _picture(denoising: _Denoising, numbers: np.ndarray, values: dict[str, Any]) -> np.ndarray:
    """Picture of images: a column for each level, in it the noisy image above the estimate.

    In the first column is the image above its reconstruction, or above nothing for a model of
    pixels. Labels are the timesteps and the PSNR over all images.
    """
    pixels = denoising.images.pixels
    originals = denoising.images.values(numbers)
    latents = denoising.latents(originals)
    pairs = [(originals, denoising.decoded(latents))]
    for level in range(len(denoising.timesteps)):
        pairs.append(tuple(map(denoising.decoded, denoising.at(level, numbers, latents))))
    columns = [[_sized(pixels.to_rgb(one)) for one in pair] for pair in pairs]
    if denoising.of_pixels:
        columns[0][1] = np.full_like(columns[0][1], 255)
    width = columns[0][0].shape[2]
    labels = [("clean", _decibels(values["clean"]))]
    labels += [(f"t={_timestep(level)}", _decibels(level)) for level in values["levels"]]
    parts = [
        grid([np.stack([written(text, width) for text in line])])
        for line in zip(*labels, strict=True)
    ]
    for one in range(len(numbers)):
        parts.append(np.full((GAP, parts[0].shape[1], 3), 255, np.uint8))
        parts.append(grid([np.stack([column[row][one] for column in columns]) for row in (0, 1)]))
    return np.concatenate(parts)


def _decibels(errors: dict[str, Any] | None) -> str:
    return f"{errors['psnr']:.1f} dB" if errors and errors["psnr"] is not None else ""


def _sized(pictures: np.ndarray) -> np.ndarray:
    """Pictures (N, H, W, 3) no wider than `WIDEST`, and enlarged by a whole number if small."""
    height, width = pictures.shape[1:3]
    if width <= WIDEST:
        factor = -(-NARROWEST // width)
        return pictures.repeat(factor, axis=1).repeat(factor, axis=2)
    size = WIDEST, max(round(height * WIDEST / width), 1)
    return np.stack(
        [
            np.asarray(Image.fromarray(one).resize(size, Image.Resampling.LANCZOS))
            for one in pictures
        ]
    )
