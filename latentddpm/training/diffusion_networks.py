"""Networks of a `train-diffusion` run: from scratch, or from finished models.

    token ids ─► text encoder ─► context ─┐
    noisy latents, timesteps ────────────►└─► UNet ─► prediction

A run needs an autoencoder, and may start from a finished model. Both are named by model folders,
whose configurations are read before any network is built.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras

from latentddpm.clip.text_encoder import TextEncoder, build_text_encoder, load_preset
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import DiffusionData, DiffusionRun
from latentddpm.data.buckets import buckets_of
from latentddpm.errors import UserError
from latentddpm.interop.clip import load_clip_folder
from latentddpm.models.archive import load_archive, read_config
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.functional import freeze, rebuild
from latentddpm.models.unet import UNet
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.training.finetune import base_networks, check_autoencoder, inherit_config
from latentddpm.training.run.loop import layer_policy


@dataclass(frozen=True)
class Sources:
    """Finished models that a run uses: an autoencoder and, optionally, a model to start from.

    Attributes:
        vae: folder of the autoencoder.
        vae_config: arguments of the `Autoencoder` in it.
        base: folder of the model to start from; None to train from scratch.
    """

    vae: ModelFolder
    vae_config: dict[str, Any]
    base: ModelFolder | None = None

    @property
    def vae_digest(self) -> str:
        """Digest of the autoencoder's weights, which identifies its latents."""
        return self.vae.parts["vae"]["digest"]

    def load_autoencoder(self) -> Autoencoder:
        """Autoencoder of the run, in float32."""
        return load_archive(self.vae.file("vae"), Autoencoder)


def read_sources(config: DiffusionRun, vae: Path | None) -> tuple[DiffusionRun, Sources]:
    """Read the configurations of the finished models that a run uses.

    Args:
        config: of the run.
        vae: folder that holds an autoencoder; None for that of `config.init`.

    Returns:
        The run's configuration, completed with that of `config.init`, and its sources.

    Raises:
        UserError: neither is given, one is no model folder, or they do not fit each other.
    """
    base = read_model_folder(config.init) if config.init else None
    if base is not None:
        config = inherit_config(config, base)
    elif config.lora.rank:
        raise UserError("lora.rank: a LoRA changes a finished model; name it with --init MODEL")
    elif config.text.source == "init":
        raise UserError("text.source: 'init' is the text encoder of --init MODEL; give that")
    if vae is None and base is None:
        raise UserError("--vae: needed, unless --init names a model that has its autoencoder")
    source = base if vae is None else read_model_folder(vae)
    arguments = read_config(source.file("vae"), Autoencoder)
    if base is not None:
        check_autoencoder(base, source)
    return config, Sources(source, arguments, base)


def build_text(config: DiffusionRun) -> tuple[TextEncoder | None, CLIPTokenizer | None]:
    """Text encoder and tokenizer of a configuration; (None, None) for an unconditional model.

    Args:
        config: of the run.

    Raises:
        UserError: a source without a path, weights that cannot be read, or a text encoder from
            scratch that is not trained.
    """
    text = config.text
    if text.source == "none":
        return None, None
    if not text.trained and text.source == "scratch":
        raise UserError("text.trainable: a text encoder from scratch knows nothing until trained")
    if text.source == "scratch":
        sizes = {k: getattr(text, k) for k in ("hidden_dim", "num_layers", "num_heads")}
        encoder = build_text_encoder(**sizes, context_length=text.context_length)
        return encoder, CLIPTokenizer(text.context_length)
    if not text.path:
        raise UserError(f"text.path: needed with text.source={text.source}")
    return (load_clip_folder if text.source == "clip" else load_preset)(text.path)


def build_networks(
    config: DiffusionRun, sources: Sources
) -> tuple[UNet, TextEncoder | None, CLIPTokenizer | None]:
    """UNet, text encoder and tokenizer of a run: new, with weights from the seed, or of a model.

    Args:
        config: returned by `read_sources`.
        sources: returned by `read_sources`; with `sources.base` the networks are those of that
            model. The autoencoder decides the number of latent channels.

    Returns:
        (UNet, text encoder, tokenizer); the last two are None for an unconditional model.

    Raises:
        UserError: sizes that do not fit each other, or the resolution.
    """
    keras.utils.set_random_seed(config.training.seed)
    dtype = layer_policy(config.training)
    if sources.base is not None:
        networks = base_networks(config, sources.base, dtype)
        check_resolution(config.data, sources.vae_config, networks[0])
        return networks
    text_encoder, tokenizer = build_text(config)
    if text_encoder is not None and dtype != "float32":
        text_encoder = rebuild(text_encoder, dtype=dtype)
    if text_encoder is not None and not config.text.trained:
        freeze(text_encoder)
    try:
        unet = UNet(
            **config.unet.model_dump(),
            latent_channels=sources.vae_config["latent_channels"],
            context_dim=None if text_encoder is None else text_encoder.hidden_dim,
            dtype=dtype,
        )
    except ValueError as error:
        raise UserError(f"unet: {error}") from None
    check_resolution(config.data, sources.vae_config, unet)
    return unet, text_encoder, tokenizer


def check_resolution(data: DiffusionData, vae_config: dict[str, Any], unet: UNet) -> None:
    """Refuse a resolution, or a bucket step, that the two networks' factors do not divide.

    Args:
        data: the section `data:` of a configuration.
        vae_config: arguments of the `Autoencoder`.
        unet: of the run.

    Raises:
        UserError: naming the nearest valid sizes.
    """
    factor = 2 ** (len(vae_config["channel_multipliers"]) - 1) * unet.downsample_factor
    for key in ("resolution", "bucket_step")[: 1 + data.aspect_buckets]:
        size = getattr(data, key)
        if size % factor:
            low = max(size // factor, 1) * factor
            raise UserError(
                f"data.{key} {size} is not a multiple of {factor}, the autoencoder's "
                f"times the UNet's downsample factor; nearest valid: {low} or {low + factor}"
            )
    buckets_of(data)
