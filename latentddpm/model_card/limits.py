"""Limits of a trained model, in sentences that follow from its numbers.

    epochs = steps · batch size / training images
    gap    = validation loss / training loss − 1, both at the end, the latter as a moving mean

A number that no training measures is named as not measured.
"""

from __future__ import annotations

from collections.abc import Iterator

from latentddpm.model_card.facts import DIFFUSION, RunFacts
from latentddpm.model_card.product import Product
from latentddpm.training.run.curves import MAIN, VALIDATION, smooth

FEW_IMAGES = 1000
"""Training images below which a model is called one of a small set."""
MANY_EPOCHS = 100
"""Average number of times that each image was seen, from which copies are to be expected."""
GAP = 0.1
"""Validation loss over training loss, less one, that is called learning by heart."""


def limits(product: Product, runs: list[RunFacts]) -> Iterator[str]:
    """Limits of a product, a sentence or two each.

    Args:
        product: as it was read.
        runs: that trained it.
    """
    if not runs:
        yield (
            "How it was trained is not known here: the card was written without the folder of "
            "its run."
        )
    for run in runs:
        yield from _of_run(run, len(runs) > 1)
    if product.draws:
        yield from _of_drawing(product, any(run.start for run in runs))
        yield (
            "Not measured by the training: the distance of its pictures to real ones (Fréchet, "
            "precision, recall), how many are near copies of training images, what it draws of "
            "words that it never saw, and what its images lean to. `latentddpm evaluate "
            "--generator` measures the first two."
        )
        yield "No filter looks at what it draws."


def _of_run(run: RunFacts, several: bool) -> Iterator[str]:
    what = "the UNet" if run.command == DIFFUSION else "the autoencoder"
    of = f"Of {what}: " if several else ""
    data = run.data
    if data is not None and data.training is not None:
        few = " A small set: expect little beyond it." if data.training < FEW_IMAGES else ""
        if run.start:
            yield f"{of}it began as `{run.start}`, and learned from {data.training:,} images more."
        else:
            yield f"{of}it learned from {data.training:,} images and knows nothing else.{few}"
    if (epochs := run.epochs) is not None:
        heart = (
            " Pictures close to training images are to be expected."
            if epochs >= MANY_EPOCHS and run.command == DIFFUSION
            else ""
        )
        yield f"{of}each training image was seen {epochs:,.3g} times on average.{heart}"
    steps, planned = run.steps, run.setting("training", "num_steps")
    if steps and planned and steps < planned - (run.setting("training", "log_every") or 1):
        yield f"{of}the training ended at step {steps:,} of {planned:,}."
    yield from _of_losses(run, of)


def _of_losses(run: RunFacts, of: str) -> Iterator[str]:
    """Sentences on training and validation loss."""
    if VALIDATION + MAIN not in run.curves:
        yield f"{of}nothing was validated, so whether it learned by heart is not known."
        return
    steps, values = run.curves[VALIDATION + MAIN]
    if MAIN in run.curves:
        training = float(smooth(run.curves[MAIN].values)[-1])
        gap = float(values[-1]) / training - 1 if training > 0 else 0.0
        verdict = (
            f"{gap:.0%} above it, so part of the images is learned by heart"
            if gap > GAP
            else "no sign of learning by heart, though the loss alone finds no copies"
        )
        yield (
            f"{of}the validation loss ends at {values[-1]:.4g}, the training loss at "
            f"{training:.4g}: {verdict}."
        )
    if (best := int(values.argmin())) < len(values) - 1:
        yield (
            f"{of}the validation loss was lowest at step {steps[best]:,} ({values[best]:.4g}) "
            "and rose after it."
        )
    if VALIDATION + "psnr" in run.curves:
        psnr = run.curves[VALIDATION + "psnr"].values[-1]
        yield f"{of}validation images come back with a PSNR of {psnr:.3g} dB; the rest is lost."


def _of_drawing(product: Product, trained_on: bool) -> Iterator[str]:
    if product.image_size:
        size = "×".join(map(str, product.image_size))
        unit = "samples" if len(product.image_size) == 1 else "pixels"
        yield f"It was trained at {size} {unit}; other sizes are a guess."
    if product.text:
        words = "" if trained_on else " Words that no caption has mean nothing to it."
        yield f"Prompts that read like its captions work best.{words}"
    for condition in product.conditions:
        if not condition.null:
            yield f"The condition {condition.name} has to be given with every image."
