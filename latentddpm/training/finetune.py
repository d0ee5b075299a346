"""Fine-tuning: a run that starts from the networks of a finished model, `init`.

Sizes, schedule, text encoder, image size and sampling defaults come from the model. A
configuration that sets another value is refused where the weights depend on it: a UNet that was
trained to predict ε does not predict v. Settings on which no weights depend (dropout, image size,
sampling) may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import latentddpm
from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import AutoencoderRun, DiffusionRun, Section
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.interop.lora import add_lora, save_lora
from latentddpm.models.archive import load_archive, read_config
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.functional import freeze, rebuild
from latentddpm.models.unet import UNet
from latentddpm.pipeline.model_folder import TOKENIZER, ModelFolder
from latentddpm.pipeline.settings import DEFAULTS

OWN_SOURCES = ("init", "scratch")
"""Values of `text.source` allowed with an `init` that has a text encoder."""


def inherit_config(config: DiffusionRun, base: ModelFolder) -> DiffusionRun:
    """Configuration of a run that starts from a model, whose values fill in those not given.

    Args:
        config: as given.
        base: the model.

    Returns:
        The complete configuration.

    Raises:
        UserError: the model has no UNet, or the configuration sets another value where weights
            depend on it; key, value and the model's value are named.
    """
    unet = read_config(base.file("unet"), UNet)
    sizes = {key: unet[key] for key in type(config.unet).model_fields if key in unet}
    sizes.pop("dropout")
    text = {"source": "none"}
    if "text_encoder" in base.parts:
        encoder = read_config(base.file("text_encoder"), TextEncoder)
        text = {key: encoder[key] for key in type(config.text).model_fields if key in encoder}
        text.pop("trainable", None)
        said = config.text.model_fields_set
        text["source"] = "init"
        if "source" in said and config.text.source in OWN_SOURCES:
            text["source"] = config.text.source
    changes = {
        "unet": _agree(config.unet, "unet", sizes, base),
        "text": _agree(config.text, "text", text, base),
    }
    if base.schedule is not None:
        schedule = NoiseSchedule.from_config(base.schedule).get_config()
        changes["schedule"] = _agree(config.schedule, "schedule", schedule, base)
    drawn = {key: base.defaults[key] for key in DEFAULTS if key in base.defaults}
    changes["samples"] = _fill(config.samples, drawn)
    if base.image_size is not None and base.image_size[0] == base.image_size[1]:
        changes["data"] = _fill(config.data, {"resolution": base.image_size[0]})
    config = config.model_copy(update=changes)
    if config.lora.rank and config.text.trained:
        raise UserError(
            "lora.rank: what would be trained of the text encoder is not part of a LoRA file; "
            "set text.trainable=false"
        )
    return config


def save_trained_lora(unet: UNet, path: Path, config: DiffusionRun, base: ModelFolder) -> None:
    """Write a run's LoRA, with metadata that identifies it and its model.

    Args:
        unet: with the trained LoRA.
        path: of the `.safetensors` file.
        config: of the run.
        base: model that the LoRA belongs to.
    """
    lora = config.lora
    alpha = lora.alpha or lora.rank
    metadata = {
        "latentddpm": latentddpm.__version__,
        "base_model": base.path.parent.name if base.path.name == "model" else base.path.name,
        "base_digest": base.digest,
        "rank": lora.rank,
        "alpha": alpha,
        "targets": " ".join(lora.targets),
        "ss_network_module": "networks.lora",  # kohya's scripts and interfaces look for this key
        "ss_network_dim": lora.rank,
        "ss_network_alpha": alpha,
    }
    save_lora(unet, path, metadata)


def base_networks(
    config: DiffusionRun, base: ModelFolder, dtype: str
) -> tuple[UNet, TextEncoder | None, CLIPTokenizer | None]:
    """UNet, text encoder and tokenizer of a model, ready for fine-tuning.

    With `lora.rank` only a LoRA of the UNet is trainable. The text encoder is frozen unless
    `text.trained`.

    Args:
        config: returned by `inherit_config`.
        base: the model.
        dtype: dtype policy of the networks, such as "mixed_bfloat16".

    Returns:
        (UNet, text encoder, tokenizer); the last two are None for an unconditional model.
    """
    unet = load_archive(base.file("unet"), UNet)
    how = {"dropout": config.unet.dropout, "recompute": config.unet.recompute}
    unet = rebuild(unet, dtype=dtype, **how)
    lora = config.lora
    if lora.rank:
        add_lora(unet, lora.rank, lora.alpha or lora.rank, lora.targets)
    if "text_encoder" not in base.parts:
        return unet, None, None
    text_encoder = load_archive(base.file("text_encoder"), TextEncoder)
    if dtype != "float32":
        text_encoder = rebuild(text_encoder, dtype=dtype)
    if config.text.trained:
        text_encoder.trainable = True
    else:
        freeze(text_encoder)
    return unet, text_encoder, CLIPTokenizer.load(base.path / TOKENIZER)


def check_autoencoder(base: ModelFolder, vae: ModelFolder) -> None:
    """Refuse an autoencoder other than the one that a UNet was trained with.

    Args:
        base: folder with the UNet.
        vae: folder with the autoencoder.

    Raises:
        UserError: naming both folders.
    """
    known = base.parts["unet"].get("vae_digest")
    found = vae.parts["vae"]["digest"]
    if known not in (None, found):
        raise UserError(
            f"{vae.path}: another autoencoder (digest {found[:12]}) than the one whose latents "
            f"{base.path} was trained on ({known[:12]}); leave --vae out to take its own"
        )


def inherit_autoencoder_config(config: AutoencoderRun, base: ModelFolder) -> AutoencoderRun:
    """Configuration of a `train-vae` run that starts from a model, whose values fill in others.

    Args:
        config: as given.
        base: the model.

    Returns:
        The complete configuration.

    Raises:
        UserError: the model has no autoencoder, or the configuration sets other sizes.
    """
    arguments = read_config(base.file("vae"), Autoencoder)
    sizes = {key: arguments[key] for key in type(config.autoencoder).model_fields}
    changes = {"autoencoder": _agree(config.autoencoder, "autoencoder", sizes, base)}
    if base.image_size is not None and base.image_size[0] == base.image_size[1]:
        changes["data"] = _fill(config.data, {"resolution": base.image_size[0]})
    return config.model_copy(update=changes)


def _agree(section: Section, name: str, known: Mapping[str, Any], base: ModelFolder) -> Section:
    """Section with the model's values; one that is set to another value is refused."""
    for key in type(section).model_fields:
        if key in section.model_fields_set & known.keys():
            value = getattr(section, key)
            if value != known[key]:
                raise UserError(
                    f"{name}.{key}: {value!r}, but {base.path}, which the run starts from, has "
                    f"{known[key]!r}; leave it out, or train from scratch"
                )
    return section.model_copy(update=dict(known))


def _fill(section: Section, known: Mapping[str, Any]) -> Section:
    """Section with the model's values where none is set."""
    left_out = {k: v for k, v in known.items() if k not in section.model_fields_set}
    return section.model_copy(update=left_out)
