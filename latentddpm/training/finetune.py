"""Fine-tuning: the networks of a finished model, `init`, ready to be trained further.

The settings that such a run takes from the model are those of `training.plan.inherit`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import latentddpm
from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.config import DiffusionRun
from latentddpm.interop.lora import add_lora, save_lora
from latentddpm.interop.lora_file import SETTINGS
from latentddpm.models.archive import load_archive
from latentddpm.models.denoisers.base import Denoiser
from latentddpm.models.denoisers.kinds import load_denoiser
from latentddpm.models.denoisers.widen import widen
from latentddpm.models.functional import freeze, rebuild
from latentddpm.pipeline.model_folder import TOKENIZER, ModelFolder


def save_trained_lora(
    unet: Denoiser,
    path: Path,
    config: DiffusionRun,
    base: ModelFolder,
    settings: Mapping[str, Any],
) -> None:
    """Write a run's LoRA, with metadata that identifies it and its model.

    That of a distillation also says how its images are drawn, which `generate` takes as defaults.

    Args:
        unet: with the trained LoRA.
        path: of the `.safetensors` file.
        config: of the run.
        base: model that the LoRA belongs to.
        settings: of generation, by name.
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
    if config.distill.kind != "none":
        metadata[SETTINGS] = json.dumps(settings, sort_keys=True)
    save_lora(unet, path, metadata, lora.storage)


def base_networks(
    config: DiffusionRun, base: ModelFolder, dtype: str, conditions: Conditions = NO_CONDITIONS
) -> tuple[Denoiser, TextEncoder | None, CLIPTokenizer | None]:
    """UNet, text encoder and tokenizer of a model, ready for fine-tuning.

    With `lora.rank` only a LoRA of the UNet is trainable. The text encoder is frozen unless
    `text.trained`.

    Args:
        config: returned by `training.plan.inherit.inherit_config`.
        base: the model.
        dtype: dtype policy of the networks, such as "mixed_bfloat16".
        conditions: of the run: those of the model, and further ones.

    Returns:
        (UNet, text encoder, tokenizer); the last two are None for an unconditional model.
    """
    taken = config.unet.arguments
    how = {key: taken[key] for key in ("dropout", "recompute") if key in taken}
    unet = load_denoiser(base.file("unet"))
    if more := conditions.specs()[len(base.conditions.specs()) :]:
        unet = widen(unet, more)
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
