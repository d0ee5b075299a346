"""Captions: for each image the alternatives one of which is drawn per use.

A template such as `"{text}, {style} style"` is filled from an image's columns (see
`data.sources.metadata`), once for every combination of entries where a column holds a list. An
image that lacks a value for one of its fields gets no caption from that template; an image
without captions has none: ().
"""

from __future__ import annotations

import itertools
import re
import string
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.sources.metadata import text_entries
from latentddpm.errors import UserError, nearest

DEFAULT_TEMPLATES = ("{text}",)

Template = list[tuple[str, str | None]]
"""Pairs of literal text and the name of the column after it (None at the end)."""


class Templates:
    """How columns become captions.

    Args:
        templates: format strings over the columns, plain `{name}` fields only; none means
            `"{text}"`. A template without a field is a caption of every image.

    Raises:
        UserError: a template is malformed.
    """

    def __init__(self, templates: str | Sequence[str] = ()) -> None:
        texts = (templates,) if isinstance(templates, str) else tuple(templates)
        self.texts = texts or DEFAULT_TEMPLATES
        self._parsed = [_parse_template(text) for text in self.texts]

    def check(self, known: Sequence[str], source: str) -> None:
        """Every field of every template is a column of some row.

        Raises:
            UserError: one is not; `source` says of what.
        """
        for _, name in itertools.chain(*self._parsed):
            if name is not None and name not in known:
                raise UserError(
                    f"{source or 'captions'}: no column {name!r}{nearest(name, known)}; "
                    f"columns are {', '.join(map(repr, known)) or 'none'}"
                )

    def fill(self, columns: Mapping[str, Any], place: str) -> tuple[str, ...]:
        """The captions of one image, without repeats, in the order of the templates.

        Raises:
            UserError: a column that is used holds no text; `place` says where.
        """
        found = (text for template in self._parsed for text in _fill(template, columns, place))
        return tuple(dict.fromkeys(found))


class Captions:
    """The captions of a catalog's images, made when they are asked for.

    Rows of metadata that name files which do not exist are said in one warning.

    Args:
        templates: as for `Templates`.

    Raises:
        UserError: a template is malformed or names an unknown column; the table of captions
            is damaged.
    """

    def __init__(self, catalog: Catalog, templates: str | Sequence[str] = ()) -> None:
        self.catalog, self.templates = catalog, Templates(templates)
        if catalog.manifest.problem:
            raise UserError(catalog.manifest.problem)
        for note in catalog.manifest.notes:
            warnings.warn(note, stacklevel=2)
        self.templates.check(catalog.columns(), catalog.metadata_file.rpartition("/")[2])

    def __len__(self) -> int:
        return len(self.catalog)

    def __getitem__(self, index: int) -> tuple[str, ...]:
        """The alternatives of one image; () where there is none.

        Raises:
            UserError: its sidecar is not UTF-8 or says something else than its row; a column
                that is used holds no text.
            IndexError: there is no such image.
        """
        if not 0 <= index < len(self.catalog):
            raise IndexError(f"image {index} of {len(self.catalog)}")
        row = self.catalog.row(index)
        if row.problem:
            raise UserError(row.problem)
        return self.templates.fill(row.columns, self.catalog.row_place(index, row))


def _parse_template(template: str) -> Template:
    """Split a template; attributes, indices, conversions and format specs are refused."""
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
    """The template with every combination of its columns' entries."""
    names = dict.fromkeys(name for _, name in template if name is not None)
    entries = [text_entries(columns.get(name), name, place) for name in names]
    for chosen in itertools.product(*entries):
        value = dict(zip(names, chosen, strict=True))
        caption = "".join(literal + value.get(name, "") for literal, name in template).strip()
        if caption:
            yield caption
