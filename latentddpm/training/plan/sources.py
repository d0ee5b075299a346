"""Finished models that a `train-diffusion` run uses, by their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from latentddpm.config import DiffusionRun
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.training.plan.first_stage import FirstStage, read_first_stage
from latentddpm.training.plan.inherit import (
    check_distillation,
    check_new_token,
    check_prior,
    inherit_config,
)


@dataclass(frozen=True)
class Sources:
    """Finished models that a run uses: a first stage and, optionally, a model to start from.

    Attributes:
        first_stage: an autoencoder, or none for a run on pixels.
        base: folder of the model to start from; None to train from scratch.
    """

    first_stage: FirstStage
    base: ModelFolder | None = None


def read_sources(config: DiffusionRun, vae: str | Path | None) -> tuple[DiffusionRun, Sources]:
    """Read the configurations of the finished models that a run uses.

    Args:
        config: of the run.
        vae: folder that holds an autoencoder, or "none" for pixels; None for the first stage of
            `config.init`.

    Returns:
        The run's configuration, completed with that of `config.init`, and its sources.

    Raises:
        UserError: neither is given, one is no model folder, or they do not fit each other.
    """
    base = read_model_folder(config.init) if config.init else None
    if base is not None:
        config = inherit_config(config, base)
    elif config.distill.kind != "none":
        check_distillation(config)
    elif config.control.trained:
        raise UserError("control: a ControlNet is of a finished model; name it with --init MODEL")
    elif config.lora.rank:
        raise UserError("lora.rank: a LoRA changes a finished model; name it with --init MODEL")
    elif config.prior.used:
        check_prior(config)
    elif config.text.new_token:
        check_new_token(config, None)
    elif config.text.source == "init":
        raise UserError("text.source: 'init' is the text encoder of --init MODEL; give that")
    return config, Sources(read_first_stage(vae, base), base)
