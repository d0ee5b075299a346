"""Folder of diffusers: read into a `LatentDiffusion`, and written from one.

    model_index.json                      class of the pipeline and of each part
    vae/ unet/                            config.json, diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json
    text_encoder/ tokenizer/              see `interop.clip`

Everything is checked before a weight is read: the classes, every key of every configuration, the
fit of the parts to each other, the names and shapes of all tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.interop import clip
from latentddpm.interop.diffusers.checkpoint import Checkpoint, CheckpointPart
from latentddpm.interop.diffusers.known_keys import AUTOENCODER, CLASSES, CONDITIONAL_UNET, UNET
from latentddpm.interop.diffusers.networks import arguments_of, rows_of, validate
from latentddpm.interop.diffusers.read_config import sample_size
from latentddpm.interop.diffusers.scheduler import KINDS, OTHERS, read_scheduler, scheduler_config
from latentddpm.interop.diffusers.weights import write
from latentddpm.interop.diffusers.write_config import autoencoder_config, unet_config
from latentddpm.interop.tensors import TensorFiles
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.recognise import PIPELINES
from latentddpm.pipeline.weight_files import STEMS, variants
from latentddpm.utils.files import atomic_folder, check_new, read_json, write_json

INDEX, CONFIG, SCHEDULER = "model_index.json", "config.json", "scheduler_config.json"
STEM = "diffusion_pytorch_model"
PARTS = {
    "vae": (AUTOENCODER,),
    "unet": (UNET, CONDITIONAL_UNET),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (*KINDS, *OTHERS),
}
# Parts of a pipeline that do not change the generated image; they are ignored.
LEFT_OUT = ("safety_checker", "feature_extractor")
# Defaults of `StableDiffusionPipeline`.
GUIDED = {"num_steps": 50, "guidance_scale": 7.5}


def load_diffusers(
    folder: str | Path, *, variant: str | None = None, quiet: bool = True
) -> LatentDiffusion:
    """Load a diffusers pipeline with the networks of Stable Diffusion 1.x, in any size.

    Weights are float32, float16 or bfloat16 and become float32, exactly. Settings of the scheduler
    that no sampler here has give a `SchedulerNote`, a warning.

    Args:
        folder: with `model_index.json`, or with `vae/`, `unet/` and `scheduler/`; or the folder
            of an autoencoder alone, which gives a model without UNet.
        variant: of the weight files, such as "fp16", in every part that has it; the plain files
            of the others are read, with a warning. By default the files without a variant, or
            those of the only one.
        quiet: show no progress bars.

    Returns:
        The model, whose `defaults` are those of the scheduler.

    Raises:
        UserError: a file is missing, malformed, or has something that is not supported; the
            message names the file and the key.

    Example:
        ```python
        model = latentddpm.interop.load_diffusers("stable-diffusion-v1-5", variant="fp16")
        images = model.generate("a red apple", seed=0)
        ```
    """
    return build(read_folder(folder, variant), quiet)


def save_diffusers(
    model: LatentDiffusion, folder: str | Path, *, storage: str = "float32", quiet: bool = True
) -> None:
    """Save a model as a folder for diffusers, atomically.

    A model with text becomes a `StableDiffusionPipeline`. diffusers has no pipeline for a model
    without text: its parts are written, each of which opens with `from_pretrained`.

    Args:
        model: to save.
        folder: a new or empty folder.
        storage: precision of autoencoder and UNet, "float32" or "float16".
        quiet: show no progress bars.

    Raises:
        UserError: the folder is not empty, or diffusers has no class for such a network.
        OSError: disk full, no permission.

    Example:
        ```python
        model = latentddpm.LatentDiffusion.load("runs/ldm")
        latentddpm.interop.save_diffusers(model, "for-diffusers", storage="float16")
        ```
    """
    folder = Path(folder)
    check_new(folder)
    configs = _configs(model)
    with atomic_folder(folder) as staged:
        for name, config in configs.items():
            (staged / name).mkdir()
            write_json(staged / name / (SCHEDULER if name == "scheduler" else CONFIG), config)
        for name, network in (("vae", model.autoencoder), ("unet", model.unet)):
            if network is not None:
                file = staged / name / f"{STEM}.safetensors"
                write(network, rows_of(network), file, name, storage, quiet)
        if model.text_encoder is not None:
            clip.write_text_encoder(
                model.text_encoder,
                model.tokenizer,
                staged / "text_encoder",
                staged / "tokenizer",
            )
            index = {
                name: ["diffusers", config["_class_name"]] for name, config in configs.items()
            }
            for name in ("text_encoder", "tokenizer"):
                index[name] = ["transformers", PARTS[name][0]]
            for name in LEFT_OUT:
                index[name] = [None, None]
            index["requires_safety_checker"] = False
            write_json(staged / INDEX, {"_class_name": PIPELINES[0], **index})


def read_folder(folder: str | Path, variant: str | None = None) -> Checkpoint:
    """Checkpoint in a diffusers folder; no weights are opened yet.

    Args:
        folder, variant: see `load_diffusers`.

    Raises:
        UserError: no such folder, not a diffusers folder, or an unsupported pipeline.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if not (folder / INDEX).is_file() and (folder / CONFIG).is_file():
        part = _part(folder, variant)
        kind = check_choice(
            f"{part.source}: _class_name", str(part.config.get("_class_name")), CLASSES
        )
        _check_variant(folder, {folder: STEM}, variant)
        return Checkpoint(str(folder), **{"vae" if kind == AUTOENCODER else "unet": part})
    parts = [name for name in PARTS if (folder / name).is_dir()]
    if (folder / INDEX).is_file():
        parts = _read_index(folder / INDEX)
    elif not {"vae", "unet"} & set(parts):
        raise UserError(
            f"{folder}: no {INDEX}, no {CONFIG}, no vae/ or unet/; expected a diffusers folder"
        )
    for name, what in (("vae", "autoencoder"), ("unet", "UNet")):
        if name not in parts and len(parts) > 1:
            raise UserError(
                f"{folder}: has no {what} ({name}/), and no model without it; for a single "
                f"network name its folder, such as {folder / parts[0]}"
            )
    stems = {folder / name: stem for name, stem in STEMS.items() if name in parts}
    _check_variant(folder, stems, variant)
    text = scheduler = None
    if "text_encoder" in parts and "tokenizer" in parts:
        places = folder / "text_encoder", folder / "tokenizer"
        text = partial(clip.read_text_encoder, *places, variant)
    if "scheduler" in parts:
        scheduler = _read(folder / "scheduler" / SCHEDULER)
    return Checkpoint(
        str(folder),
        vae=_part(folder / "vae", variant) if "vae" in parts else None,
        unet=_part(folder / "unet", variant) if "unet" in parts else None,
        scheduler=scheduler,
        scheduler_source=str(folder / "scheduler" / SCHEDULER),
        text=text,
    )


def _check_variant(folder: Path, stems: Mapping[Path, str], variant: str | None) -> None:
    """Refuse a variant that no part of a folder has.

    Args:
        folder: of the checkpoint, for the message.
        stems: folder of each part → how the names of its weight files begin.
        variant: that was asked for.
    """
    there = {name for place, stem in stems.items() for name in variants(place, stem)}
    if variant is not None and variant not in there:
        named = sorted(name for name in there if name is not None)
        has = f"it has {', '.join(named)}" if named else "its files have none: leave that out"
        raise UserError(
            f"{folder}: no weights of the variant {variant!r}{nearest(variant, named)}; {has}"
        )


def build(checkpoint: Checkpoint, quiet: bool = True) -> LatentDiffusion:
    """Build the model of a checkpoint, which may have an autoencoder alone.

    Args:
        checkpoint: with an autoencoder at least.
        quiet: show no progress bars.

    Raises:
        UserError: see `load_diffusers`; or there is no autoencoder.
    """
    if checkpoint.vae is None:
        raise UserError(f"{checkpoint.source}: has no autoencoder (vae), which a model needs")
    if checkpoint.unet is None:
        size = sample_size(checkpoint.vae.config, checkpoint.vae.source)
        return LatentDiffusion(validate(checkpoint.vae).build(quiet), None, None, image_size=size)
    # Fast checks first: of the configurations, then of the headers, before weights are read.
    sizes = {name: arguments_of(getattr(checkpoint, name)) for name in ("vae", "unet")}
    _check_fit(checkpoint, sizes["vae"], sizes["unet"])
    schedule, defaults = read_scheduler(checkpoint.scheduler, checkpoint.scheduler_source)
    latent_size = sample_size(checkpoint.unet.config, checkpoint.unet.source)
    vae, unet = validate(checkpoint.vae), validate(checkpoint.unet)
    text_encoder = tokenizer = None
    if checkpoint.text is not None:
        text_encoder, tokenizer = checkpoint.text()
        _check_width(checkpoint, sizes["unet"]["context_dim"], text_encoder.hidden_dim)
        defaults = {**GUIDED, **defaults}
    factor = 2 ** (len(sizes["vae"]["channel_multipliers"]) - 1)
    return LatentDiffusion(
        vae.build(quiet),
        unet.build(quiet),
        schedule,
        text_encoder,
        tokenizer,
        latent_size and (latent_size[0] * factor, latent_size[1] * factor),
        defaults,
    )


def _configs(model: LatentDiffusion) -> dict[str, dict[str, Any]]:
    """Configurations of autoencoder, UNet and scheduler, by the name of the part."""
    configs, latent_size = {}, None
    if model.autoencoder is not None:
        configs["vae"] = autoencoder_config(model.autoencoder, model.image_size)
        if model.image_size is not None:
            factor = model.autoencoder.downsample_factor
            latent_size = (model.image_size[0] // factor, model.image_size[1] // factor)
    if model.unet is not None:
        configs["unet"] = unet_config(model.unet, latent_size)
    if model.schedule is not None:
        configs["scheduler"] = scheduler_config(model.schedule, model.defaults)
    return configs


def _read_index(path: Path) -> list[str]:
    """Names of the parts in a `model_index.json`, after a check of their classes and folders."""
    index = read_json(path)
    check_choice(f"{path}: _class_name", str(index.get("_class_name")), PIPELINES)
    parts = []
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None] or name in LEFT_OUT:
            continue
        check_choice(f"{path}: part", name, (*PARTS, *LEFT_OUT))
        check_choice(f"{path}: {name}", str(value[-1] if value else None), PARTS[name])
        if not (path.parent / name).is_dir():
            raise UserError(f"{path.parent / name}: missing, but named in {path.name}")
        parts.append(name)
    return parts


def _part(folder: Path, variant: str | None) -> CheckpointPart:
    return CheckpointPart(
        str(folder / CONFIG),
        _read(folder / CONFIG),
        partial(TensorFiles.folder, folder, STEM, variant),
    )


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    return read_json(path)


def _check_fit(checkpoint: Checkpoint, vae: Mapping[str, Any], unet: Mapping[str, Any]) -> None:
    """Check that the parts of a checkpoint fit together."""
    if vae["latent_channels"] != unet["latent_channels"]:
        raise UserError(
            f"{checkpoint.unet.source}: in_channels is {unet['latent_channels']}, but the "
            f"autoencoder's latents have {vae['latent_channels']}"
        )
    if checkpoint.scheduler is None:
        raise UserError(f"{checkpoint.source}: has a UNet but no scheduler/{SCHEDULER}")
    if (unet["context_dim"] is None) != (checkpoint.text is None):
        has = "no text encoder with a tokenizer" if checkpoint.text is None else "a text encoder"
        raise UserError(
            f"{checkpoint.source}: has {has}, and its UNet is a "
            f"{checkpoint.unet.config['_class_name']}"
        )


def _check_width(checkpoint: Checkpoint, context_dim: int, hidden_dim: int) -> None:
    if context_dim != hidden_dim:
        raise UserError(
            f"{checkpoint.unet.source}: cross_attention_dim is {context_dim}, but the text "
            f"encoder is {hidden_dim} wide"
        )
