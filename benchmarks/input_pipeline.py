"""What the input pipelines deliver alone, beside what a training step takes.

    python benchmarks/input_pipeline.py --data DIR --vae runs/emoji-64-vae [--batch-size 64]

Both sides run in this process, one after the other, on the networks of configs/emoji-64-*.
Prints JSON: examples a second of each, and their ratio.
"""

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import tensorflow as tf

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.data import examples
from latentddpm.data.captions import Captions, prepare_tokens
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.random import RandomStream
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.training import autoencoder_networks, diffusion_networks
from latentddpm.training.plan.settle import settle_diffusion
from latentddpm.training.run.loop import make_optimizer
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
from latentddpm.training.step.denoising_trainer import DenoisingTrainer

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
BATCHES = 40
STEPS = 12


def delivered(dataset, batch_size: int) -> float:
    """Examples a second out of a dataset, after its first two batches."""
    batches = iter(dataset)
    for _ in range(2):
        next(batches)
    start = time.perf_counter()
    count = sum(1 for _ in itertools.islice(batches, BATCHES))
    return count * batch_size / (time.perf_counter() - start)


def eaten(model: keras.Model, dataset, batch_size: int) -> float:
    """Examples a second of `fit` on one batch repeated, median step after two."""
    ends = []
    timer = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter())
    )
    model.optimizer.build(model.trainable_variables)
    one = dataset.take(1).cache().repeat(STEPS)
    model.fit(one, verbose=0, callbacks=[timer], shuffle=False)
    return batch_size / statistics.median(b - a for a, b in itertools.pairwise(ends[2:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", type=Path, required=True)
    options = parser.parse_args()
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder), report)
    print(
        json.dumps(
            {
                name: {
                    "pipeline_examples_per_second": round(given, 1),
                    "training_examples_per_second": round(taken, 1),
                    "ratio": round(given / taken, 1),
                }
                for name, (given, taken) in report.items()
            },
            indent=2,
        )
    )


def measure(
    options: argparse.Namespace, scratch: Path, report: dict[str, tuple[float, float]]
) -> None:
    """Fill `report` with what each pipeline gives and each training takes."""
    catalog = open_catalog(options.data, scratch / "catalog", quiet=True)
    images = Selection(len(catalog))

    config = load_config(AutoencoderRun, CONFIGS / "emoji-64-vae.yaml")
    batch_size = config.training.batch_size
    autoencoder = autoencoder_networks.build_autoencoder(config)
    model = AutoencoderTrainer(autoencoder)
    model.compile(make_optimizer(config.training))
    stream = examples.image_examples(
        catalog,
        images,
        resolution=config.data.resolution,
        latent_shape=(8, 8, 4),
        batch_size=batch_size,
        stream=RandomStream(0, "benchmark"),
        positions=tf.data.Dataset.range(1 << 40),
        flip=True,
    )
    report["train-vae"] = delivered(stream, batch_size), eaten(model, stream, batch_size)

    config = load_config(DiffusionRun, CONFIGS / "emoji-64-diffusion.yaml")
    batch_size = config.training.batch_size
    config, sources = settle_diffusion(config, options.vae)
    source, vae_config = sources.vae, sources.vae_config
    unet, text_encoder, tokenizer = diffusion_networks.build_networks(config, sources)
    schedule = NoiseSchedule(**config.schedule.model_dump())
    model = DenoisingTrainer(unet, schedule, text_encoder)
    model.compile(make_optimizer(config.training))
    cache = prepare_latents(
        catalog,
        scratch / "latents",
        vae_digest=source.parts["vae"]["digest"],
        load_autoencoder=lambda: load_archive(source.file("vae"), Autoencoder),
        resolution=config.data.resolution,
    )
    captions = Captions(catalog, config.data.caption_templates)
    stream = examples.diffusion_examples(
        cache,
        images,
        schedule,
        LatentSpace(vae_config["scaling_factor"]),
        batch_size=batch_size,
        stream=RandomStream(0, "benchmark"),
        positions=tf.data.Dataset.range(1 << 40),
        tokens=prepare_tokens(captions, tokenizer, quiet=True),
        condition_dropout=0.1,
    )
    report["train-diffusion"] = delivered(stream, batch_size), eaten(model, stream, batch_size)


if __name__ == "__main__":
    main()
