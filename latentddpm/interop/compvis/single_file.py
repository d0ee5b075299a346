"""Single-file checkpoint of Stable Diffusion 1.x: a `.safetensors` file with CompVis' names.

    model.diffusion_model.…             the UNet
    first_stage_model.…                 the autoencoder
    cond_stage_model.transformer.…      CLIP's text encoder, with transformers' names
    alphas_cumprod, model_ema.…, …      buffers, averaged weights, training state

Such a file has no configuration. It is inferred (see `compvis.config`), and the tensors are
renamed (see `compvis.names`), which gives a `Checkpoint` with the keys and names of diffusers. As
in diffusers the plain weights are read, not the averaged ones, where a file has both.

The header is checked before a weight is read. Other models are refused by their name, see
`pipeline.weight_files.LAYOUTS`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError, check_choice
from latentddpm.interop.clip import PREFIX, build_clip, read_clip_config
from latentddpm.interop.clip_names import clip_variables
from latentddpm.interop.compvis.averaged import plain_tensors
from latentddpm.interop.compvis.config import (
    LATENT_FACTOR,
    Shape,
    Shapes,
    text_config,
    unet_config,
    vae_config,
)
from latentddpm.interop.compvis.names import unet_names, vae_names
from latentddpm.interop.diffusers.checkpoint import Checkpoint, CheckpointPart
from latentddpm.interop.diffusers.folder import build
from latentddpm.interop.diffusers.read_config import autoencoder_arguments, unet_arguments
from latentddpm.interop.diffusers.weight_map import (
    AUTOENCODER_SIZES,
    UNET_SIZES,
    TensorMapping,
    autoencoder_rows,
    unet_rows,
)
from latentddpm.interop.tensors import DTYPES, RenamedTensors, TensorFiles, Tensors, refuse_pickle
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.weight_files import READ, layout_of, read_header

UNET_PREFIXES = ("model.diffusion_model.", "")
VAE_PREFIXES = ("first_stage_model.", "")
TEXT_PREFIX = "cond_stage_model.transformer."
TRAINING_STATE = ("loss.", "model_ema.")

SCHEDULER = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "clip_sample": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
SCHEDULE_TOLERANCE = 2e-3  # in half precision `alphas_cumprod` is exact to 5e-4

# `modelspec.prediction_type` → `prediction_type` of diffusers.
PREDICTIONS = {"epsilon": "epsilon", "v": "v_prediction", "v_prediction": "v_prediction"}


def load_single_file(path: str | Path, *, quiet: bool = True) -> LatentDiffusion:
    """Load a model from a single-file checkpoint.

    A file with only an autoencoder gives a model without UNet.

    Args:
        path: of the file.
        quiet: show no progress bars.

    Raises:
        UserError: see `read_single_file`; or the file has a UNet alone.
    """
    return build(read_single_file(path), quiet)


def read_single_file(path: str | Path) -> Checkpoint:
    """Checkpoint in the file at `path`; no weight is read yet.

    Raises:
        UserError: the file is missing, a pickle, damaged, or another model than Stable
            Diffusion 1.x or one network of it.
    """
    path = Path(path)
    refuse_pickle(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder")
    header = read_header(path)
    layout = layout_of(header)
    if layout is None:
        first = ", ".join(map(repr, sorted(header)[:3])) or "nothing"
        raise UserError(f"{path}: no Stable Diffusion 1.x checkpoint; it holds {first}")
    if layout.command != READ:
        advice = layout.advice if not layout.command else "generate --lora and merge take it"
        raise UserError(f"{path}: is {layout.what}; {advice}")
    metadata = header.get("__metadata__", {})
    stored = TensorFiles([path])
    tensors = plain_tensors(stored)
    shapes = {key: tensors.shape(key) for key in tensors.keys()}  # noqa: SIM118 (no mapping)
    unet = _unet_part(tensors, shapes, metadata)
    vae = _vae_part(tensors, shapes)
    text = _text_reader(tensors, shapes)
    parts = {"UNet": unet, "autoencoder": vae, "text encoder": text}
    lacking = [name for name, part in parts.items() if part is None]
    if len(lacking) == len(parts):
        raise UserError(f"{path}: is {layout.what}, but lacks the tensors of its first layers")
    if lacking and not (text is None and len(lacking) == 2):  # not one network alone
        raise UserError(
            f"{path}: a pruned file, it has no {lacking[0]}; load it in diffusers together with "
            f"its {lacking[0]}, save_pretrained(folder), and convert that folder"
        )
    if tensors is not stored:
        warnings.warn(f"{path}: averaged weights (EMA) are read, it has no others", stacklevel=2)
    scheduler = None if unet is None else _scheduler(tensors, shapes, metadata)
    return Checkpoint(str(path), vae, unet, scheduler, scheduler_source=str(path), text=text)


# --- UNet ----------------------------------------------------------------------------------


def _unet_part(
    tensors: Tensors, shapes: Shapes, metadata: Mapping[str, str]
) -> CheckpointPart | None:
    prefix = _prefix(shapes, UNET_PREFIXES, "input_blocks.0.0.weight")
    if prefix is None:
        return None
    source = f"{tensors.name} (UNet)"
    inner = _below(shapes, prefix)
    config = unet_config(inner, source)
    resolution = re.fullmatch(r"(\d{2,5})x(\d{2,5})", metadata.get("modelspec.resolution", ""))
    if resolution:
        width, height = (int(side) // LATENT_FACTOR for side in resolution.groups())
        config["sample_size"] = [height, width]
    arguments = unet_arguments(config, source)
    rows = list(
        unet_rows(
            **{key: arguments[key] for key in UNET_SIZES}, linear=config["use_linear_projection"]
        )
    )
    names = unet_names(
        [row.key for row in rows],
        len(arguments["channel_multipliers"]),
        arguments["num_res_blocks"],
        arguments["attention_levels"],
    )
    return _part(source, config, tensors, prefix, names, inner, {})


# --- Autoencoder ---------------------------------------------------------------------------


def _vae_part(tensors: Tensors, shapes: Shapes) -> CheckpointPart | None:
    prefix = _prefix(shapes, VAE_PREFIXES, "encoder.conv_in.weight")
    if prefix is None:
        return None
    source = f"{tensors.name} (autoencoder)"
    inner = _below(shapes, prefix)
    config = vae_config(inner, source)
    arguments = autoencoder_arguments(config, source)
    rows = list(autoencoder_rows(**{key: arguments[key] for key in AUTOENCODER_SIZES}))
    names = vae_names(
        [row.key for row in rows],
        len(arguments["channel_multipliers"]),
        arguments["num_res_blocks"],
    )
    projections = {row.key: row.shape for row in rows if _is_projection(row)}
    return _part(source, config, tensors, prefix, names, inner, projections)


def _is_projection(row: TensorMapping) -> bool:
    return row.layout == "dense" and ".attentions." in row.key


# --- Text encoder --------------------------------------------------------------------------


def _text_reader(
    tensors: Tensors, shapes: Shapes
) -> Callable[[], tuple[TextEncoder, CLIPTokenizer]] | None:
    inner = _below(shapes, TEXT_PREFIX)
    if not inner:
        return None
    prefix = PREFIX if any(key.startswith(PREFIX) for key in inner) else ""
    source = f"{tensors.name} (text encoder)"
    config = text_config(_below(inner, prefix), source)
    sizes, _ = read_clip_config(config, source)
    names = {name: f"{TEXT_PREFIX}{prefix}{name}" for name, *_ in clip_variables(sizes)}
    tokenizer = CLIPTokenizer(sizes["context_length"])
    if tokenizer.vocabulary_size > sizes["vocabulary_size"]:
        raise UserError(
            f"{source}: has {sizes['vocabulary_size']} tokens; expected CLIP's "
            f"{tokenizer.vocabulary_size}"
        )
    return lambda: (build_clip(config, RenamedTensors(tensors, names), source), tokenizer)


# --- Schedule ------------------------------------------------------------------------------


def _scheduler(tensors: Tensors, shapes: Shapes, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Scheduler of Stable Diffusion 1.x, with the prediction type of the file.

    Models that predict v have an empty tensor `v_pred`, those with zero terminal SNR an empty
    tensor `ztsnr`.
    """
    said = metadata.get("modelspec.prediction_type", "v" if "v_pred" in shapes else "epsilon")
    check_choice(f"{tensors.name}: modelspec.prediction_type", said, tuple(PREDICTIONS))
    scheduler = {**SCHEDULER, "prediction_type": PREDICTIONS[said]}
    if "ztsnr" in shapes:
        return {**scheduler, "rescale_betas_zero_snr": True}
    key = "alphas_cumprod"
    if key in shapes and tensors.dtype(key) in DTYPES:
        expected = NoiseSchedule().alphas_cumprod
        # Not a weight: a buffer of a thousand numbers.
        fits = shapes[key] == expected.shape
        if not fits or not np.allclose(tensors.read(key), expected, 0, SCHEDULE_TOLERANCE):
            raise UserError(
                f"{tensors.name}: {key} is not that of Stable Diffusion 1.x (scaled_linear, "
                "0.00085 to 0.012, 1000 timesteps); other schedules are not supported"
            )
    return scheduler


# --- Names and shapes ----------------------------------------------------------------------


def _part(
    source: str,
    config: dict[str, Any],
    tensors: Tensors,
    prefix: str,
    names: Mapping[str, str],
    inner: Shapes,
    shapes: Shapes,
) -> CheckpointPart:
    """Part of the checkpoint, after a check that the network has all weights below `prefix`."""
    left = set(inner) - set(names.values())
    if unknown := sorted(key for key in left if _is_weight(key)):
        named = ", ".join(repr(prefix + key) for key in unknown[:3])
        raise UserError(
            f"{source}: no network of Stable Diffusion 1.x; it has no place for {named}"
            + (f" and {len(unknown) - 3} more" if len(unknown) > 3 else "")
        )
    originals = {key: prefix + name for key, name in names.items()}
    renamed = RenamedTensors(tensors, originals, shapes)
    return CheckpointPart(source, config, lambda: renamed)


def _is_weight(key: str) -> bool:
    """True for the name of a weight; names of buffers have no dot."""
    return "." in key and not key.startswith(TRAINING_STATE)


def _prefix(shapes: Shapes, prefixes: tuple[str, ...], key: str) -> str | None:
    return next((prefix for prefix in prefixes if prefix + key in shapes), None)


def _below(shapes: Shapes, prefix: str) -> dict[str, Shape]:
    """Shapes of the tensors whose names begin with `prefix`, by their names without it."""
    return {
        key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)
    }
