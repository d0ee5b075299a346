"""Command that evaluates a model: `evaluate`."""

from __future__ import annotations

import json
from typing import Any

import click

from latentddpm.choices import PROJECTIONS
from latentddpm.cli.evaluate_options import check_used, default_parts, drawing_options
from latentddpm.cli.help import completion
from latentddpm.cli.options import (
    FOLDER,
    data_option,
    lora_option,
    model_option,
    precision_option,
)
from latentddpm.cli.usage import command


@click.command()
@model_option
@lora_option
@precision_option
@data_option
@click.option(
    "--autoencoder", is_flag=True, help="PSNR, SSIM and more of reconstructions [default]."
)
@click.option(
    "--nll",
    is_flag=True,
    help="Variational bound, in bits per dimension [default of a model of pixels].",
)
@click.option(
    "--denoise",
    is_flag=True,
    help="Estimates of clean images at eight noise levels, and their errors.",
)
@click.option("--latents", is_flag=True, help="Pictures of the latents, projected to the plane.")
@click.option(
    "--generator", is_flag=True, help="Generated images against training images, by features."
)
@click.option(
    "--extractor",
    metavar="NAME",
    help="Network of the features that are compared: inception, inception:FILE, hed, FILE.keras.",
)
@click.option(
    "--perceptual", metavar="NAME", help="Distance between two images: imagenet, hed, or a file."
)
@click.option(
    "--split",
    shell_complete=completion.among("all", "training", "validation"),
    help="all, training, validation: split as in a training run with the next two options "
    "[default: training with --generator, else validation with --denoise, else all].",
)
@click.option(
    "--validation-fraction", type=float, help="[default: that of the model's run; else 0.05]."
)
@click.option(
    "--validation-by",
    shell_complete=completion.among("path", "caption"),
    help="path or caption [default: that of the model's run; else path].",
)
@click.option("--limit", type=click.IntRange(1), help="Images at most, spread evenly over all.")
@click.option(
    "--resolution", type=click.IntRange(1), help="Side in pixels [default: the model's own]."
)
@click.option(
    "--caption-template",
    "caption_templates",
    multiple=True,
    metavar="T",
    help="As in data.caption_templates; may be given repeatedly [default: those of the model's "
    "run].",
)
@click.option(
    "--nll-timesteps",
    type=click.IntRange(2),
    default=50,
    show_default=True,
    help="Timesteps per image, at most; the schedule's number for all of them.",
)
@click.option(
    "--projection",
    default="tsne",
    show_default=True,
    shell_complete=completion.among(*PROJECTIONS),
    help="Of --latents: tsne, umap.",
)
@click.option(
    "--group-by",
    metavar="COLUMN",
    help="Metadata column that colours --latents [default: the first word of the caption].",
)
@click.option("--out", type=FOLDER, help="Folder for evaluation.json, pictures and the catalog.")
@click.option("--json", "machine", is_flag=True, help="JSON on stdout instead of tables.")
@drawing_options
@command
def evaluate(
    autoencoder: bool,
    nll: bool,
    denoise: bool,
    latents: bool,
    generator: bool,
    machine: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Evaluate a model on images.

    --generator generates images of the training captions, keeps them in --out, and compares them
    with the training images; validation images are compared too, as the floor.
    Nothing is downloaded unless --extractor or --perceptual ask for it.
    """
    from latentddpm.evaluation.evaluate import evaluate_model
    from latentddpm.evaluation.plan import plan_evaluation

    wanted = {
        "autoencoder": autoencoder,
        "nll": nll,
        "denoise": denoise,
        "latents": latents,
        "generator": generator,
    }
    parts = frozenset(part for part in wanted if wanted[part]) or default_parts(options["model"])
    check_used(set(parts))

    def tell(text: str) -> None:
        if not machine:
            click.echo(text)

    results = evaluate_model(plan_evaluation(parts, options), tell, quiet)
    if machine:
        click.echo(json.dumps(results, indent=2, ensure_ascii=False))
