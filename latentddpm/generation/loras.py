"""LoRA files as options name them: `FILE`, `FILE:SCALE`, or the run that trained one.

A LoRA that comes with a model lies in its folder and is named without its suffix, such as `lcm`.
The metadata of a PNG holds name, SHA-256 and scale of each. `--from` looks for the same file, by
its name, beside the PNG, in the working directory and in the model's folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.errors import UserError
from latentddpm.generation.provenance import beside, fetched_copy
from latentddpm.interop.lora_file import lora_settings
from latentddpm.pipeline.model_folder import LORA, check_lora
from latentddpm.pipeline.recognise import ADAPTERS
from latentddpm.utils.files import file_digest

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class Lora:
    """LoRA file that exists, and the scale to apply it with.

    Attributes:
        path: of the file.
        scale: factor of its change of the weights, any finite number; 1 as it was trained.
    """

    path: Path
    scale: float


def read_loras(options: Iterable[str], model: Path | None = None) -> list[Lora]:
    """LoRA files of the options `--lora`.

    Args:
        options: each `FILE`, `FILE:SCALE`, or the folder of a run, PEFT or diffusers instead of
            the file; or the name of one that comes with the model.
        model: folder of the model; None where no name is looked up.

    Raises:
        UserError: no such file, one that is no LoRA, or a scale that is not a finite number.
    """
    found = []
    for option in options:
        path, scale = split_scale("--lora", option, "FILE", 1.0)
        own = model / f"{path}.safetensors" if model and len(path.parts) == 1 else None
        if path.is_dir():
            names = (name for name in ADAPTERS if (path / name).is_file())
            path = path / next(names, LORA)
        elif not path.exists() and own is not None and own.is_file():
            path = own
        if not path.is_file():
            raise UserError(f"--lora {option}: {path}: no such file")
        check_lora(path)
        found.append(Lora(path, scale))
    return found


def split_scale(name: str, option: str, what: str, default: float) -> tuple[Path, float]:
    """Split an option `PLACE:SCALE`; a place that exists may have a colon in its name.

    Args:
        name: of the option, for messages.
        option: as given.
        what: the place is, such as "FILE".
        default: scale where none is given.

    Raises:
        UserError: a scale that is not a finite number.
    """
    path, scale = Path(option), default
    place, colon, number = option.rpartition(":")
    if colon and not path.exists():
        try:
            path, scale = Path(place), float(number)
        except ValueError:
            raise UserError(f"{name} {option}: expected {what} or {what}:SCALE") from None
    if not math.isfinite(scale):
        raise UserError(f"{name} {option}: the scale has to be a finite number")
    return path, scale


def lora_defaults(loras: Iterable[Lora]) -> dict[str, Any]:
    """Generation settings that LoRA files ask for, by name; of several, the last file's.

    A LoRA that makes a model need few steps says so: sampler, steps, guidance.

    Args:
        loras: the files.

    Raises:
        UserError: see `interop.lora_file.lora_settings`.
    """
    found: dict[str, Any] = {}
    for lora in loras:
        found |= lora_settings(lora.path)
    return found


def remembered_loras(source: Path | None, traces: Iterable[Any], model: Path) -> list[Lora]:
    """LoRA files that a PNG was made with.

    Args:
        source: the PNG.
        traces: its metadata `loras`: for each file its name `file`, `sha256` and `scale`.
        model: folder of the model.

    Raises:
        UserError: a file is missing or is another one, or the metadata is malformed.
    """
    found = []
    for trace in traces:
        try:
            name, sha256 = Path(trace["file"]).name, trace["sha256"]
            scale = float(trace["scale"])
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{source}: its metadata has loras: {trace!r:.100}") from None
        own, copy = model / name, fetched_copy(trace["file"])
        path = beside(source, name) or (own if own.is_file() else copy)
        if path is None or file_digest(path) != sha256:
            raise UserError(
                f"{source}: was made with {name} (SHA-256 {str(sha256)[:12]}), which is not "
                f"beside it; give it with --lora FILE:{scale:g}"
            )
        found.append(Lora(path, scale))
    return found


def load_model(
    folder: Path,
    loras: Sequence[Lora],
    engine: str = "keras",
    precision: str = "float32",
    cache: bool = False,
    jit: bool | None = None,
    embeddings: Sequence[tuple[Path, str]] = (),
) -> LatentDiffusion:
    """Model with LoRA files in its weights, and the words of embeddings.

    They are added in float32; then the weights are rounded once.

    Args:
        folder: of the model.
        loras: the files with their scales.
        engine, precision: see `LatentDiffusion.load`.
        cache: see there; without effect where there are LoRA files, which change layers.
        jit: compile the networks of Keras with XLA; None for Keras's choice.
        embeddings: files of textual inversions, with their words.

    Raises:
        UserError: see `LatentDiffusion.load` and `interop.lora_merge.merge_lora`.
    """
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

    if not loras and not embeddings and jit is None:
        return LatentDiffusion.load(folder, engine, precision, cache)
    from latentddpm.interop.embedding import load_embedding
    from latentddpm.interop.lora_merge import merge_lora

    model = LatentDiffusion.load(folder, engine)
    for lora in loras:
        merge_lora(model, lora.path, lora.scale)
    for path, word in embeddings:
        load_embedding(model, path, word)
    model.hold_in(precision)
    if jit is not None and engine == "keras":
        for network in filter(None, (model.unet, model.text_encoder)):
            network.jit_compile = jit
    return model
