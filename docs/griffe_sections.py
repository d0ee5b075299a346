"""Extension of griffe, which reads the docstrings: sections as Keras has them.

Without it an `Example:` would be a note whose `>>>` are nested quotes and not code, the lines of
`Call arguments:` would run together, every line of `Returns:` would be a value of its own, and of
`Attributes:` with several names in a row the second would be the type of the first.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

HEADINGS = {
    "Example:": "Examples:",
    "Call arguments:": "Other arguments: Call arguments:",
}
"""Heading in the docstrings of this package → one that griffe knows, with the title to show."""

NO_BREAK_SPACE = "\u00a0"


class KerasSections(Extension):
    """Extension that makes sections of griffe from those of Keras."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Rewrite a docstring before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = for_griffe(obj.docstring.value)


def for_griffe(docstring: str) -> str:
    """Docstring whose sections griffe parses as they are meant.

    A value in `Returns:` begins on the first line or with its name, `name: …`; other lines
    continue it.
    """
    lines, section, first = [], "", False
    for line in docstring.split("\n"):
        if re.fullmatch(r"\w[\w ]*:", line):
            section, first = line, True
            line = HEADINGS.get(line, line)
        elif section == "Attributes:" and (names := re.match(r" {4}\w+(, \w+)+:", line)):
            line = names[0].replace(", ", f",{NO_BREAK_SPACE}") + line[names.end() :]
        elif section in ("Returns:", "Yields:") and re.match(r" {4}\S", line):
            if not first and not re.match(r" {4}\w+: ", line):
                line = f"    {line}"
            first = False
        elif line and not line.startswith(" "):
            section = ""
        lines.append(line)
    return "\n".join(lines)
