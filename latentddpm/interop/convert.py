"""Conversion of any supported checkpoint to a model folder, and of a model folder to diffusers.

A checkpoint may be a single network. An autoencoder becomes a model folder for `train-diffusion
--vae`, a UNet a model folder with only that UNet, a ControlNet a folder for `generate --control`.
"""

from __future__ import annotations

from pathlib import Path

import latentddpm
from latentddpm.choices import CONVERSIONS
from latentddpm.errors import check_choice
from latentddpm.interop.compvis.single_file import read_single_file
from latentddpm.interop.diffusers.checkpoint import CheckpointPart
from latentddpm.interop.diffusers.conditions import read_conditions
from latentddpm.interop.diffusers.control import (
    is_control_net,
    load_control_net,
    save_control_net,
)
from latentddpm.interop.diffusers.folder import build, read_folder, save_diffusers
from latentddpm.interop.diffusers.networks import validate
from latentddpm.models.archive import save_archive, weights_digest
from latentddpm.pipeline.control.folder import control_folder, load_control, save_control
from latentddpm.pipeline.model_folder import (
    FILES,
    check_convertible,
    describe_part,
    write_manifest,
)
from latentddpm.pipeline.parts import load_parts
from latentddpm.utils.console import say
from latentddpm.utils.files import atomic_folder, check_new
from latentddpm.utils.images.pixel_format import PixelFormat


def convert_from(
    path: str | Path,
    out: str | Path,
    *,
    variant: str | None = None,
    storage: str = "float32",
    quiet: bool = True,
) -> None:
    """Convert a checkpoint to a model folder.

    Args:
        path: a folder of diffusers, or a single-file checkpoint (`.safetensors`).
        out: a new or empty folder.
        variant: of the weight files in a folder, such as "fp16".
        storage: precision of the weights in the model folder, see `archive.STORAGE`.
        quiet: show no progress bars.

    Raises:
        UserError: see `load_diffusers` and `single_file.read_single_file`; or `out` exists.
    """
    path, out = Path(path), Path(out)
    check_convertible(path, variant)
    check_new(out)
    if path.is_dir() and is_control_net(path):
        say(f"{path}: holds a ControlNet, for generate --control", quiet)
        control = load_control_net(path, variant=variant, quiet=quiet)
        save_control(control, out, latentddpm.__version__, storage=storage)
        return
    checkpoint = read_folder(path, variant) if path.is_dir() else read_single_file(path)
    needs_more = checkpoint.vae is None and checkpoint.text is None and not checkpoint.of_pixels
    if checkpoint.unet is not None and needs_more:
        say(f"{path}: holds a UNet alone; --to diffusers takes what is made of it", quiet)
        _convert_unet(checkpoint.unet, out, storage, quiet)
        return
    if checkpoint.unet is None:
        say(f"{path}: holds an autoencoder alone, for train-diffusion --vae", quiet)
    build(checkpoint, quiet).save(out, storage)


def convert_to(
    target: str,
    model: str | Path,
    out: str | Path,
    *,
    storage: str = "float32",
    quiet: bool = True,
) -> None:
    """Convert a model folder, also one of a single network, to the format of another library.

    Args:
        target: "diffusers".
        model: a model folder, a finished run, or the name of a model in the package; or the
            folder of a ControlNet.
        out: a new or empty folder.
        storage: precision of the weights, see `archive.STORAGE`.
        quiet: show no progress bars.

    Raises:
        UserError: an unknown target; see `read_model_folder` and `save_diffusers`.
    """
    check_choice("--to", target, CONVERSIONS)
    if (folder := control_folder(model)) is not None:
        save_control_net(load_control(folder), out, storage=storage, quiet=quiet)
        return
    save_diffusers(load_parts(model), out, storage=storage, quiet=quiet)


def _convert_unet(part: CheckpointPart, out: Path, storage: str, quiet: bool) -> None:
    unet = validate(part).build(quiet)
    with atomic_folder(out) as staged:
        file = staged / FILES["unet"]
        save_archive(unet, file, storage)
        entries = {"unet": describe_part(file, weights_digest(unet))}
        write_manifest(
            staged,
            entries,
            None,
            None,
            {},
            latentddpm.__version__,
            PixelFormat(),
            conditions=read_conditions(part.config, part.source).to_json(),
        )
