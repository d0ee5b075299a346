"""Finished models that a `train-diffusion` run uses, by their folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.config import DiffusionRun
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.training.plan.inherit import check_autoencoder, inherit_config
from latentddpm.training.plan.sizes import factor_of
from latentddpm.utils.files import AUTOENCODER, read_arguments

if TYPE_CHECKING:
    from latentddpm.models.autoencoder.autoencoder import Autoencoder


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

    @property
    def downsample_factor(self) -> int:
        """Pixels per position of the latents, along a side."""
        return factor_of(self.vae_config["channel_multipliers"])

    def load_autoencoder(self) -> Autoencoder:
        """Autoencoder of the run, in float32."""
        from latentddpm.models.archive import load_archive
        from latentddpm.models.autoencoder.autoencoder import Autoencoder

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
    arguments = read_arguments(source.file("vae"), AUTOENCODER)
    if base is not None:
        check_autoencoder(base, source)
    return config, Sources(source, arguments, base)
