"""ControlNets as options name them: `RUN` or `RUN:SCALE`, each with the picture that it sees.

The metadata of a PNG holds the name, SHA-256 and scale of each ControlNet, and the name and
SHA-256 of its picture. `--from` looks for both, by their names, beside the PNG and in the working
directory. All is checked here, before Keras is imported.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.errors import UserError
from latentddpm.generation.provenance import beside, fetched_copy
from latentddpm.hub.address import address_of
from latentddpm.models.denoisers.facts import control_misfit
from latentddpm.pipeline.control.control import (
    Control,
    check_scale,
    controlled_unet,
    read_control_picture,
)
from latentddpm.pipeline.control.folder import (
    FOLDER,
    ControlFolder,
    load_control,
    read_control_folder,
)
from latentddpm.pipeline.model_folder import ModelFolder
from latentddpm.utils.files import DENOISERS, file_digest, read_network

if TYPE_CHECKING:
    import numpy as np

    from latentddpm.pipeline.latent_diffusion import LatentDiffusion


@dataclass(frozen=True)
class ControlFiles:
    """ControlNet of a folder that exists, with the file of its picture.

    Attributes:
        folder: of the ControlNet.
        scale: factor of what it adds, any finite number; 1 as it was trained.
        image: file of the picture.
    """

    folder: ControlFolder
    scale: float
    image: Path

    @property
    def name(self) -> str:
        """Name of the run that trained it, else of its folder; the address of one of the Hub."""
        path = self.folder.path
        if (address := address_of(path)) is not None:
            return address
        return path.parent.name if path.name == FOLDER else path.name

    def to_json(self) -> dict[str, Any]:
        """Entry of an image's metadata."""
        return {
            "control": self.name,
            "sha256": self.folder.entry["sha256"],
            "scale": self.scale,
            "image": self.image.name,
            "image_sha256": file_digest(self.image),
        }


def read_controls(options: Iterable[str], images: Sequence[Path]) -> list[ControlFiles]:
    """ControlNets of the options `--control`, with the files of `--control-image`.

    Args:
        options: each `RUN` or `RUN:SCALE`.
        images: one for each, in the same order.

    Raises:
        UserError: no such folder or file, a scale that is not a finite number, or not one file
            for each.
    """
    options = list(options)
    if len(options) != len(images):
        counts = f"{len(images)} --control-image for {len(options)} --control"
        raise UserError(f"{counts}; give one for each, in the same order")
    found = []
    for option, image in zip(options, images, strict=True):
        path, scale = Path(option), 1.0
        name, colon, number = option.rpartition(":")
        if colon and not path.exists():
            try:
                path, scale = Path(name), float(number)
            except ValueError:
                raise UserError(f"--control {option}: expected RUN or RUN:SCALE") from None
        if not image.is_file():
            raise UserError(f"--control-image {image}: no such file")
        check_scale(f"--control {option}: scale", scale)
        found.append(ControlFiles(read_control_folder(path, verify=False), scale, image))
    return found


def remembered_controls(source: Path | None, traces: Iterable[Any]) -> list[ControlFiles]:
    """ControlNets and pictures that a PNG was made with.

    Args:
        source: the PNG.
        traces: its metadata `controls`, see `ControlFiles.to_json`.

    Raises:
        UserError: one is missing or is another one, or the metadata is malformed.
    """
    found = []
    for trace in traces:
        try:
            # Names, not paths: anyone can write a PNG.
            name, image = (Path(trace[key]).name for key in ("control", "image"))
            copy = fetched_copy(trace["control"])
            digests, scale = (trace["sha256"], trace["image_sha256"]), float(trace["scale"])
        except (TypeError, KeyError, ValueError):
            raise UserError(f"{source}: its metadata has controls: {trace!r:.100}") from None
        folder, file = _find_folder(source, name, digests[0], copy), beside(source, image)
        if folder is None:
            raise UserError(
                f"{source}: was made with the ControlNet {name} (SHA-256 {str(digests[0])[:12]}), "
                f"which is not beside it; give it with --control RUN:{scale:g}"
            )
        if file is None or file_digest(file) != digests[1]:
            raise UserError(
                f"{source}: was made with {image} (SHA-256 {str(digests[1])[:12]}), which is not "
                "beside it; give it with --control and --control-image"
            )
        found.append(ControlFiles(folder, scale, file))
    return found


def _find_folder(source: Path, name: str, sha256: Any, copy: Path | None) -> ControlFolder | None:
    """Control folder of a name beside a picture or in the working directory, else the copy of one
    of the Hub, if it is that.
    """
    for place in filter(None, (source.parent / name, Path(name), copy)):
        try:
            folder = read_control_folder(place, verify=False)
        except UserError:
            continue
        if folder.entry["sha256"] == sha256:
            return folder
    return None


def check_controls(
    controls: Sequence[ControlFiles],
    model: ModelFolder,
    factor: int | None,
    size: tuple[int, ...],
) -> list[tuple[ControlFiles, np.ndarray]]:
    """Check that ControlNets fit a model, and read their pictures.

    One that was trained for another model gives a warning.

    Args:
        controls: to check.
        model: that they are used with.
        factor: downsample factor of its autoencoder; None where it is not known yet.
        size: (height, width) of the images, in pixels.

    Returns:
        Each with its picture, uint8 (H, W, 3).

    Raises:
        UserError: a network that takes none, sizes that do not fit, or a picture that cannot be
            read.
    """
    if not controls:
        return []
    kind, unet = read_network(model.file("unet"), *DENOISERS)
    if DENOISERS[kind] != "unet" or len(size) != 2:
        what = "draws signals" if len(size) != 2 else f"is of kind {DENOISERS[kind]}"
        raise UserError(
            f"--control: needs a network of kind unet of images, and that of {model.path} {what}"
        )
    for one in controls:
        own = one.folder.arguments()
        if difference := control_misfit(unet, own):
            raise UserError(f"--control {one.folder.path}: {difference} ({model.path})")
        other = 2 ** (len(own["hint_channels"]) - 1)
        if factor not in (None, other):
            raise UserError(
                f"--control {one.folder.path}: is for latents of 1/{other} of the image's sides, "
                f"those of {model.path} are of 1/{factor}"
            )
        base = one.folder.base_digest
        if base and base != model.digest:
            warnings.warn(
                f"{one.folder.path}: was trained for {one.folder.base_model} ({base}), and "
                f"{model.path} is another model ({model.digest})",
                stacklevel=2,
            )
    return [(one, read_control_picture(one.image, size)) for one in controls]


def engine_with_controls(given: str | None) -> str:
    """Engine of a generation with ControlNets, which only Keras has.

    Args:
        given: of `--engine`; None for none.

    Raises:
        UserError: another engine was asked for.
    """
    if given == "onnx":
        raise UserError("--engine onnx: has no ControlNets; --control needs --engine keras")
    return "keras"


def add_controls(
    model: LatentDiffusion,
    controls: Sequence[tuple[ControlFiles, np.ndarray]],
    jit: bool | None = None,
) -> list[Control]:
    """ControlNets of a model for `generate`, joined to its UNet.

    Args:
        model: to which they are added.
        controls: returned by `check_controls`; they are loaded in the precision of the model.
        jit: compile the network with XLA; None for Keras's choice.

    Raises:
        UserError: see `load_control` and `controlled_unet`.
    """
    found = [
        Control(load_control(one.folder.path, model.precision), picture, one.scale)
        for one, picture in controls
    ]
    if found:
        model.unet = controlled_unet(model.unet, found, model.autoencoder.downsample_factor)
        if jit is not None:
            model.unet.jit_compile = jit
    return found


def control_metadata(controls: Sequence[tuple[ControlFiles, np.ndarray]]) -> Mapping[str, Any]:
    """Metadata of ControlNets, empty without any.

    Args:
        controls: returned by `check_controls`.
    """
    return {"controls": [one.to_json() for one, _ in controls]} if controls else {}
