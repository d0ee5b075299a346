"""Request for an export, judged before Keras is imported or a model is read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from latentddpm.choices import EXPORTS, STORAGE
from latentddpm.errors import UserError, check_choice

IN_PLACE = "graphs"
"""Format that is written into the model folder itself."""


def check_request(out: Path | None, format: str, storage: str = "float32") -> None:
    """Check the arguments of `export_model`.

    Args:
        out: folder to write; None for the model folder itself.
        format: one of `choices.EXPORTS`.
        storage: one of `choices.STORAGE`.

    Raises:
        UserError: an unknown format, `out` exists, is missing or has no use, the packages for
            the format are not installed, or the format does not have this `storage`.
    """
    check_choice("format", format, EXPORTS)
    if format == IN_PLACE and out is not None:
        raise UserError(f"--out {out}: format {format!r} is written into the folder of the model")
    if format != IN_PLACE and out is None:
        raise UserError(f"--out: format {format!r} needs a new folder")
    if out is not None and out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    check_choice("storage", storage, STORAGE)
    if format != "keras" and storage != "float32":
        raise UserError(f"storage {storage!r}: only format 'keras' has it, not {format!r}")
    if missing := [tool for tool in EXPORTS[format] if importlib.util.find_spec(tool) is None]:
        raise needs_tools(format, f"{', '.join(missing)}: not installed")


def needs_tools(format: str, reason: str) -> UserError:
    """Error of a format whose packages are missing or cannot be imported.

    Args:
        format: one of `choices.EXPORTS`.
        reason: what is wrong with them.
    """
    tools = ", ".join(EXPORTS[format])
    install = 'pip install "latentddpm[export]", in a checkout pip install ".[export]"'
    return UserError(f"export --format {format} needs {tools} ({reason}): {install}")
