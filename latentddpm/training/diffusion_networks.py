"""Networks of a `train-diffusion` run: from scratch, or from finished models.

    token ids ─► text encoder ─► context ─┐
    noisy latents, timesteps ────────────►└─► UNet ─► prediction

A run has a first stage, and may start from a finished model: see `training.plan.sources`.
"""

from __future__ import annotations

import keras
import numpy as np

from latentddpm.clip.text_encoder import TextEncoder, build_text_encoder, load_preset
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.config import DiffusionRun
from latentddpm.diffusion.process import ForwardProcess
from latentddpm.errors import UserError
from latentddpm.interop.clip import load_clip_folder
from latentddpm.models.denoisers.base import Denoiser
from latentddpm.models.denoisers.kinds import make_denoiser
from latentddpm.models.denoisers.widen import fold
from latentddpm.models.functional import freeze, rebuild
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.control import add_control
from latentddpm.training.finetune import base_networks
from latentddpm.training.plan.sizes import check_text
from latentddpm.training.plan.sources import Sources
from latentddpm.training.run.loop import layer_policy
from latentddpm.training.step.consistency_trainer import ConsistencyTrainer
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.training.subject.token import add_new_token


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
    check_text(text)
    if text.source == "scratch":
        sizes = {k: getattr(text, k) for k in ("hidden_dim", "num_layers", "num_heads")}
        encoder = build_text_encoder(**sizes, context_length=text.context_length)
        return encoder, CLIPTokenizer(text.context_length)
    return (load_clip_folder if text.source == "clip" else load_preset)(text.path)


def make_trainer(
    config: DiffusionRun,
    schedule: ForwardProcess,
    unet: Denoiser,
    text_encoder: TextEncoder | None,
    tokenizer: CLIPTokenizer | None,
    conditions: Conditions = NO_CONDITIONS,
) -> DenoisingTrainer:
    """Trainer of a run, which learns from images, or with `distill.kind` from the model itself.

    Args:
        config: of the run.
        schedule: of the UNet.
        unet, text_encoder, tokenizer: returned by `build_networks`.
        conditions: of the UNet.
    """
    distill = config.distill
    if distill.kind == "none":
        return DenoisingTrainer(unet, schedule, text_encoder)
    return ConsistencyTrainer(
        unet,
        schedule,
        schedule.num_train_timesteps // distill.solver_steps,
        distill.huber,
        text_encoder,
        None if tokenizer is None else np.asarray(tokenizer([""]))[0],
        conditions.untold(config.data.spatial_dims),
    )


def build_networks(
    config: DiffusionRun, sources: Sources, conditions: Conditions = NO_CONDITIONS
) -> tuple[Denoiser, TextEncoder | None, CLIPTokenizer | None]:
    """UNet, text encoder and tokenizer of a run: new, with weights from the seed, or of a model.

    Args:
        config: of a plan, complete; see `training.plan.plan`.
        sources: of the same plan; with `sources.base` the networks are those of that
            model. The first stage decides the number of latent channels.
        conditions: that the network is told beside text.

    Returns:
        (UNet, text encoder, tokenizer); the last two are None for an unconditional model.

    Raises:
        UserError: sizes that do not fit each other, or the resolution.
    """
    keras.utils.set_random_seed(config.training.seed)
    dtype = layer_policy(config.training)
    if sources.base is not None:
        unet, *text = base_networks(config, sources.base, dtype, conditions)
        if config.control.trained:
            unet = add_control(unet, sources.first_stage.downsample_factor)
        if config.text.new_token:
            text = add_new_token(config.text, unet, *text)
        return unet, *text
    text_encoder, tokenizer = build_text(config)
    if text_encoder is not None and dtype != "float32":
        text_encoder = rebuild(text_encoder, dtype=dtype)
    if text_encoder is not None and not config.text.trained:
        freeze(text_encoder)
    try:
        unet = make_denoiser(
            config.unet.kind,
            **config.unet.arguments,
            latent_channels=sources.first_stage.latent_channels(config.data),
            context_dim=None if text_encoder is None else text_encoder.hidden_dim,
            spatial_dims=config.data.spatial_dims,
            **({"conditions": conditions.specs()} if conditions else {}),
            dtype=dtype,
        )
    except ValueError as error:
        raise UserError(f"unet: {error}") from None
    return unet, text_encoder, tokenizer


def without_changes(model: LatentDiffusion) -> None:
    """Fold what augmentation tells into the UNet of a model, which draws as it did without it.

    Args:
        model: with its trained UNet; changed in place.
    """
    for one in model.conditions:
        if not one.asked:
            model.unet = fold(model.unet, one.name)
    model.conditions = Conditions(tuple(one for one in model.conditions if one.asked))
