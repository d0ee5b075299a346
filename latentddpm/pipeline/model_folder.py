"""Model folder: its manifest `pipeline.json` and its files, checked before anything is loaded.

    pipeline.json     format version, schedule, image size, defaults of `generate`, and for each
                      part its file, size and digests
    vae.keras  unet.keras  text_encoder.keras  tokenizer/  README.md
    graphs/           the networks as ONNX graphs without weights, see `graphs.entries`

Reading it needs neither Keras nor TensorFlow. The manifest names the autoencoder whose latents
the UNet was trained on; a folder that pairs the UNet with another one is refused. A model that
diffuses pixels has no `vae.keras`, and `first_stage` "none".
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.choices import FIRST_STAGES
from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.graphs.entries import describe_graphs, find_graph
from latentddpm.hub.fetch import fetch
from latentddpm.packaged import packaged_folders
from latentddpm.pipeline.recognise import MANIFEST, recognise
from latentddpm.pipeline.weight_files import (
    NEVER,
    READ,
    convert_line,
    is_pickle,
    layout_of,
    read_header,
)
from latentddpm.utils.files import AUTOENCODER, FileEntry, read_arguments, write_json

if TYPE_CHECKING:  # it needs NumPy, which `--help` does without
    from latentddpm.conditions.conditions import Conditions
    from latentddpm.utils.images.pixel_format import PixelFormat

FORMAT = 1
FILES = {"vae": "vae.keras", "unet": "unet.keras", "text_encoder": "text_encoder.keras"}
TOKENIZER = "tokenizer"
LORA, EMBEDDING = "lora.safetensors", "embedding.safetensors"
"""Files that a run with a LoRA, or with a new word, writes instead of a model."""
ENTRY = {"file": str, "bytes": int, "sha256": str, "digest": str}


@dataclass(frozen=True)
class ModelFolder:
    """Model folder whose manifest was read and whose files exist.

    Attributes:
        path: of the folder.
        parts: by name (`vae`, `unet`, `text_encoder`), each with its `file`, its size in `bytes`,
            the `sha256` of the file and the `digest` of the weights.
        schedule: arguments of `NoiseSchedule`; None for an autoencoder alone.
        image_size: (height, width) in pixels that the model was trained at; (length,) of signals.
        defaults: default settings, by the names of `settings.GenerationSettings`.
        first_stage: "autoencoder", or "none" for a model that diffuses pixels.
        pixel_arguments: of the model's `PixelFormat`; None for 8 bits.
        graphs: entries of its graphs by name, as the manifest has them, unchecked.
        condition_entries: of its conditions, as the manifest has them.
    """

    path: Path
    parts: dict[str, dict[str, Any]]
    schedule: dict[str, Any] | None = None
    image_size: tuple[int, ...] | None = None
    defaults: dict[str, Any] = field(default_factory=dict)
    first_stage: str = FIRST_STAGES[0]
    pixel_arguments: dict[str, Any] | None = None
    graphs: Any = None
    condition_entries: Any = None

    @property
    def conditions(self) -> Conditions:
        """Conditions that its network is told beside text."""
        from latentddpm.conditions.conditions import Conditions

        return Conditions.from_json(self.condition_entries)

    @property
    def pixels(self) -> PixelFormat:
        """Format of the images that the model takes and gives."""
        from latentddpm.utils.images.pixel_format import PixelFormat

        if self.pixel_arguments is None and "vae" in self.parts:
            arguments = read_arguments(self.file("vae"), AUTOENCODER)
            return PixelFormat(arguments.get("image_channels", 3))
        return PixelFormat.from_json(self.pixel_arguments)

    @property
    def digest(self) -> str:
        """Digest of the weights of all parts, 12 characters, for image metadata."""
        import hashlib

        text = json.dumps({name: part["digest"] for name, part in sorted(self.parts.items())})
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def file(self, part: str) -> Path:
        """Archive of a part.

        Args:
            part: "vae", "unet" or "text_encoder".

        Raises:
            UserError: the folder has no such part.
        """
        if part not in self.parts:
            has = ", ".join(self.parts) or "nothing"
            kind = ", a model of pixels," if self.first_stage == "none" else ""
            advice = "; train one with train-diffusion --vae" if has == "vae" else ""
            raise UserError(f"{self.path}:{kind} has no {FILES[part]} (it holds {has}){advice}")
        return self.path / self.parts[part]["file"]

    def graph(self, name: str) -> Path | None:
        """Graph of a network: its file, or None where there is none that is whole and its own.

        Args:
            name: "encoder", "decoder", "unet" or "text_encoder".
        """
        return find_graph(self.path, self.graphs, self.parts, name)


def find_model(path: str | Path) -> Path:
    """Find a model folder.

    Args:
        path: a model folder, a run folder, the name of a model that ships, or an address on the
            Hub, `hf://owner/name[@revision]`, which is fetched.

    Raises:
        UserError: it is none of these; the message says what it is, and what makes a model
            folder of it. Of an address also what `hub.fetch.fetch` raises.
    """
    path = fetch(path)
    for candidate in (path, path / "model", ready_model(path)):
        if candidate is not None and is_model(candidate):
            return candidate
    if not path.exists():
        names = ready_names()
        hint = f" (ready models: {', '.join(names)})" if names else ""
        raise UserError(f"{path}: no such model folder{nearest(path.name, names) or hint}")
    thing = recognise(path)
    if thing is None:
        raise UserError(f"{path}: no {MANIFEST} in it; expected a model folder or a finished run")
    raise UserError(f"{path}: is {thing.what}, no model folder; {thing.advice}")


def is_model(path: Path) -> bool:
    """True for a folder with a `pipeline.json`.

    Args:
        path: of the folder.
    """
    return (path / MANIFEST).is_file()


def check_convertible(path: Path, variant: str | None = None) -> None:
    """Refuse what is no checkpoint of others, by what it is; Keras is not needed for it.

    Args:
        path: that `convert --from` names.
        variant: that `--variant` names.

    Raises:
        UserError: there is nothing, or something that is not converted.
    """
    if not path.exists():
        if ready_model(path) is not None:
            raise UserError(f"{path}: is a ready model already; use it with --model {path}")
        raise UserError(f"{path}: no such file or folder")
    thing = recognise(path)
    if thing is not None and not thing.convertible:
        raise UserError(f"{path}: is {thing.what}; {thing.advice}")
    if thing is None and path.is_file():
        raise UserError(f"{path}: no checkpoint; expected a diffusers folder or .safetensors file")
    if variant is not None and path.is_file():
        raise UserError(f"--variant: chooses files of a folder, and {path} is a single file")


def check_lora(path: str | Path) -> None:
    """Refuse a file that is no LoRA, by what it is; Keras is not needed for it.

    Args:
        path: of the file.

    Raises:
        UserError: it is another kind of weights, or damaged.
    """
    path = Path(path)
    if is_pickle(path):
        raise UserError(f"{path}: a pickle {NEVER}; take the .safetensors version of this LoRA")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    header = read_header(path)
    layout = layout_of(header)
    if layout is None and (names := [name for name in header if name != "__metadata__"]):
        raise UserError(f"{path}: {names[0]!r} is not of a LoRA")
    if layout is not None and layout.command == READ:
        raise UserError(f"{path}: is {layout.what}, no LoRA; {convert_line(path)} converts it")


def ready_model(path: Path) -> Path | None:
    """Folder of the model that ships under a name, such as "emoji-128"; None where there is none.

    A folder of that name in the working directory comes first.

    Args:
        path: that was named.
    """
    if path.exists() or path.parts[:-1] not in ((), ("weights",)):
        return None
    return next((root / path.name for root in ready_models() if is_model(root / path.name)), None)


def ready_names() -> list[str]:
    """Names of the models that ship."""
    return [one.name for root in ready_models() for one in root.iterdir() if is_model(one)]


def ready_models() -> list[Path]:
    """Folders that hold the models that ship: inside the wheel, or beside the package."""
    return packaged_folders("weights")


def read_model_folder(path: str | Path, verify: bool = True) -> ModelFolder:
    """Read and check a model folder.

    Args:
        path: a model folder, a run folder, or the name of a model that ships.
        verify: compare the digests of its files too, not only their sizes; this takes seconds
            for a large model. `LatentDiffusion.load` always does it.

    Raises:
        UserError: a missing or malformed manifest, a missing or changed file, a UNet of another
            autoencoder.
    """
    from latentddpm.utils.images.pixel_format import PixelFormat

    path = find_model(path)
    try:
        manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(f"format {manifest['format']}, this version reads {FORMAT}")
        parts = dict(manifest["parts"])
        size = manifest.get("image_size")
        folder = ModelFolder(
            path,
            parts,
            manifest.get("schedule"),
            tuple(map(int, size)) if size else None,
            dict(manifest.get("defaults", {})),
            manifest.get("first_stage", FIRST_STAGES[0]),
            manifest.get("pixels"),
            manifest.get("graphs"),
            manifest.get("conditions"),
        )
        if folder.condition_entries:
            len(folder.conditions)  # refused now where they are malformed
        check_choice("first_stage", folder.first_stage, FIRST_STAGES)
        PixelFormat.from_json(folder.pixel_arguments)
        for name, part in parts.items():
            _check_entry(name, part)
    except UserError as error:
        raise UserError(f"{path / MANIFEST}: {error}") from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path / MANIFEST}: malformed ({reason})") from None
    for part in parts.values():
        _check_file(path, part, verify)
    expected = parts.get("unet", {}).get("vae_digest")
    if expected and expected != parts.get("vae", {}).get("digest"):
        raise UserError(
            f"{path}: unet.keras was trained on the latents of another autoencoder "
            f"(digest {expected[:12]}) than vae.keras "
            f"({parts.get('vae', {}).get('digest', 'missing')[:12]}); put its own beside it"
        )
    return folder


def _check_entry(name: str, part: dict[str, Any]) -> None:
    if name not in FILES:
        raise UserError(f"part {name!r} is not known; expected some of {', '.join(FILES)}")
    for key, kind in ENTRY.items():
        if not isinstance(part[key], kind):
            raise TypeError(f"{name}.{key}: {part[key]!r}")
    if os.path.basename(part["file"]) != part["file"]:
        raise UserError(f"{name}.file: {part['file']!r} is not the name of a file in the folder")


def _check_file(path: Path, part: dict[str, Any], verify: bool) -> None:
    file = path / part["file"]
    if not file.is_file():
        raise UserError(f"{file}: missing, but named in {MANIFEST}")
    entry = FileEntry(part["bytes"], part["sha256"])
    if not entry.matches(file, digest_limit=math.inf if verify else 0):
        raise UserError(f"{file}: is not the file {MANIFEST} describes (size or digest differs)")


def describe_part(file: Path, digest: str, **extra: str) -> dict[str, Any]:
    """Entry of a part in the manifest.

    Args:
        file: archive of the part.
        digest: of its weights.
        extra: further keys, such as the UNet's `vae_digest`.
    """
    return {
        "file": file.name,
        **asdict(FileEntry.of(file)),
        "digest": digest,
        **extra,
    }


def write_manifest(
    path: Path,
    parts: dict[str, dict[str, Any]],
    schedule: dict[str, Any] | None,
    image_size: tuple[int, ...] | None,
    defaults: dict[str, Any],
    version: str,
    pixels: PixelFormat,
    first_stage: str = FIRST_STAGES[0],
    conditions: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write `pipeline.json`, the last file of a model folder; it names the graphs that lie there.

    Args:
        path: of the folder.
        parts: entries by name, made by `describe_part`.
        schedule: arguments of `NoiseSchedule`; None without a UNet.
        image_size: (height, width) in pixels, (length,) of signals; None for none.
        defaults: default settings by name.
        version: of latentddpm.
        pixels: format of the images; the default one is not written.
        first_stage: one of `choices.FIRST_STAGES`.
        conditions: returned by `Conditions.to_json`.
    """
    graphs = describe_graphs(path, parts)
    write_json(
        path / MANIFEST,
        {
            "format": FORMAT,
            "latentddpm": version,
            "parts": parts,
            "schedule": schedule,
            "image_size": list(image_size) if image_size else None,
            "defaults": defaults,
            **({} if first_stage == FIRST_STAGES[0] else {"first_stage": first_stage}),
            **({} if pixels.is_default else {"pixels": pixels.to_json()}),
            **({"graphs": graphs} if graphs else {}),
            **({"conditions": list(conditions)} if conditions else {}),
        },
    )
