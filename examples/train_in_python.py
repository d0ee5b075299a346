"""The two trainings of the command line, from Python: Keras's `compile` and `fit` on two trainers.

    python examples/train_in_python.py FOLDER OUT

An autoencoder learns to give the images of a folder back; a UNet and a text encoder learn to
remove noise from its latents, told the images' captions. What is left in OUT is a model folder:
`latentddpm generate --model OUT --prompt "red apple"`. The networks here are tiny and the steps
few, so that the example runs in a minute; `latentddpm.train_vae` and `latentddpm.train_diffusion`
are the commands themselves, with checkpoints, validation and grids.
"""

import argparse

from latentddpm.utils.startup import import_keras

import_keras()  # without TensorFlow's log lines

import keras
import numpy as np

import latentddpm

RESOLUTION = 32


def train_autoencoder(dataset, steps: int) -> latentddpm.Autoencoder:
    """An autoencoder of the training images, its scale measured."""
    autoencoder = latentddpm.Autoencoder(
        channels=16, channel_multipliers=(1, 2), num_res_blocks=1, norm_groups=4
    )
    trainer = latentddpm.AutoencoderTrainer(autoencoder, kl_weight=1e-6)
    trainer.compile(keras.optimizers.AdamW(2e-3))
    images = dataset.image_batches("training", RESOLUTION, batch_size=16, seed=0, flip=True)
    trainer.fit(images, steps_per_epoch=steps, shuffle=False, verbose=2)
    mean, _ = encode(autoencoder, dataset)
    autoencoder.scaling_factor = 1 / float(mean.std())  # latents of about unit variance
    return autoencoder


def encode(autoencoder, dataset):
    """Mean and logvar of all training images, in the order of `dataset.training`."""
    batches = dataset.image_batches("training", RESOLUTION, batch_size=16)
    moments = [autoencoder.encode_on_batch(np.asarray(batch["images"])) for batch in batches]
    return [np.concatenate(part) for part in zip(*moments, strict=True)]


def train_unet(latents, captions, steps: int):
    """A UNet and a text encoder, trained together, with their tokenizer and schedule."""
    schedule = latentddpm.NoiseSchedule("cosine", prediction_type="v_prediction")
    tokenizer = latentddpm.CLIPTokenizer(context_length=16)
    text_encoder = latentddpm.TextEncoder(
        hidden_dim=32, num_layers=1, num_heads=2, context_length=16
    )
    unet = latentddpm.UNet(
        channels=32, channel_multipliers=(1, 2), num_res_blocks=1, attention_levels=(1,),
        num_heads=2, context_dim=32, norm_groups=8,
    )  # fmt: skip
    trainer = latentddpm.DenoisingTrainer(unet, schedule, text_encoder)
    trainer.compile(keras.optimizers.AdamW(1e-3, global_clipnorm=1.0))
    examples = latentddpm.noisy_examples(
        latents, schedule, batch_size=16, seed=0, captions=captions, tokenizer=tokenizer
    )
    history = trainer.fit(examples, steps_per_epoch=steps, shuffle=False, verbose=2).history
    return unet, schedule, text_encoder, tokenizer, history["loss"][-1]


def main(folder: str, out: str, steps: int = 60) -> float:
    keras.utils.set_random_seed(0)
    dataset = latentddpm.open_dataset(folder, f"{out}-catalog")
    autoencoder = train_autoencoder(dataset, steps)
    latents = np.asarray(autoencoder.to_latents(encode(autoencoder, dataset)[0]))
    rows = dataset.training.rows(np.arange(len(dataset.training)))
    captions = [next(iter(dataset.captions[int(row)]), "") for row in rows]
    unet, schedule, text_encoder, tokenizer, loss = train_unet(latents, captions, steps)
    model = latentddpm.LatentDiffusion(
        autoencoder, unet, schedule, text_encoder, tokenizer, image_size=(RESOLUTION, RESOLUTION)
    )
    model.save(out)
    print(out)
    return loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=60)
    main(**vars(parser.parse_args()))
