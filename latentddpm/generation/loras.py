"""LoRA files as a person names them: `FILE`, or `FILE:SCALE`, or the run that trained one.

A PNG remembers the name, SHA-256 and scale of each; `--from` takes a file of that name beside the
picture, or in the working folder, when it is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.errors import UserError
from latentddpm.generation.provenance import beside
from latentddpm.pipeline.model_folder import LORA
from latentddpm.utils.files import file_digest

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Lora:
    """A LoRA file that is there, and how much of it to apply.

    Attributes:
        path: the file.
        scale: 1 as it was trained, 0 not at all; may be more, or negative.
    """

    path: Path
    scale: float


def read_loras(options: Iterable[str]) -> list[Lora]:
    """The files named by `FILE` or `FILE:SCALE`.

    Raises:
        UserError: no such file, or a scale that is no number.
    """
    found = []
    for option in options:
        path, scale = Path(option), 1.0
        name, colon, number = option.rpartition(":")
        if colon and not path.exists():
            try:
                path, scale = Path(name), float(number)
            except ValueError:
                raise UserError(f"--lora {option}: expected FILE or FILE:SCALE") from None
        if not math.isfinite(scale):
            raise UserError(f"--lora {option}: the scale has to be a finite number")
        path = path / LORA if path.is_dir() else path
        if not path.is_file():
            raise UserError(f"--lora {option}: {path}: no such file")
        found.append(Lora(path, scale))
    return found


def remembered_loras(source: Path | None, traces: Iterable[Any]) -> list[Lora]:
    """The files that the picture `source` was made with.

    Raises:
        UserError: a file that is not there, or is another; or the picture's metadata is malformed.
    """
    found = []
    for trace in traces:
        try:
            name, sha256 = Path(trace["file"]).name, trace["sha256"]
            scale = float(trace["scale"])
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{source}: its metadata has loras: {trace!r:.100}") from None
        path = beside(source, name)
        if path is None or file_digest(path) != sha256:
            raise UserError(
                f"{source}: was made with {name} (SHA-256 {str(sha256)[:12]}), which is not "
                f"beside it; give it with --lora FILE:{scale:g}"
            )
        found.append(Lora(path, scale))
    return found


def apply_loras(model: LatentDiffusion, loras: Iterable[Lora]) -> None:
    """Add each to the weights of `model`.

    Raises:
        UserError: see `interop.lora.merge_lora`.
    """
    for lora in loras:
        from latentddpm.interop.lora import merge_lora

        merge_lora(model, lora.path, lora.scale)
