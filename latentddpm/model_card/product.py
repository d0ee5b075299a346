"""Finished product of a training: a model, a LoRA or a ControlNet, as its folder tells it.

Reading it needs neither Keras nor TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.errors import UserError
from latentddpm.interop.lora_file import read_lora_metadata
from latentddpm.pipeline.control.folder import control_folder, read_control_folder
from latentddpm.pipeline.model_folder import LORA, check_lora, find_model, read_model_folder
from latentddpm.pipeline.recognise import ADAPTERS
from latentddpm.utils.stored_weights import open_weights

MODEL, LORA_KIND, CONTROL = "model", "LoRA", "ControlNet"
FORMAT_FILE = "graphs/*.onnx"


@dataclass(frozen=True)
class Part:
    """Part of a product: a network, or a file of weights.

    Attributes:
        name: such as "unet".
        file: of the weights, in the folder.
        parameters: number of them; None where it is not counted.
        bytes: size of the file.
        digest: of the weights, or of the file; "" where it is not stored.
    """

    name: str
    file: str
    parameters: int | None
    bytes: int
    digest: str = ""


@dataclass(frozen=True)
class Product:
    """Finished product, in a folder that was read and checked by sizes.

    Attributes:
        kind: "model", "LoRA" or "ControlNet".
        folder: that holds it.
        parts: of it.
        image_size: (height, width) in pixels, (length,) of signals; None where it is not known.
        text: True if prompts lead it.
        draws: False for an autoencoder alone.
        of_pixels: True for a model without an autoencoder.
        schedule, defaults: as the manifest has them; empty without.
        conditions: beside text.
        base: name of the model that it belongs to; "" for a model or where it is not known.
    """

    kind: str
    folder: Path
    parts: tuple[Part, ...]
    image_size: tuple[int, ...] | None = None
    text: bool = True
    draws: bool = True
    of_pixels: bool = False
    schedule: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    conditions: Conditions = NO_CONDITIONS
    base: str = ""

    @property
    def files(self) -> list[Path]:
        """Files of the product, sorted, relative to its folder: all that its readers open."""
        if self.kind == LORA_KIND:
            return [Path(part.file) for part in self.parts]
        patterns = ["*.json", "*.keras"]
        if self.kind == MODEL:
            patterns += ["*.safetensors", "tokenizer/*", FORMAT_FILE]
        found = {file for pattern in patterns for file in self.folder.glob(pattern)}
        return sorted(file.relative_to(self.folder) for file in found if file.is_file())


def read_product(place: str | Path) -> Product:
    """Product at a place.

    Args:
        place: a model folder, the folder of a ControlNet, a LoRA file, or the run that made one.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(place)
    lora = path / LORA if path.is_dir() else path
    if lora.is_file() and lora.suffix == Path(LORA).suffix:
        return _lora(lora)
    adapter = next((path / name for name in ADAPTERS if (path / name).is_file()), None)
    if adapter is not None:
        return _lora(adapter)
    if control_folder(path) is not None:
        return _control(path)
    if path.is_dir() and not any(path.iterdir()):
        raise UserError(f"{path}: is empty; name a finished run or a model folder")
    return _model(find_model(place))


def _model(path: Path) -> Product:
    folder = read_model_folder(path, verify=False)
    parts = tuple(_part(name, path, entry) for name, entry in folder.parts.items())
    return Product(
        MODEL,
        path,
        parts,
        folder.image_size,
        "text_encoder" in folder.parts,
        "unet" in folder.parts,
        folder.first_stage == "none",
        folder.schedule or {},
        {key: value for key, value in folder.defaults.items() if value is not None},
        folder.conditions,
    )


def _control(path: Path) -> Product:
    folder = read_control_folder(path, verify=False)
    part = _part("control", folder.path, folder.entry)
    base = f"{folder.base_model} ({folder.base_digest})" if folder.base_digest else ""
    return Product(CONTROL, folder.path, (part,), base=base)


def _lora(file: Path) -> Product:
    check_lora(file)
    told = read_lora_metadata(file)
    words = [told.get("base_model"), f"rank {told['rank']}" if told.get("rank") else None]
    part = Part("lora", file.name, None, file.stat().st_size)
    return Product(LORA_KIND, file.parent, (part,), base=", ".join(filter(None, words)))


def _part(name: str, folder: Path, entry: Mapping[str, Any]) -> Part:
    with open_weights(folder / entry["file"]) as weights:
        count = weights.size
    return Part(name, entry["file"], count, entry["bytes"], entry["digest"])
