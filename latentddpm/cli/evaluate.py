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
from latentddpm.cli.evaluate_options import check_used, drawing_options
from latentddpm.cli.options import FOLDER, data_option, lora_option, model_option
from latentddpm.cli.usage import command
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.pipeline.settings import facts_of
from latentddpm.utils.files import write_json
from latentddpm.utils.startup import import_keras

RESULTS = "evaluation.json"
COMPARED = "training"
"""The split that generated images are compared with; those it leaves are their floor."""


@click.command()
@model_option
@lora_option
@data_option
@click.option(
    "--autoencoder", is_flag=True, help="PSNR, SSIM and more of reconstructions [default]."
)
@click.option("--nll", is_flag=True, help="Bits per dimension of the latents, a bound.")
@click.option("--latents", is_flag=True, help="Pictures of where the latents lie.")
@click.option(
    "--generator", is_flag=True, help="Generated images against training images, by features."
)
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
    help="all, training, validation: as a training run with the next two splits them "
    f"[default: all; {COMPARED} with --generator].",
)
@click.option("--validation-fraction", type=float, default=0.05, show_default=True)
@click.option("--validation-by", default="path", show_default=True, help="path or caption.")
@click.option("--limit", type=click.IntRange(1), help="Images at most, spread evenly over all.")
@click.option(
    "--resolution", type=click.IntRange(1), help="Side in pixels [default: the model's own]."
)
@click.option(
    "--caption-template",
    "caption_templates",
    multiple=True,
    metavar="T",
    help="As in data.caption_templates; may be given repeatedly.",
)
@click.option(
    "--nll-timesteps",
    type=click.IntRange(2),
    default=50,
    show_default=True,
    help="At most so many an image; all, with as many as the schedule has.",
)
@click.option("--projection", default="tsne", show_default=True, help="Of --latents: tsne, umap.")
@click.option(
    "--group-by",
    metavar="COLUMN",
    help="Of the metadata, colours --latents [default: the first word of the caption].",
)
@click.option("--out", type=FOLDER, help=f"Folder for {RESULTS}, pictures and the catalog.")
@click.option("--json", "machine", is_flag=True, help="JSON on stdout instead of tables.")
@drawing_options
@command
def evaluate(
    model: Path,
    loras: tuple[str, ...],
    data: str,
    autoencoder: bool,
    nll: bool,
    latents: bool,
    generator: bool,
    extractor: str | None,
    perceptual: str | None,
    split: str | None,
    validation_fraction: float,
    validation_by: str,
    limit: int | None,
    resolution: int | None,
    caption_templates: tuple[str, ...],
    nll_timesteps: int,
    projection: str,
    group_by: str | None,
    out: Path | None,
    machine: bool,
    quiet: bool,
    num_images: int,
    seed: int,
    sweep: tuple[str, ...],
    batch_size: int,
    clip: Path | None,
    **setting: Any,
) -> None:
    """Measure a model on images.

    --generator draws images of their captions, keeps them in --out, and measures how near they
    come to the training images, beside what images held back from training reach.
    Nothing is downloaded unless --extractor or --perceptual ask for it.
    """
    from latentddpm.config import AutoencoderRun
    from latentddpm.config_file import load_config
    from latentddpm.evaluation.sweep import parse_sweep, settings_of
    from latentddpm.generation.loras import apply_loras, read_loras

    autoencoder = autoencoder or not (nll or latents or generator)
    parts = {"autoencoder": autoencoder, "nll": nll, "latents": latents, "generator": generator}
    check_used({part for part, wanted in parts.items() if wanted})
    if generator and (out is None or extractor is None):
        raise UserError("--generator: needs --extractor, and --out, where its images are kept")
    if generator and split not in (None, COMPARED):
        raise UserError(f"--split {split}: --generator compares with the {COMPARED} images")
    split = split or (COMPARED if generator else "all")
    if latents and out is None:
        raise UserError("--latents: leaves pictures; name a folder with --out")
    if out is not None and out.is_file():
        raise UserError(f"--out {out}: is a file; name a folder")
    changes = read_loras(loras)
    folder = read_model_folder(model)
    size = _size(folder, resolution)
    splitting = {"fraction": validation_fraction, "by": validation_by}
    overrides = [f"data.validation_{key}={value}" for key, value in splitting.items()]
    splits = load_config(AutoencoderRun, None, tuple(overrides)).data
    facts = facts_of(folder) if nll or generator else None
    if facts:
        facts.check_size(*size)
    settings = []
    if generator:
        given = {**setting, "height": size[0], "width": size[1]}
        settings = settings_of(facts, parse_sweep(sweep), **given)
    import_keras()
    from latentddpm.evaluation.autoencoder import evaluate_autoencoder
    from latentddpm.evaluation.clip_towers import load_clip_towers
    from latentddpm.evaluation.extractors import load_extractor
    from latentddpm.evaluation.generator import evaluate_generator
    from latentddpm.evaluation.images import open_images
    from latentddpm.evaluation.likelihood import evaluate_bound
    from latentddpm.evaluation.projection import project_latents
    from latentddpm.interop.vgg import load_perceptual
    from latentddpm.models.archive import load_archive, weights_digest
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

    whole = LatentDiffusion.load(folder.path) if nll or generator else None
    if changes:
        apply_loras(whole, changes)
    vae = whole.autoencoder if whole else load_archive(folder.file("vae"), Autoencoder)
    (whole.facts if whole else vae).check_size(*size)
    features = load_extractor(extractor) if extractor else None
    if features:
        features.check_size(*size)
    distance = load_perceptual(perceptual) if perceptual else None
    towers = load_clip_towers(clip) if clip else None

    def tell(text: str) -> None:
        if not machine:
            click.echo(text)

    def keep(part: str, values: dict[str, Any]) -> None:
        results[part] = values
        if out is not None:
            write_json(out / RESULTS, results)

    with tempfile.TemporaryDirectory() as scratch:
        catalog = (out or Path(scratch)) / "catalog"
        images = open_images(
            data, catalog, size, split=split, data=splits, limit=limit, quiet=quiet
        )
        conditions = {
            "model": str(model),
            "model_digest": folder.digest,
            "loras": whole.loras if whole else [],
            "data": data,
            "split": split,
            "images": len(images),
            "height": size[0],
            "width": size[1],
            "extractor": features and {"label": features.label, "digest": features.digest},
            "perceptual": distance
            and {"label": distance.label, "digest": weights_digest(distance)},
        }
        results = {"latentddpm": __version__, **conditions}
        tell(_heading(conditions))

        if nll:
            report = evaluate_bound(
                whole,
                images,
                caption_templates=caption_templates,
                num_timesteps=nll_timesteps,
                seed=seed,
                out=out,
                quiet=quiet,
            )
            tell(f"\nbound\n{report.text}")
            keep("bound", report.values)
        if latents:
            report = project_latents(
                vae,
                images,
                out,
                projection=projection,
                group_by=group_by,
                seed=seed,
                quiet=quiet,
            )
            tell(f"\nlatents\n{report.text}")
            keep("latents", report.values)
        if autoencoder:
            report = evaluate_autoencoder(
                vae,
                images,
                perceptual=distance,
                extractor=features,
                out=out,
                quiet=quiet,
            )
            tell(f"\nautoencoder\n{report.text}")
            keep("autoencoder", report.values)
        if generator:
            tell("\ngenerator")
            values = evaluate_generator(
                whole,
                settings,
                images,
                splits.model_copy(update={"caption_templates": list(caption_templates)}),
                features,
                out,
                num_images=num_images,
                towers=towers,
                seed=seed,
                batch_size=batch_size,
                quiet=quiet,
                tell=tell,
            )
            keep("generator", values)
    if machine:
        click.echo(json.dumps(results, indent=2, ensure_ascii=False))


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
        *(
            f"with {lora['file']}:{lora['scale']:g} (SHA-256 {lora['sha256'][:12]})"
            for lora in facts["loras"]
        ),
        f"on {facts['images']} images of {facts['data']} (split {facts['split']}) "
        f"at {height}×{width}",
    ]
    for kind in ("extractor", "perceptual"):
        if facts[kind]:
            label, digest = facts[kind]["label"], facts[kind]["digest"][:12]
            lines.append(f"{kind}: {label}, weights {digest}")
    return "\n".join(lines)
