"""Prompts of a call: texts as people give them, one for each image; other tools' syntax in them.

    None, "a"               one prompt
    ["a", "b"]              one after the other, each with its number of images
    negative: "c", ["c"]    for all prompts
    negative: ["c", "d"]    one for each prompt

Nothing in a prompt has a meaning of its own here: weights such as `(red:1.3)` and the like of
other tools are words. `foreign_syntax` finds them, so that somebody can be told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np

from latentddpm.errors import UserError

MAX_IMAGES = 100_000
"""Images of a call: a typing error in a number must not fill the memory."""

FOREIGN = (
    r"<[\w][^<>]*>",  # <lora:x:0.8>, <hypernet:x:1>, and the tokens of textual inversions
    r"\([^()]*:\s*[-+]?\d*\.?\d+\s*\)",  # (red:1.3)
    r"\({2,}[^()]+\){2,}|\[{2,}[^\[\]]+\]{2,}",  # ((red)), [[red]]
    r"\[[^\[\]]*[|:][^\[\]]*\]",  # [red|green], [red:green:10]
    r"\{[^{}]*\|[^{}]*\}",  # {red|green}
    r"\)(?:\++|-+)(?=[\s,.]|$)",  # (red)++
    r"(?<!\w)__[\w/-]+__(?!\w)",  # __colour__
    r"(?<!\w)embedding:\S+",
    r"(?<!\S)--(?:ar|aspect|no|stylize|chaos|niji|seed|v|s|q|w|h)(?=\s|$)",
    r"(?<!\w)BREAK(?!\w)",
    r"(?<=[a-z,.)] )AND(?= [a-z(])",  # in a text that is not in capitals throughout
)
"""Patterns of what has a meaning in prompts of other tools."""


def read_texts(name: str, value: Any) -> list[str]:
    """Texts of an argument: one, or a sequence of them.

    Args:
        name: of the argument, for messages.
        value: text, None for "", or a list, tuple or array of these.

    Raises:
        UserError: anything else, or none at all.
    """
    if value is None or isinstance(value, str):
        return [value or ""]
    if isinstance(value, np.ndarray):
        value = value.tolist() if value.ndim == 1 else value
    if not isinstance(value, list | tuple):
        raise UserError(f"{name}: expected text or a list of texts, got {value!r:.80}")
    if not value:
        raise UserError(f"{name}: an empty list, expected at least one text")
    for one in value:
        if not (one is None or isinstance(one, str)):
            raise UserError(f"{name}: expected texts, got {one!r:.80} among them")
    return [str(one or "") for one in value]


def read_count(name: str, value: Any, most: int | None = None) -> int:
    """Number of things: a whole number of at least 1.

    Args:
        name: of the argument, for messages.
        value: what was given.
        most: the largest valid one; None for any.

    Raises:
        UserError: it is not such a number.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if isinstance(value, np.ndarray) and value.ndim == 0:
        return read_count(name, value.item(), most)
    if not whole or value < 1 or (most is not None and value > most):
        limit = "of at least 1" if most is None else f"from 1 to {most:,}"
        raise UserError(f"{name}: {value!r:.80}, expected a whole number {limit}")
    return int(value)


def for_each_prompt(
    given: Sequence[Any], prompts: Sequence[str], name: str = "negative_prompt"
) -> list[Any]:
    """Negative prompt, or another thing, of each prompt: one for all, or one for each.

    Args:
        given: the negative prompts, as they were given.
        prompts: of the call.
        name: of the argument, for messages.

    Raises:
        UserError: another number of them.
    """
    found, count = len(given), len(prompts)
    if found not in (1, count):
        raise UserError(
            f"{name}: {found} given for {count} prompt{'s' * (count > 1)}; expected one for all, "
            "or one for each"
        )
    return list(given) * (count if found == 1 else 1)


def for_each_image(texts: Iterable[Any], num_images: int) -> list[Any]:
    """Text, or another thing, of each image: every one `num_images` times, in order.

    Args:
        texts: one for each prompt.
        num_images: for each prompt.

    Raises:
        UserError: more than `MAX_IMAGES` in all.
    """
    texts = list(texts)
    count = len(texts) * num_images
    if count > MAX_IMAGES:
        raise UserError(
            f"num_images: {count:,} images in one call, expected at most {MAX_IMAGES:,}; draw "
            "the others with the seeds that follow"
        )
    return [text for text in texts for _ in range(num_images)]


def foreign_syntax(texts: Iterable[str]) -> list[str]:
    """Pieces that other tools read as more than words, each once, in the order of the texts.

    Args:
        texts: prompts and negative prompts.
    """
    pattern = re.compile("|".join(FOREIGN))
    found = (match[0] for text in texts for match in pattern.finditer(text))
    return list(dict.fromkeys(found))
