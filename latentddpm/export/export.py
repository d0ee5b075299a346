"""Export of a model for other programs: one function, four formats.

    keras         a model folder of `.keras` archives
    saved-model   a TensorFlow SavedModel with the endpoints of `endpoints`
    onnx, litert  a file for each part, with what a server needs beside them:

    encoder.onnx  unet.onnx  decoder.onnx  text_encoder.onnx     (.tflite likewise)
    pipeline.json    names, shapes and digests of the files, the scaling factor, the noise
                     levels, the size and the defaults of `generate`
    tokenizer/       vocabulary and merges, in Hugging Face's files

What was written is run and compared with the model it came from before it takes its name.
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
from latentddpm.errors import UserError, check_choice
from latentddpm.export.endpoints import AXES, Endpoint, check, endpoints
from latentddpm.export.saved_model import save_saved_model
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import MANIFEST, TOKENIZER
from latentddpm.utils.files import FileEntry, atomic_folder, write_json
from latentddpm.utils.startup import held_stderr

FORMATS = ("keras", "saved-model", "onnx", "litert")
PART_FORMATS = ("onnx", "litert")  # each a module beside this one: TOOLS, SUFFIX, write
FORMAT_VERSION = 1


def export_model(
    model: LatentDiffusion,
    out: str | Path,
    format: str,
    storage: str = "float32",
    note: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:
    """Write a model for other programs, checked against the original before it takes its name.

    Args:
        model: what to write.
        out: new folder.
        format: "keras", "saved-model", "onnx" or "litert".
        storage: precision of the weights in `.keras` archives, see `archive.STORAGE`.
        note: takes a line for each endpoint that was written and checked.

    Returns:
        The largest difference of each endpoint to the model; nothing for `keras`.

    Raises:
        UserError: see `check_request`; or a part is too large for the format.
        ArithmeticError: what was written does not compute what the model does.
        OSError: the disk is full, or the folder cannot be written.

    Example:
        ```python
        model = latentddpm.LatentDiffusion.load("runs/ldm")
        latentddpm.export.export_model(model, "exported", "onnx")
        ```
    """
    out = Path(out)
    check_request(out, format, storage)
    if format == "keras":
        model.save(out, storage)
        return {}

    def report(name: str, difference: float, rest: str = "") -> None:
        note(f"{name}: largest difference {difference:.1e}{rest}")

    if format in PART_FORMATS:
        return _export_parts(model, out, format, report)
    return save_saved_model(model, out, report)


def check_request(out: Path, format: str, storage: str = "float32") -> None:
    """Refuse what cannot be, before a model is loaded.

    Raises:
        UserError: an unknown format, `out` exists, the format's tools are not installed, or a
            `storage` that it does not have.
    """
    check_choice("format", format, FORMATS)
    if out.exists():
        raise UserError(f"{out}: exists already; name a new folder")
    if format == "keras":
        return
    if storage != "float32":
        raise UserError(f"storage {storage!r}: only format 'keras' has it, not {format!r}")
    if keras.backend.backend() != "tensorflow":
        raise UserError(f"export --format {format} needs Keras's TensorFlow backend")
    if format in PART_FORMATS:
        writer = _writer(format)
        try:
            with held_stderr():
                for tool in writer.TOOLS:
                    importlib.import_module(tool)
        except ImportError as error:
            tools = ", ".join(writer.TOOLS)
            raise UserError(
                f"export --format {format} needs {tools} ({error}): "
                'pip install "latentddpm[export]"'
            ) from None


def _writer(format: str) -> ModuleType:
    return importlib.import_module(f"latentddpm.export.{format}")


def _export_parts(
    model: LatentDiffusion, out: Path, format: str, report: Callable[..., None]
) -> dict[str, float]:
    """A file for each part, checked, and what a server needs beside them."""
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
    """A part's entry in `pipeline.json`; the model's own file comes first."""
    files = sorted(file.parent.glob(f"{file.name}*"))
    return {
        "files": {each.name: asdict(FileEntry.of(each)) for each in files},
        "inputs": {
            spec.name: {
                "dtype": spec.dtype.name,
                "shape": [*AXES[spec.name], *spec.shape[len(AXES[spec.name]) :]],
            }
            for spec in endpoint.inputs
        },
        "outputs": list(endpoint.outputs),
        "largest_difference": difference,
    }


def _manifest(model: LatentDiffusion, format: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Everything about the model that is not in its networks."""
    schedule = None
    if model.schedule is not None:
        schedule = {
            **model.schedule.get_config(),
            "alphas_cumprod": model.schedule.alphas_cumprod.tolist(),
        }
    return {
        "format": format,
        "format_version": FORMAT_VERSION,
        "latentddpm": latentddpm.__version__,
        "model_digest": model.digest,
        "parts": parts,
        "scaling_factor": model.autoencoder.scaling_factor,
        "downsample_factor": model.autoencoder.downsample_factor,
        "latent_channels": model.autoencoder.latent_channels,
        "schedule": schedule,
        "image_size": list(model.image_size) if model.image_size else None,
        "defaults": model.defaults if model.unet is not None else {},
        "tokenizer": TOKENIZER if model.tokenizer is not None else None,
    }
