"""Templates of captions, filled from the columns of an image.

A template such as `"{text}, {style} style"` is filled from an image's columns (see
`data.sources.metadata`). Where columns are lists it gives a caption for every combination of their
entries. An image without a value for one of its fields gets no caption from a template. A number
fills a field of a template with words; alone it is no caption.
"""

from __future__ import annotations

import difflib
import itertools
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from latentddpm.data.sources.kinds import CAPTION_COLUMNS, NAME_COLUMNS, first_column
from latentddpm.data.sources.metadata import (
    FOLDER,
    TEXT,
    caption_entries,
    text_entries,
    with_folder,
)
from latentddpm.errors import UserError, nearest

DEFAULT_TEMPLATES = ("{text}",)

Template = list[tuple[str, str | None]]
"""Pairs of literal text and the name of the column that follows it (None at the end)."""


class Templates:
    """Templates of captions, filled from the columns of an image.

    Args:
        templates: format strings with plain `{column}` fields only; `"{text}"` by default. A
            template without a field is a caption of every image.

    Raises:
        UserError: a template is malformed.
    """

    def __init__(self, templates: str | Sequence[str] = ()) -> None:
        texts = (templates,) if isinstance(templates, str) else tuple(templates)
        self.texts = texts or DEFAULT_TEMPLATES
        self._parsed = [_parse_template(text) for text in self.texts]

    def check(self, known: Sequence[str], source: str) -> None:
        """Check that every field of every template is a column of some image.

        Args:
            known: names of the columns.
            source: where the columns are from, for messages.

        Raises:
            UserError: one field is not.
        """
        for _, name in itertools.chain(*self._parsed):
            if name is not None and name not in known:
                remedy = _other_template(known) if self.texts == DEFAULT_TEMPLATES else ""
                raise UserError(
                    f"{source or 'captions'}: no column {name!r}{nearest(name, known)}; "
                    f"columns are {', '.join(map(repr, known)) or 'none'}{remedy}"
                )

    def fill(self, columns: Mapping[str, Any], name: str, place: str = "") -> tuple[str, ...]:
        """Captions of one image, without repeats, in the order of the templates.

        Args:
            columns: name → value, of the image.
            name: of the image; its folder is the built-in column `folder`.
            place: where the columns are from, for messages; by default the image.

        Raises:
            UserError: a column that is used is not text.
        """
        columns, place = with_folder(columns, name), place or name
        found = (text for template in self._parsed for text in _fill(template, columns, place))
        return tuple(dict.fromkeys(found))

    def other_column(self, columns: Sequence[str]) -> str:
        """Column that the captions of `{text}` come from if it is another one; "" otherwise.

        Args:
            columns: of all images; with `text` if one has a caption from a sidecar.
        """
        if self.texts != DEFAULT_TEMPLATES or TEXT in columns:
            return ""
        return first_column(columns, CAPTION_COLUMNS)


def _parse_template(template: str) -> Template:
    """Template of a format string; attributes, indices, conversions and formats are refused."""
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"caption template {template!r}: {error}") from None
    for _, name, spec, conversion in parts:
        if name is not None and (spec or conversion or not name or re.search(r"[.\[\]{}]", name)):
            raise UserError(
                f"caption template {template!r}: only plain fields such as {{text}} are allowed"
            )
    return [(literal, name) for literal, name, _, _ in parts]


def _fill(template: Template, columns: Mapping[str, Any], place: str) -> Iterator[str]:
    """Captions of a template, one for every combination of the entries of its columns."""
    names = dict.fromkeys(name for _, name in template if name is not None)
    words = any(literal.strip() for literal, _ in template)
    entries = [
        caption_entries(columns, place, numbers=words)
        if name == TEXT
        else text_entries(columns.get(name), name, place, numbers=words)
        for name in names
    ]
    for chosen in itertools.product(*entries):
        value = dict(zip(names, chosen, strict=True))
        caption = "".join(literal + value.get(name, "") for literal, name in template).strip()
        if caption:
            yield caption


def _other_template(known: Sequence[str]) -> str:
    """Advice to take another column for captions, if there is one."""
    others = [n for n in known if n != FOLDER and n.casefold() not in NAME_COLUMNS and n.strip()]
    if not others:
        return ""
    close = difflib.get_close_matches(TEXT, others, n=1, cutoff=0.5)
    column = (close or others)[0]
    return f'; for captions from it: data.caption_templates=["{{{column}}}"]'
