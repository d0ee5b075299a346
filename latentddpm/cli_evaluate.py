"""`latentddpm evaluate`: which parts of a model are measured, on which images, by what.

Each part is one function of `evaluation` that gives a `Report`; here options become its
arguments, and the reports a table and a file.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click

from latentddpm import __version__
from latentddpm.errors import UserError
from latentddpm.files import write_json
from latentddpm.modelfolder import ModelFolder, read_model_folder
from latentddpm.startup import import_keras
from latentddpm.usage import DATA_HELP, FOLDER, command

RESULTS = "evaluation.json"


@click.command()
@click.option("--model", type=FOLDER, required=True, help="Model folder or ready model.")
@click.option("--data", required=True, metavar="PLACE", help=DATA_HELP)
@click.option(
    "--autoencoder", is_flag=True, help="PSNR, SSIM and more of reconstructions [default]."
)
@click.option("--nll", is_flag=True, help="Bits per dimension of the latents, a bound.")
@click.option(
    "--extractor",
    metavar="NAME",
    help="Of features to compare sets of images by: inception, inception:FILE, hed, FILE.keras.",
)
@click.option(
    "--perceptual", metavar="NAME", help="Distance between two images: imagenet, hed, or a file."
)
@click.option(
    "--split",
    default="all",
    show_default=True,
    help="all, training, validation: as a training run with the next two splits them.",
)
@click.option("--validation-fraction", type=float, default=0.05, show_default=True)
@click.option("--validation-by", default="path", show_default=True, help="path or caption.")
@click.option("--limit", type=click.IntRange(1), help="Images at most, spread evenly over all.")
@click.option("--resolution", type=int, help="Side in pixels [default: the model's own].")
@click.option(
    "--caption-template",
    "caption_templates",
    multiple=True,
    metavar="T",
    help="As in data.caption_templates; the first caption of an image is taken.",
)
@click.option(
    "--nll-timesteps",
    type=click.IntRange(2),
    default=50,
    show_default=True,
    help="At most so many an image; all, with as many as the schedule has.",
)
@click.option("--out", type=FOLDER, help=f"Folder for {RESULTS}, pictures and the catalog.")
@click.option("--json", "machine", is_flag=True, help="JSON on stdout instead of tables.")
@command
def evaluate(
    model: Path,
    data: str,
    autoencoder: bool,
    nll: bool,
    extractor: str | None,
    perceptual: str | None,
    split: str,
    validation_fraction: float,
    validation_by: str,
    limit: int | None,
    resolution: int | None,
    caption_templates: tuple[str, ...],
    nll_timesteps: int,
    out: Path | None,
    machine: bool,
    quiet: bool,
) -> None:
    """Measure a model on images.

    Nothing is downloaded unless --extractor or --perceptual ask for it.
    """
    from latentddpm.config import AutoencoderRun, load_config

    folder = read_model_folder(model)
    size = _size(folder, resolution)
    splitting = {"fraction": validation_fraction, "by": validation_by}
    settings = [f"data.validation_{key}={value}" for key, value in splitting.items()]
    splits = load_config(AutoencoderRun, None, tuple(settings)).data
    import_keras()
    from latentddpm.evaluation.autoencoder import evaluate_autoencoder
    from latentddpm.evaluation.bound import evaluate_bound
    from latentddpm.evaluation.extractors import load_extractor
    from latentddpm.evaluation.images import open_images
    from latentddpm.interop.perceptual import load_perceptual
    from latentddpm.models.archive import load_archive
    from latentddpm.models.autoencoder import Autoencoder
    from latentddpm.models.digest import weights_digest
    from latentddpm.pipeline import LatentDiffusion

    whole = LatentDiffusion.load(model) if nll else None
    features = load_extractor(extractor) if extractor else None
    distance = load_perceptual(perceptual) if perceptual else None
    with tempfile.TemporaryDirectory() as scratch:
        catalog = (out or Path(scratch)) / "catalog"
        images = open_images(
            data, catalog, size, split=split, data=splits, limit=limit, quiet=quiet
        )
        reports = {}
        if nll:
            reports["bound"] = evaluate_bound(
                whole,
                images,
                caption_templates=caption_templates,
                num_timesteps=nll_timesteps,
                out=out,
                quiet=quiet,
            )
        if autoencoder or not reports:
            reports["autoencoder"] = evaluate_autoencoder(
                load_archive(folder.file("vae"), Autoencoder),
                images,
                perceptual=distance,
                extractor=features,
                out=out,
                quiet=quiet,
            )
    facts = {
        "model": str(model),
        "model_digest": folder.digest,
        "data": data,
        "split": split,
        "images": len(images),
        "height": size[0],
        "width": size[1],
        "extractor": features and {"label": features.label, "digest": features.digest},
        "perceptual": distance and {"label": distance.label, "digest": weights_digest(distance)},
    }
    results = {"latentddpm": __version__, **facts}
    results |= {name: report.values for name, report in reports.items()}
    if out is not None:
        write_json(out / RESULTS, results)
    if machine:
        click.echo(json.dumps(results, indent=2, ensure_ascii=False))
        return
    click.echo(_heading(facts))
    for name, report in reports.items():
        click.echo(f"\n{name}\n{report.text}")


def _size(folder: ModelFolder, resolution: int | None) -> tuple[int, int]:
    if resolution is not None:
        return resolution, resolution
    if folder.image_size is None:
        raise UserError(f"{folder.path}: names no image size; give --resolution")
    return folder.image_size


def _heading(facts: dict[str, Any]) -> str:
    """What all numbers below it stand on."""
    height, width = facts["height"], facts["width"]
    lines = [
        f"{facts['model']} (digest {facts['model_digest']})",
        f"on {facts['images']} images of {facts['data']} (split {facts['split']}) "
        f"at {height}×{width}",
    ]
    for kind in ("extractor", "perceptual"):
        if facts[kind]:
            label, digest = facts[kind]["label"], facts[kind]["digest"][:12]
            lines.append(f"{kind}: {label}, weights {digest}")
    return "\n".join(lines)
