"""Networks of a `train-vae` run: from scratch, or from a finished model.

    images ─► autoencoder ─► reconstructions ─┬─► PerceptualDistance
                                              └─► Adversary: discriminator and its optimizer

Discriminator and perceptual distance are optional; the finished model holds neither.
"""

from __future__ import annotations

import keras

from latentddpm.config import AutoencoderRun
from latentddpm.errors import UserError
from latentddpm.interop.vgg import load_perceptual
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.discriminator import PatchDiscriminator, smallest_side
from latentddpm.models.functional import freeze, rebuild
from latentddpm.models.perceptual import SMALLEST_SIDE, PerceptualDistance
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.finetune import inherit_autoencoder_config
from latentddpm.training.run.loop import layer_policy, make_optimizer
from latentddpm.training.step.adversarial import Adversary


def build_autoencoder(config: AutoencoderRun) -> tuple[AutoencoderRun, Autoencoder]:
    """Autoencoder of a configuration: new, with weights from the seed, or that of `init`.

    Args:
        config: of the run.

    Returns:
        The configuration, completed with the sizes and the resolution of `init`, and the
        autoencoder.

    Raises:
        UserError: sizes that do not fit each other, the resolution, or `init`.
    """
    keras.utils.set_random_seed(config.training.seed)
    base = read_model_folder(config.init) if config.init else None
    if base is None and config.training.train == "decoder":
        raise UserError("training.train=decoder: of which model? name it: init=MODEL or --init")
    if base is not None:
        config = inherit_autoencoder_config(config, base)
    dtype = layer_policy(config.training)
    if base is not None:
        model = rebuild(load_archive(base.file("vae"), Autoencoder), dtype=dtype)
    else:
        try:
            model = Autoencoder(**config.autoencoder.model_dump(), dtype=dtype)
        except ValueError as error:
            raise UserError(f"autoencoder: {error}") from None
    model.check_size(config.data.resolution, config.data.resolution)
    if config.training.train == "decoder":
        freeze(model.encoder)
    return config, model


def build_adversary(config: AutoencoderRun) -> Adversary | None:
    """Discriminator of a configuration with its optimizer; None where its weight is 0.

    The optimizer has the settings of the autoencoder's, with its own learning rate and betas, and
    without EMA. Its learning-rate schedule starts with the discriminator's first step.

    Args:
        config: of the run.

    Raises:
        UserError: sizes that do not fit each other, or the resolution.
    """
    options, sizes, training = config.adversarial, config.discriminator, config.training
    if not options.weight:
        return None
    needed = smallest_side(sizes.num_layers)
    if config.data.resolution < needed:
        raise UserError(
            f"discriminator.num_layers: {sizes.num_layers} need a data.resolution of at least "
            f"{needed}, got {config.data.resolution}; take fewer"
        )
    own = {"learning_rate", "betas"}
    try:
        network = PatchDiscriminator(**sizes.model_dump(exclude=own), dtype=layer_policy(training))
    except ValueError as error:
        raise UserError(f"discriminator: {error}") from None
    changes = {
        "learning_rate": sizes.learning_rate or training.learning_rate,
        "betas": sizes.betas,
        "num_steps": max(training.num_steps - options.start_step, 1),
        "ema_momentum": 0.0,
    }
    optimizer = make_optimizer(training.model_copy(update=changes))
    return Adversary(network, optimizer, **options.model_dump())


def build_perceptual(config: AutoencoderRun) -> PerceptualDistance | None:
    """Perceptual distance of a configuration; None for the source "none".

    Args:
        config: of the run.

    Raises:
        UserError: its weights cannot be loaded, or the resolution is too small for VGG16.
    """
    if config.perceptual.source == "none":
        if config.training.best_metric == "perceptual":
            raise UserError("training.best_metric=perceptual: needs a perceptual.source")
        return None
    if config.data.resolution < SMALLEST_SIDE:
        raise UserError(
            f"perceptual.source: VGG16 needs a data.resolution of at least {SMALLEST_SIDE}, got "
            f"{config.data.resolution}"
        )
    return load_perceptual(config.perceptual.source, layer_policy(config.training))
