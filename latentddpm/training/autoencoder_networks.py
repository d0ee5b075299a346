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
from latentddpm.models.discriminator import PatchDiscriminator
from latentddpm.models.functional import freeze, rebuild
from latentddpm.models.perceptual import PerceptualDistance
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.plan.sizes import check_discriminator
from latentddpm.training.run.loop import layer_policy, make_optimizer
from latentddpm.training.step.adversarial import Adversary


def build_autoencoder(config: AutoencoderRun) -> Autoencoder:
    """Autoencoder of a configuration: new, with weights from the seed, or that of `init`.

    Args:
        config: of a plan, complete; see `training.plan.plan`.

    Raises:
        UserError: sizes that do not fit each other, the resolution, or `init`.
    """
    keras.utils.set_random_seed(config.training.seed)
    dtype = layer_policy(config.training)
    if config.init:
        base = read_model_folder(config.init)
        model = rebuild(load_archive(base.file("vae"), Autoencoder), dtype=dtype)
    else:
        try:
            sizes = {
                **config.autoencoder.model_dump(),
                "image_channels": config.data.channels or 3,
            }
            model = Autoencoder(**sizes, dtype=dtype)
        except ValueError as error:
            raise UserError(f"autoencoder: {error}") from None
    model.check_size(config.data.resolution, config.data.resolution)
    if config.training.train == "decoder":
        freeze(model.encoder)
    return model


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
    check_discriminator(sizes, config.data.resolution)
    own = {"learning_rate", "betas"}
    try:
        network = PatchDiscriminator(
            **sizes.model_dump(exclude=own),
            image_channels=config.data.channels or 3,
            dtype=layer_policy(training),
        )
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
        UserError: its weights cannot be loaded.
    """
    if config.perceptual.source == "none":
        return None
    return load_perceptual(config.perceptual.source, layer_policy(config.training))
