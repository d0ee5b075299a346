"""Captions of a run: whether there are any, and what is said where they are not used."""

from __future__ import annotations

from latentddpm.config import DiffusionRun
from latentddpm.data.captioning.rules import FILES, rule_lines, suggestion
from latentddpm.data.captions import Templates
from latentddpm.data.dataset import Dataset
from latentddpm.data.sources.metadata import TEXT
from latentddpm.errors import UserError
from latentddpm.training.plan.resolve import is_open

TEMPLATE = """--set 'data.caption_templates=["a photo of sks"]'"""
"""Example of a caption that all images share."""

TEMPLATES = (
    "a photo of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a photo of a clean {}",
    "a photo of a dirty {}",
    "a dark photo of the {}",
    "a photo of my {}",
    "a photo of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a photo of the {}",
    "a good photo of the {}",
    "a photo of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a photo of the clean {}",
    "a rendition of a {}",
    "a photo of a nice {}",
    "a good photo of a {}",
    "a photo of the nice {}",
    "a photo of the small {}",
    "a photo of the weird {}",
    "a photo of the large {}",
    "a photo of a cool {}",
    "a photo of a small {}",
)
"""Captions of images that have none, with the new word (Gal et al. 2023, appendix; ImageNet's)."""


def captions_of(dataset: Dataset) -> bool:
    """True where an image has a caption.

    Args:
        dataset: opened.

    Raises:
        UserError: see `Dataset.captions`; or a caption cannot be used.
    """
    columns = dataset.catalog.columns()
    known = TEXT in columns or Templates().other_column(columns)
    known = known or dataset.config.captions != FILES
    if not dataset.config.caption_templates and not known:
        return False
    return any(dataset.captions[row] for row in range(len(dataset)))


def check_captions(config: DiffusionRun, dataset: Dataset, captioned: bool) -> None:
    """Refuse a text-conditioned model of images without captions.

    Args:
        config: of the run.
        dataset: of the run.
        captioned: True where an image has a caption.

    Raises:
        UserError: with ways out that this run has.
    """
    if config.text.source == "none" or captioned:
        return
    without = "" if config.init else ", or train without text (--set text.source=none)"
    raise UserError(
        f"{dataset.catalog.source.place}: no captions, but text.source is "
        f"{config.text.source!r}; {dataset.captions.remedy()}{without}"
    )


def captions_note(
    given: DiffusionRun, config: DiffusionRun, dataset: Dataset, captioned: bool
) -> list[str]:
    """Lines for people on captions: where they are from, or why a model is unconditional.

    Args:
        given: settings as given.
        config: complete settings.
        dataset: of the run.
        captioned: True where an image has a caption.
    """
    data = config.data
    if data.captions != FILES and config.text.source != "none":
        return list(rule_lines(data.captions, dataset.catalog, data.repeats))
    if config.text.source != "none":
        return []
    if config.conditions and not captioned:
        return []
    if not captioned:
        if not is_open(given.text.source):
            return ["captions   none wanted, and none there: an unconditional model"]
        found = suggestion(dataset.catalog) if data.captions == FILES else ""
        return [
            f"captions   none in the data: an unconditional model, without prompts (for one "
            f"caption of all: {TEMPLATE})",
            *([f"captions   {found}"] if found else []),
        ]
    why = f"{config.init} has no text encoder" if config.init else "text.source=none"
    return [f"captions   those of the data are left aside ({why}): an unconditional model"]


def with_token_captions(config: DiffusionRun) -> DiffusionRun:
    """Configuration of a textual inversion whose images have no captions: with `TEMPLATES`.

    Args:
        config: with a new word.
    """
    word = config.text.new_token.replace("{", "{{").replace("}", "}}")
    templates = [template.format(word) for template in TEMPLATES]
    data = config.data.model_copy(update={"caption_templates": templates})
    return config.model_copy(update={"data": data})


def check_token_captions(config: DiffusionRun, dataset: Dataset) -> None:
    """Refuse captions without the new word, of which nothing could be learned.

    Args:
        config: of the run.
        dataset: of the run.

    Raises:
        UserError: no caption of the training images has the word.
    """
    word = config.text.new_token
    rows = (int(dataset.training.row(k)) for k in range(len(dataset.training)))
    if not word or any(
        word.casefold() in one.casefold() for r in rows for one in dataset.captions[r]
    ):
        return
    raise UserError(
        f"text.new_token: no caption of the training images has {word}; give all the same words "
        f'with data.caption_templates=["a photo of {word}"]'
    )
