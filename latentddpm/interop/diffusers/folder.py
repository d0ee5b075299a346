"""Folder of diffusers: read into a `LatentDiffusion`, and written from one.

    model_index.json                      class of the pipeline and of each part
    vae/ unet/                            config.json, diffusion_pytorch_model.safetensors
    scheduler/scheduler_config.json
    text_encoder/ tokenizer/              see `interop.clip`

A `DDPMPipeline` or `DDIMPipeline` has a UNet and a scheduler alone and becomes a model of pixels.
Their first folders, such as google/ddpm-cifar10-32, hold the files of both at the top.

Everything is checked before a weight is read: the classes, every key of every configuration, the
fit of the parts to each other, the names and shapes of all tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.interop import clip
from latentddpm.interop.diffusers.checkpoint import (
    SCHEDULER,
    Checkpoint,
    CheckpointPart,
    check_fit,
    check_width,
)
from latentddpm.interop.diffusers.conditions import pipeline_of, read_conditions
from latentddpm.interop.diffusers.known_keys import AUTOENCODER, CLASSES, CONDITIONAL_UNET, UNET
from latentddpm.interop.diffusers.networks import arguments_of, rows_of, validate
from latentddpm.interop.diffusers.read_config import sample_size
from latentddpm.interop.diffusers.scheduler import (
    FLOW_KINDS,
    KINDS,
    OTHERS,
    read_scheduler,
    scheduler_config,
)
from latentddpm.interop.diffusers.weights import write
from latentddpm.interop.diffusers.write_config import autoencoder_config, unet_config
from latentddpm.interop.tensors import TensorFiles
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.weight_files import (
    INPAINT,
    PIPELINES,
    PIX2PIX,
    PIXEL_PIPELINES,
    STEMS,
    UPSCALE,
    variants,
)
from latentddpm.utils.files import atomic_folder, check_new, read_json, write_json

INDEX, CONFIG = "model_index.json", "config.json"
STEM = "diffusion_pytorch_model"
PARTS = {
    "vae": (AUTOENCODER,),
    "unet": (UNET, CONDITIONAL_UNET),
    "text_encoder": ("CLIPTextModel",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (*KINDS, *FLOW_KINDS, *OTHERS),
}
# Parts of a pipeline that do not change the generated image; they are ignored. The second
# scheduler of an upscaler adds noise to its picture, which is told as it is here.
LEFT_OUT = ("safety_checker", "feature_extractor", "watermarker", "low_res_scheduler")
DDPM, DDIM = PIXEL_PIPELINES
VERSION, SINCE = "_diffusers_version", "0.6.0"
"""Key, and its value, without which diffusers' `StableDiffusionInpaintPipeline` does not open."""
# Defaults of the pipelines of diffusers; of the others `StableDiffusionPipeline`'s.
GUIDANCE_SCALE = {UPSCALE: 9.0}
OTHER_GUIDANCE_SCALE = 7.5
IMAGE_SCALE = 1.5
NUM_STEPS = {DDPM: 1000, PIX2PIX: 100, UPSCALE: 75}
OTHER_NUM_STEPS = 50


def load_diffusers(
    folder: str | Path, *, variant: str | None = None, quiet: bool = True
) -> LatentDiffusion:
    """Load a diffusers pipeline: Stable Diffusion 1.x in any size, or a `DDPMPipeline`.

    Weights are float32, float16 or bfloat16 and become float32, exactly. Settings of the scheduler
    that no sampler here has give a `SchedulerNote`, a warning.

    Args:
        folder: with `model_index.json`, or with `vae/`, `unet/` and `scheduler/`; or the folder
            of an autoencoder alone, which gives a model without UNet. A `DDPMPipeline` or
            `DDIMPipeline` gives a model of pixels.
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

    A model with text becomes a `StableDiffusionPipeline`, or that for inpainting or for
    instructions if its only condition is theirs; with other conditions its parts are written. A
    model of pixels becomes a
    `DDPMPipeline` if its default sampler is "ddpm" or it was trained by flow matching, else a
    `DDIMPipeline`, which draws with DDIM whatever the default sampler. diffusers has no pipeline
    for a model of latents without text: its parts are written, each of which opens with
    `from_pretrained`.

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
            if name in configs:
                file = staged / name / f"{STEM}.safetensors"
                write(network, rows_of(network), file, name, storage, quiet)
        index: dict[str, Any] = {
            name: ["diffusers", config["_class_name"]] for name, config in configs.items()
        }
        if isinstance(model.autoencoder, PixelSpace):
            write_json(staged / INDEX, {"_class_name": _pixel_pipeline(model), **index})
        if model.text_encoder is not None:
            clip.write_text_encoder(
                model.text_encoder,
                model.tokenizer,
                staged / "text_encoder",
                staged / "tokenizer",
            )
            for name in ("text_encoder", "tokenizer"):
                index[name] = ["transformers", PARTS[name][0]]
            index |= {name: [None, None] for name in LEFT_OUT[:2]}
            index["requires_safety_checker"] = False
            kind = pipeline_of(model.conditions, model.autoencoder)
            if kind is not None:
                more = {VERSION: SINCE} if kind == INPAINT else {}
                write_json(staged / INDEX, {"_class_name": kind, **more, **index})


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
    parts, kind = [name for name in PARTS if (folder / name).is_dir()], None
    if (folder / INDEX).is_file():
        parts, kind = _read_index(folder / INDEX)
    elif not {"vae", "unet"} & set(parts):
        raise UserError(
            f"{folder}: no {INDEX}, no {CONFIG}, no vae/ or unet/; expected a diffusers folder"
        )
    for name, what in (("vae", "autoencoder"), ("unet", "UNet")):
        if name not in parts and len(parts) > 1 and kind not in PIXEL_PIPELINES:
            raise UserError(
                f"{folder}: has no {what} ({name}/), and no model without it; for a single "
                f"network name its folder, such as {folder / parts[0]}"
            )
    places = {name: _place(folder, name, kind) for name in parts}
    _check_variant(folder, {places[n]: stem for n, stem in STEMS.items() if n in parts}, variant)
    text = scheduler = None
    if "text_encoder" in parts and "tokenizer" in parts:
        text = partial(
            clip.read_text_encoder, places["text_encoder"], places["tokenizer"], variant
        )
    if "scheduler" in parts:
        scheduler = _read(places["scheduler"] / SCHEDULER)
        if kind == DDIM:  # it makes a DDIM scheduler of any other, by its configuration
            scheduler["_class_name"] = "DDIMScheduler"
    return Checkpoint(
        str(folder),
        vae=_part(places["vae"], variant) if "vae" in parts else None,
        unet=_part(places["unet"], variant) if "unet" in parts else None,
        scheduler=scheduler,
        scheduler_source=str(places.get("scheduler", folder) / SCHEDULER),
        text=text,
        pipeline=kind,
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
        checkpoint: with an autoencoder at least, or of a pipeline that has none.
        quiet: show no progress bars.

    Raises:
        UserError: see `load_diffusers`; or there is no autoencoder.
    """
    if checkpoint.vae is None and not checkpoint.of_pixels:
        raise UserError(f"{checkpoint.source}: has no autoencoder (vae), which a model needs")
    if checkpoint.unet is None:
        size = sample_size(checkpoint.vae.config, checkpoint.vae.source)
        return LatentDiffusion(validate(checkpoint.vae).build(quiet), None, None, image_size=size)
    # Fast checks first: of the configurations, then of the headers, before weights are read.
    of_vae, of_unet = (part and arguments_of(part) for part in (checkpoint.vae, checkpoint.unet))
    check_fit(checkpoint, of_vae, of_unet)
    schedule, defaults = read_scheduler(
        checkpoint.scheduler, checkpoint.scheduler_source, checkpoint.of_pixels
    )
    latent_size = sample_size(checkpoint.unet.config, checkpoint.unet.source)
    vae, unet = (part and validate(part) for part in (checkpoint.vae, checkpoint.unet))
    conditions = read_conditions(checkpoint.unet.config, checkpoint.unet.source, of_vae)
    text_encoder = tokenizer = None
    if checkpoint.text is not None:
        text_encoder, tokenizer = checkpoint.text()
        check_width(checkpoint, of_unet["context_dim"], text_encoder.hidden_dim)
        scale = GUIDANCE_SCALE.get(checkpoint.pipeline, OTHER_GUIDANCE_SCALE)
        defaults = {"guidance_scale": scale, **defaults}
        if checkpoint.pipeline == PIX2PIX:
            pictures = {one.name: IMAGE_SCALE for one in conditions if one.null}
            defaults["condition_scales"] = pictures
    steps = NUM_STEPS.get(checkpoint.pipeline, OTHER_NUM_STEPS)
    defaults = {"num_steps": min(steps, schedule.num_train_timesteps), **defaults}
    first_stage = vae.build(quiet) if vae else PixelSpace(of_unet["latent_channels"])
    factor = first_stage.downsample_factor
    return LatentDiffusion(
        first_stage,
        unet.build(quiet),
        schedule,
        text_encoder,
        tokenizer,
        latent_size and (latent_size[0] * factor, latent_size[1] * factor),
        defaults,
        conditions=conditions,
    )


def _configs(model: LatentDiffusion) -> dict[str, dict[str, Any]]:
    """Configurations of autoencoder, UNet and scheduler, by the name of the part."""
    configs, latent_size, defaults = {}, None, model.defaults
    pixels = isinstance(model.autoencoder, PixelSpace)
    if model.autoencoder is not None and not pixels:
        configs["vae"] = autoencoder_config(model.autoencoder, model.image_size)
    if model.autoencoder is not None and model.image_size is not None:
        factor = model.autoencoder.downsample_factor
        latent_size = tuple(side // factor for side in model.image_size)
    if model.unet is not None:
        configs["unet"] = unet_config(model.unet, latent_size, model.conditions)
    if pixels and _pixel_pipeline(model) == DDIM and defaults["sampler"] != "ddim":
        defaults = {**defaults, "sampler": "ddim", "sampler_options": {}}
    if model.schedule is not None:
        configs["scheduler"] = scheduler_config(model.schedule, defaults)
    return configs


def _pixel_pipeline(model: LatentDiffusion) -> str:
    """Class of diffusers for a model of pixels; DDPM's takes the schedulers of flow matching."""
    flow = isinstance(model.schedule, FlowSchedule)
    return DDPM if flow or model.defaults["sampler"] == "ddpm" else DDIM


def _place(folder: Path, part: str, pipeline: str | None) -> Path:
    """Folder of a part of a pipeline: its own, or the top in early folders of models of pixels."""
    own = folder / part
    return folder if pipeline in PIXEL_PIPELINES and not own.is_dir() else own


def _read_index(path: Path) -> tuple[list[str], str]:
    """Names of the parts in a `model_index.json`, checked, and the class of the pipeline."""
    index = read_json(path)
    kind = check_choice(f"{path}: _class_name", str(index.get("_class_name")), PIPELINES)
    known = {**PARTS, **dict.fromkeys(LEFT_OUT, ())}
    if kind in PIXEL_PIPELINES:
        known = {"unet": (UNET,), "scheduler": PARTS["scheduler"]}
    parts = []
    for name, value in index.items():
        if not isinstance(value, list) or value == [None, None] or name in LEFT_OUT:
            continue
        check_choice(f"{path}: part of a {kind}", name, known)
        check_choice(f"{path}: {name}", str(value[-1] if value else None), known[name])
        if not _place(path.parent, name, kind).is_dir():
            raise UserError(f"{path.parent / name}: missing, but named in {path.name}")
        parts.append(name)
    if kind in PIXEL_PIPELINES and "unet" not in parts:
        raise UserError(f"{path}: names no unet, which a {kind} needs")
    return parts, kind


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
