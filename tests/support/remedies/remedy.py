"""A message of the command line, and what a reader of it does."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Remedy:
    """One message with its remedy.

    Attributes:
        name: of the case.
        prepare: puts the files of the case into the empty folder in which all lines run.
        wrong: command line that is refused, such as `"generate --model m --steps 0"`.
        says: parts of the message, the advice among them.
        then: command lines that do what the message advises; each ends with exit code 0.
    """

    name: str
    prepare: Callable[[Path], None]
    wrong: str
    says: tuple[str, ...]
    then: tuple[str, ...]
