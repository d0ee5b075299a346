"""Model of a checkpoint: what a finished run would have been, had it ended at that step.

    RUN/model  ─►  networks, autoencoder, schedule, conditions   (of a finished run)
    RUN/checkpoints/step-XXXXXXXX  ─►  their weights, as the EMA has them

An early one is a weaker model for autoguidance (`generate --autoguidance`), which needs the same
autoencoder, schedule and conditions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pydantic

from latentddpm.config import DiffusionRun
from latentddpm.errors import UserError, one_line
from latentddpm.pipeline.model_folder import is_model
from latentddpm.training.run.checkpoint import read_contract, restore, verify
from latentddpm.training.run.contract import in_todays_words
from latentddpm.training.run.run import CHECKPOINTS

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion


def run_of(path: Path) -> tuple[Path, DiffusionRun]:
    """Folder and settings of the run that wrote a checkpoint; Keras is not needed for it.

    Args:
        path: of the checkpoint.

    Raises:
        UserError: it is damaged, of a run of another command, or of one without a model.
    """
    if problem := verify(path):
        raise UserError(f"{path}: {problem}")
    contract = read_contract(path)
    if contract.command != "train-diffusion":
        raise UserError(f"{path}: of {contract.command}, expected a checkpoint of train-diffusion")
    try:
        config = DiffusionRun.model_validate(in_todays_words(contract.config))
    except pydantic.ValidationError as error:
        raise UserError(f"{path}: written by another version ({one_line(error, 100)})") from None
    above = path.absolute().parents
    run = next((one.parent for one in above if one.name == CHECKPOINTS), above[0])
    if not is_model(run / "model"):
        raise UserError(
            f"{path}: its networks are described in {run / 'model'}, which is not there; finish "
            "the run (with a LoRA there is none)"
        )
    return run, config


def checkpoint_model(path: str | Path) -> LatentDiffusion:
    """Model of a checkpoint, with its EMA weights.

    Args:
        path: of the checkpoint of a finished `train-diffusion` run.

    Raises:
        UserError: see `run_of`; or weights of other shapes than those of the finished model.
    """
    path = Path(path)
    run, config = run_of(path)
    from latentddpm.conditions.conditions import Conditions
    from latentddpm.data.conditions.augmented import changes_condition
    from latentddpm.models.denoisers.widen import widen
    from latentddpm.models.functional import freeze, rebuild
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion
    from latentddpm.training.diffusion_networks import make_trainer, without_changes
    from latentddpm.training.run.loop import compile_options, in_float32, layer_policy

    model = LatentDiffusion.load(run / "model")
    if config.data.augment.changes:  # which the finished model has folded away
        changes = changes_condition(config)
        model.conditions = Conditions((*model.conditions, changes))
        model.unet = widen(model.unet, [one.spec() for one in changes.inputs()])
    dtype = layer_policy(config.training)
    unet, text_encoder = rebuild(model.unet, dtype=dtype), None
    if model.text_encoder is not None:
        text_encoder = rebuild(model.text_encoder, dtype=dtype)
        if not config.text.trained:
            freeze(text_encoder)
    networks = unet, text_encoder, model.tokenizer
    trainer = make_trainer(config, model.schedule, *networks, model.conditions)
    trainer.compile(**compile_options(config.training))
    trainer.optimizer.build(trainer.trainable_variables)
    restore(path, trainer)
    trainer.optimizer.finalize_variable_values(trainer.trainable_variables)
    model.unet, model.digest = in_float32(unet), None
    without_changes(model)
    if text_encoder is not None:
        model.text_encoder = in_float32(text_encoder)
    return model
