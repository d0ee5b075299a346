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
