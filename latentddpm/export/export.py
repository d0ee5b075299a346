"""Export of a model for other programs, in one of five formats.

    keras         a model folder of `.keras` archives
    graphs        the graphs of an older model folder, written into it
    saved-model   a TensorFlow SavedModel with the endpoints of `export.endpoints`
    onnx, litert  a file for each part, and other files that a server needs:

    encoder.onnx  unet.onnx  decoder.onnx  text_encoder.onnx     (or .tflite), those there are
    pipeline.json    names, shapes and digests of the files, scaling and shift of the latents,
                     the noise levels, the image size and the defaults of `generate`
    tokenizer/       vocabulary and merges, as files of Hugging Face

What was written is run and compared with the model before it gets its final name.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import keras

import latentddpm
from latentddpm.choices import EXPORTS
from latentddpm.errors import UserError
from latentddpm.export.endpoints import Endpoint, check, endpoints
from latentddpm.export.graphs import add_graphs
from latentddpm.export.request import IN_PLACE, check_request, needs_tools
from latentddpm.export.saved_model import save_saved_model
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import MANIFEST, TOKENIZER
from latentddpm.utils.console import held_stderr
from latentddpm.utils.files import FileEntry, atomic_folder, write_json

PART_FORMATS = ("onnx", "litert")  # each is a module of `export` with SUFFIX and `write`
FORMAT_VERSION = 1


def export_model(
    model: LatentDiffusion,
    out: str | Path,
    format: str,
    storage: str = "float32",
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Export a model for other programs, and check what was written against the model.

    Args:
        model: to export.
        out: a new folder; for "graphs" the model folder that the model was loaded from.
        format: "keras", "graphs", "saved-model", "onnx" or "litert".
        storage: precision of the weights in `.keras` archives, "float32" or "float16".
        note: called with a line of text for each endpoint or graph that was written and checked.

    Returns:
        Endpoint or graph → largest difference from the model; empty for "keras".

    Raises:
        UserError: see `request.check_request`; the model has no autoencoder; or a part is too
            large for the format.
        ArithmeticError: the exported model computes something else.
        OSError: the disk is full, or the folder cannot be written.

    Example:
        ```python
        model = latentddpm.LatentDiffusion.load("runs/ldm")
        latentddpm.export.export_model(model, "exported", "onnx")
        ```
    """
    out = Path(out)
    check_request(None if format == IN_PLACE else out, format, storage)

    def report(name: str, difference: float, rest: str = "") -> None:
        note(f"{name}: largest difference {difference:.1e}{rest}")

    if format == "keras":
        model.save(out, storage)
        return {}
    if format == IN_PLACE:
        return add_graphs(model, out, report)
    if model.unet is not None and model.unet.spatial_dims != 2:
        raise UserError(
            f"export --format {format}: is for images, and this model has "
            f"{model.unet.spatial_dims} spatial dimensions; expected --format keras"
        )
    if model.autoencoder is None:
        raise UserError("this model is a UNet alone; an export needs its autoencoder too")
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"export --format {format} needs Keras's TensorFlow backend")
    if format in PART_FORMATS:
        return _export_parts(model, out, format, report)
    return save_saved_model(model, out, report)


def _writer(format: str) -> ModuleType:
    """Module that writes a format for each part, with the packages that it needs.

    Raises:
        UserError: one of them cannot be imported.
    """
    try:
        with held_stderr():
            for tool in EXPORTS[format]:
                importlib.import_module(tool)
    except ImportError as error:
        raise needs_tools(format, str(error)) from None
    return importlib.import_module(f"latentddpm.export.{format}")


def _export_parts(
    model: LatentDiffusion, out: Path, format: str, report: Callable[..., None]
) -> dict[str, float]:
    """Write and check a file for each part, and write the other files."""
    writer = _writer(format)
    parts, differences = {}, {}
    with atomic_folder(out) as staged:
        for name, endpoint in endpoints(model).items():
            start = time.perf_counter()
            file = staged / f"{endpoint.part}{writer.SUFFIX}"
            with held_stderr():
                run = writer.write(endpoint, file)
            differences[name] = check(endpoint, run, model)
            parts[endpoint.part] = _describe(endpoint, file, differences[name])
            size = sum(each["bytes"] for each in parts[endpoint.part]["files"].values())
            seconds = time.perf_counter() - start
            report(
                name, differences[name], f" ({file.name}, {size / 1e6:.1f} MB, {seconds:.0f} s)"
            )
        if model.tokenizer is not None:
            model.tokenizer.save(staged / TOKENIZER, standalone=True)
        write_json(staged / MANIFEST, _manifest(model, format, parts))
    return differences


def _describe(endpoint: Endpoint, file: Path, difference: float) -> dict[str, Any]:
    """Entry of a part in `pipeline.json`; its own file comes before that of external weights."""
    files = sorted(file.parent.glob(f"{file.name}*"))
    return {
        "files": {each.name: asdict(FileEntry.of(each)) for each in files},
        "inputs": {
            spec.name: {
                "dtype": spec.dtype.name,
                "shape": [*axes, *spec.shape[len(axes) :]],
            }
            for spec in endpoint.inputs
            for axes in [endpoint.axes(spec.name)]
        },
        "outputs": list(endpoint.outputs),
        "largest_difference": difference,
    }


def _manifest(model: LatentDiffusion, format: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Content of `pipeline.json`: everything about the model that is not in its networks."""
    schedule = None
    if model.schedule is not None:
        schedule = model.schedule.get_config()
        if not model.schedule.continuous:  # σ of a flow schedule is timestep / T
            schedule["alphas_cumprod"] = model.schedule.alphas_cumprod.tolist()
    return {
        "format": format,
        "format_version": FORMAT_VERSION,
        "latentddpm": latentddpm.__version__,
        "model_digest": model.digest,
        "parts": parts,
        **asdict(model.autoencoder.latent_space),
        **({"first_stage": "none"} if isinstance(model.autoencoder, PixelSpace) else {}),
        "downsample_factor": model.autoencoder.downsample_factor,
        "latent_channels": model.autoencoder.latent_channels,
        "schedule": schedule,
        "image_size": list(model.image_size) if model.image_size else None,
        "defaults": model.defaults if model.unet is not None else {},
        "tokenizer": TOKENIZER if model.tokenizer is not None else None,
        **({} if model.pixels.is_default else {"pixels": model.pixels.to_json()}),
        **({"conditions": model.conditions.to_json()} if model.conditions else {}),
    }
