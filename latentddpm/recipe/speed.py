"""Speed of a training on this machine: real steps of its real networks, on random examples.

    networks ─► first step (compiles) ─► a few steps, timed ─► seconds of a step

The networks are thrown away; the training builds its own, with the weights of its seed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.recipe.budget import Speed
from latentddpm.training.autoencoder_networks import build_autoencoder, build_perceptual
from latentddpm.training.diffusion import build_schedule
from latentddpm.training.diffusion_networks import build_networks, make_trainer
from latentddpm.training.plan.sources import Sources
from latentddpm.training.precision import settle_jit, settle_precision
from latentddpm.training.run.loop import compile_options
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
from latentddpm.training.step.trainer import Trainer

WARM = 2
"""Steps after the first one that are not timed."""
LEAST_STEPS, MOST_STEPS, SECONDS = 3, 8, 5.0
"""Steps that are timed: so many at least and at most, and until so many seconds have passed."""


class _Clock(keras.callbacks.Callback):
    """Times of the ends of steps; enough of them end the training."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        float((logs or {})["loss"])  # waits for the device
        self.ends.append(time.perf_counter())
        timed = self.ends[WARM:]
        if len(timed) > LEAST_STEPS and timed[-1] - timed[0] > SECONDS:
            self.model.stop_training = True


def measure_diffusion(config: DiffusionRun, sources: Sources) -> Speed:
    """Speed of the training of a UNet.

    Args:
        config: complete settings.
        sources: finished models that the run uses.

    Raises:
        UserError: networks that cannot be built or read.
        MemoryError: a step needs more memory than there is.
    """
    config = _settled(config)

    def build() -> tuple[Trainer, Any]:
        schedule = build_schedule(config)
        unet, text_encoder, tokenizer = build_networks(config, sources)
        trainer = make_trainer(config, schedule, unet, text_encoder, tokenizer)
        channels = sources.first_stage.latent_channels(config.data)
        side = config.data.resolution // sources.first_stage.downsample_factor
        numbers, size = np.random.default_rng(0), config.training.batch_size
        noise = numbers.normal(size=(size, side, side, channels)).astype("float32")
        inputs = {"noisy_latents": noise, "timesteps": np.arange(size, dtype="int32")}
        if tokenizer is not None:
            inputs["token_ids"] = np.repeat(np.asarray(tokenizer(["a"]), "int32"), size, axis=0)
        return trainer, (inputs, noise)

    return _measure(build, config)


def measure_autoencoder(config: AutoencoderRun) -> Speed:
    """Speed of the training of an autoencoder.

    Args:
        config: complete settings.

    Raises:
        UserError: networks that cannot be built.
        MemoryError: a step needs more memory than there is.
    """
    config = _settled(config)

    def build() -> tuple[Trainer, Any]:
        autoencoder = build_autoencoder(config)
        training = config.training
        trainer = AutoencoderTrainer(
            autoencoder,
            training.reconstruction_loss,
            training.kl_weight,
            build_perceptual(config),
            config.perceptual.weight,
        )
        side, small = config.data.resolution, config.data.resolution
        small //= autoencoder.downsample_factor
        numbers, size = np.random.default_rng(0), training.batch_size
        images = numbers.uniform(-1, 1, (size, side, side, config.data.channels or 3))
        noise = numbers.normal(size=(size, small, small, autoencoder.latent_channels))
        return trainer, ({"images": images.astype("float32"), "noise": noise.astype("float32")},)

    return _measure(build, config)


def _settled(config: Any) -> Any:
    return settle_jit(settle_precision(config)[0])[0]


def _measure(build: Callable[[], tuple[Trainer, Any]], config: Any) -> Speed:
    """Speed of what `build` makes, (trainer, batch)."""
    began = time.perf_counter()
    trainer, batch = build()
    trainer.compile(**compile_options(config.training))

    def batches() -> Iterator[Any]:
        while True:
            yield batch

    clock = _Clock()
    options = {"steps_per_epoch": MOST_STEPS, "verbose": 0, "shuffle": False}
    trainer.fit(batches(), callbacks=[clock], **options)
    timed = clock.ends[WARM:]
    return Speed((timed[-1] - timed[0]) / (len(timed) - 1), clock.ends[0] - began)
