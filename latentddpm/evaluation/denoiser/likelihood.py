"""Variational bound of a model on images, in bits per dimension of their latents or pixels.

    image ─► a sample x0 of the posterior, as in training ─► prior + KL terms + L_0

by `diffusion.likelihood`, with the image's first caption for a model that takes prompts. All
images use the same bands of timesteps. In each band an image draws one timestep, and its own
noise. So the bounds of the images are independent, and their spread gives the standard error.

The bound is one of a density, so it depends on the scale of the latents. Its distance from the
entropy of the posterior does not:

    rate = bound − H(q(x0 | image)) ≥ KL(q(x0 | image) ‖ p(x0)),

the bits of information about an image that its latents carry (Vahdat et al. 2021, §3).

A model of pixels has no posterior to sample from. Its pixels are levels, and the bound is one of
their probability: the bits an image costs, and so the rate itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.diffusion.likelihood import (
    BITS,
    level_term,
    predicted_x0,
    prior_term,
    squared_errors,
    step_terms,
    timestep_bands,
)
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.evaluation.denoiser.told import ImagesTold, untold
from latentddpm.evaluation.images import ImageSet
from latentddpm.evaluation.report import Report, aligned, shown
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.autoencoder.tiling import encode
from latentddpm.models.precision import finite
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils import signals
from latentddpm.utils.figures import new_figure
from latentddpm.utils.files import atomic_path

BATCH = 32
PLOT = "bound.png"
VARIANCES = {"posterior": "σ² = β̃", "beta": "σ² = β"}
"""Keys of `step_terms`, with their names in the table."""


@dataclass(frozen=True)
class Measured:
    """Measurements of N images, at one timestep in each of K bands.

    Attributes:
        prior: prior term, bits per dimension, float64 (N,).
        entropy: of the posterior, bits per dimension, float64 (N,).
        timesteps: of the network's predictions, int64 (N, K).
        errors: mean (x0 − x̂0)² at these timesteps, float64 (N, K).
        level: L_0 of images whose pixels are levels, float64 (N,); NaN where it is that of a
            density, which follows from the error.
    """

    prior: np.ndarray
    entropy: np.ndarray
    timesteps: np.ndarray
    errors: np.ndarray
    level: np.ndarray


@signals.listening()
def evaluate_bound(
    model: LatentDiffusion,
    images: ImageSet,
    *,
    num_timesteps: int | None = None,
    seed: int = 0,
    out: Path | None = None,
    quiet: bool = False,
) -> Report:
    """Variational bound on the latents or pixels of images, in bits per dimension, with its terms.

    Args:
        model: with a UNet.
        images: at least 2.
        num_timesteps: for each image at most, at least 2; None for all T.
        seed: of posterior samples, timesteps and noise.
        out: folder for a plot of the terms over the timesteps; None for no plot.
        quiet: show no progress.

    Returns:
        Report with the numbers of `summary`.

    Raises:
        UserError: fewer than 2 images or timesteps, or captions that do not fit.
        signals.Stopped: a signal came.
    """
    if len(images) < 2:
        raise UserError(f"the bound and its standard error need 2 images, not {len(images)}")
    factor = model.autoencoder.downsample_factor
    shape = (*(side // factor for side in images.size), model.autoencoder.latent_channels)
    edges = timestep_bands(model.schedule, num_timesteps)
    told = ImagesTold(model, images)
    network = finite(model.unet, "denoiser")
    parts = []
    for number, pixels in enumerate(images.batches(BATCH, "bound", quiet)):
        batch = np.arange(len(pixels)) + number * BATCH
        generators = [np.random.default_rng((seed, int(row))) for row in images.rows[batch]]
        parts.append(_measure(model, network, pixels, told.inputs(batch), edges, generators))
    measured = Measured(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    values = {
        "unit": "bits per dimension",
        "images": len(images),
        "dimensions": int(np.prod(shape)),
        "levels": _levels(model),
        "timesteps_per_image": len(edges) - 1,
        "seed": seed,
        **told.values,
        **summary(model.schedule, edges, measured),
    }
    text = _table(values)
    if out is not None:
        text += f"\n\n{_plot(out / PLOT, values['terms'])}"
    return Report(text, values)


def _measure(
    model: LatentDiffusion,
    network: Callable[[dict[str, Any]], Any],
    pixels: np.ndarray,
    told: dict[str, np.ndarray],
    edges: np.ndarray,
    generators: list[np.random.Generator],
) -> tuple[np.ndarray, ...]:
    """Fields of `Measured` for one batch; image k draws from generators[k]."""

    def normal() -> np.ndarray:
        return np.stack([draw.standard_normal(mean.shape[1:], "float32") for draw in generators])

    def denoise(noisy_latents: Any, timesteps: Any) -> Any:
        return network({"noisy_latents": noisy_latents, "timesteps": timesteps, **told})

    levels = _levels(model)
    mean, logvar = encode(model.autoencoder, model.pixels.to_images(pixels))
    latents = np.asarray(model.autoencoder.to_latents(mean, logvar, normal()))
    entropy, level = np.zeros(len(latents)), np.full(len(latents), np.nan)
    if levels is None:
        spread = logvar.mean(axis=(1, 2, 3), dtype="float64") / 2
        spread += model.autoencoder.latent_space.log_scale
        entropy = BITS * (np.log(2 * np.pi * np.e) / 2 + spread)
    timesteps = np.stack([draw.integers(edges[:-1], edges[1:]) for draw in generators])
    errors = np.empty(timesteps.shape)
    for band, chosen in enumerate(timesteps.T.astype("int32")):
        signals.check()
        predicted = predicted_x0(model.schedule, denoise, latents, normal(), chosen)
        errors[:, band] = squared_errors(latents, predicted)
        if band == 0 and levels is not None:
            level = level_term(model.schedule, latents, predicted, levels)
    return prior_term(model.schedule, latents), entropy, timesteps, errors, level


def _levels(model: LatentDiffusion) -> int | None:
    """Levels of a model's pixels; None for a model of latents, which are continuous."""
    if not isinstance(model.autoencoder, PixelSpace):
        return None
    if model.pixels.levels is None:
        raise UserError(
            f"nll: this model's pixels are {model.pixels}: no step between them, of which the "
            "bound would be the probability; expected 8 or 16 bits"
        )
    return model.pixels.levels


def summary(schedule: NoiseSchedule, edges: np.ndarray, measured: Measured) -> dict[str, Any]:
    """Bound and its terms, means over the images, in bits per dimension.

    Args:
        schedule: of the model.
        edges: of the bands, see `timestep_bands`. The timestep of a band stands for all of them.
        measured: of the images.

    Returns:
        "prior"; for each key of `VARIANCES` a dictionary of "kl", "l0", "bound",
        "standard_error" and "rate"; and "terms", for each band its "first" and "last" timestep
        and its mean term for each key of `VARIANCES`.
    """
    widths = np.diff(edges)
    values: dict[str, Any] = {"prior": float(measured.prior.mean())}
    bands = [{"first": int(a), "last": int(b) - 1} for a, b in pairwise(edges)]
    for name, (offset, slope) in step_terms(schedule).items():
        terms = offset[measured.timesteps] + slope[measured.timesteps] * measured.errors
        terms[:, 0] = np.where(np.isnan(measured.level), terms[:, 0], measured.level)
        l0, kl = terms[:, 0], terms[:, 1:] @ widths[1:]
        bound = measured.prior + kl + l0
        values[name] = {
            "kl": float(kl.mean()),
            "l0": float(l0.mean()),
            "bound": float(bound.mean()),
            "standard_error": float(bound.std(ddof=1) / np.sqrt(len(bound))),
            "rate": float((bound - measured.entropy).mean()),
        }
        for band, term in zip(bands, terms.mean(axis=0), strict=True):
            band[name] = float(term)
    return {**values, "terms": bands}


def _table(values: dict[str, Any]) -> str:
    columns = [values[name] for name in VARIANCES]
    rows = [["bits per dimension", *VARIANCES.values()]]
    rows.append(["prior", *[shown(values["prior"])] * len(columns)])
    levels = values["levels"]
    kind = "probability" if levels else "density"
    for key, label in (("kl", "KL terms"), ("l0", f"L_0 ({kind})"), ("bound", "bound")):
        rows.append([label, *(shown(column[key]) for column in columns)])
    rows.append(["  ± standard error", *(shown(column["standard_error"]) for column in columns)])
    last = f"pixels of {levels} levels: the bound is one of their probability"
    if not levels:
        rates = (shown(column["rate"]) for column in columns)
        rows.append(["rate: bound − H(posterior)", *rates])
        last = "continuous latents: the bound is one of a density and may be negative"
    return (
        f"{aligned(rows)}\n"
        f"{values['dimensions']} dimensions, {values['timesteps_per_image']} timesteps an image; "
        f"{untold(values)}\n"
        f"{last}"
    )


def _plot(path: Path, bands: list[dict[str, Any]]) -> str:
    """Write a plot of the terms over the timesteps as a PNG, and return a message about it."""
    try:
        figure = new_figure(6, 3.6)
    except UserError as error:
        return f"no {path.name}: {error}"
    axes = figure.subplots()
    middle = [(band["first"] + band["last"]) / 2 for band in bands[1:]]
    for name, label in VARIANCES.items():
        axes.plot(middle, [band[name] for band in bands[1:]], label=label)
    axes.set(xlabel="timestep", ylabel="KL term (bits per dimension)", xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    return f"{path}: the KL terms over the timesteps"
