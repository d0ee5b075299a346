"""Notes on a plan: what is drawn is what was asked for, but perhaps not what was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from latentddpm.clip.prompts import foreign_syntax
from latentddpm.conditions.conditions import Values
from latentddpm.pipeline.regions.region import Region
from latentddpm.pipeline.settings import GenerationSettings, ModelFacts
from latentddpm.pipeline.start.init_image import InitImage

SHOWN = 3
"""Pieces of other tools' syntax that a note quotes."""


def notes_on(
    facts: ModelFacts,
    settings: GenerationSettings,
    start: InitImage | None,
    prompts: Sequence[str],
    negative_prompts: Iterable[str],
    rows: Sequence[Values],
    regions: Sequence[Region] = (),
    words: Sequence[str] = (),
) -> Iterator[str]:
    """Sentences for people, one for each thing that they may want to know before they wait.

    Args:
        facts: of the model.
        settings: of the images.
        start: picture to start from; None for noise.
        prompts, negative_prompts: of the images.
        rows: values of the model's conditions, of each prompt.
        regions: parts of the images that are told something else.
        words: of embeddings, which the prompts may have.
    """
    within = [one.conditions for one in regions]
    if facts.has_text and not any(prompts) and not any(rows) and not regions:
        yield "no --prompt: the model is told nothing and draws anything"
    if facts.conditions.vectors and not facts.has_text and not any([*rows, *within]):
        yield "no --label: the model is told nothing and draws anything"
    lines = (line for row in [*rows, *within] for line in facts.conditions.warnings(row))
    yield from dict.fromkeys(lines)
    inside = [one.prompt for one in regions]
    texts = [*prompts, *negative_prompts, *inside]
    for word in words:
        if not any(word.casefold() in text.casefold() for text in texts):
            yield f"--embedding: {word} is in no prompt, so it has no effect"
    own = {word.casefold() for word in words}
    if found := [one for one in foreign_syntax(texts) if one.casefold() not in own]:
        shown = ", ".join(found[:SHOWN]) + (", …" if found[SHOWN:] else "")
        lora = any(re.match("<(lora|lyco)", one, re.IGNORECASE) for one in found)
        yield (
            f"{shown}: other tools' syntax is taken literally, word for word"
            + ("; a LoRA is given by --lora FILE:SCALE" if lora else "")
        )
    if facts.image_size and settings.size != facts.image_size:
        own, size = ("×".join(map(str, one[::-1])) for one in (facts.image_size, settings.size))
        unit = "pixels" if len(settings.size) > 1 else "samples"
        yield f"{size} {unit}: the model was trained at {own}, where it draws best"
    if start is not None and start.uniform == "white":
        yield "--mask: white everywhere (as transparent is), so all of the picture is repainted"
    if start is not None and start.uniform == "black":
        yield "--mask: black everywhere, so nothing of the picture is repainted"
    for number, region in enumerate(regions, 1):
        if not region.mask.any():
            yield f"--region: mask {number} is black everywhere, so nothing is told there"
