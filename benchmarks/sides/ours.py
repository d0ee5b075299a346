"""Our side of `vs_diffusers.py`: Keras on TensorFlow, and the engine without either."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from sides.jobs import (
    CLIP,
    DECAY,
    EPSILON,
    FACTOR,
    GUIDANCE,
    NEGATIVE,
    PROMPT,
    RATE,
    SIZES,
    STEPS,
    Action,
    arrays,
)


def random_model(size: str) -> Any:
    """Model with random weights, for either side."""
    from latentddpm.utils.startup import import_keras

    import_keras()
    import keras

    from latentddpm.clip.text_encoder import TextEncoder
    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.diffusion.schedule import NoiseSchedule
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.denoisers.unet import UNet
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

    keras.utils.set_random_seed(0)
    sides = SIZES[size]
    width, side = sides["unet"]["context_dim"], sides["latents"] * FACTOR
    vae, unet = Autoencoder(**sides["vae"]), UNet(**sides["unet"], zero_init=False)
    heads, layers = width // 64, sides.get("layers", 1)
    text_encoder = TextEncoder(hidden_dim=width, num_layers=layers, num_heads=heads)
    drawn = {"image_size": (side, side), "defaults": {"sampler": "ddim", "num_steps": STEPS}}
    return LatentDiffusion(vae, unet, NoiseSchedule(), text_encoder, CLIPTokenizer(), **drawn)


def prepare(folder: Path, size: str) -> dict[str, str]:
    """Our model folder and a diffusers folder with the same random weights."""
    model = random_model(size)
    import keras
    import tensorflow as tf

    from latentddpm.interop import save_diffusers

    model.save(folder / "ours")
    save_diffusers(model, folder / "theirs")
    return {"keras": keras.__version__, "tensorflow": tf.__version__}


def cold(side: str, folder: Path, size: str) -> Action:
    """`latentddpm generate`, which imports and reads all that it needs."""

    def generate() -> np.ndarray:
        from latentddpm.cli import main

        out = folder / f"{side}.png"
        options = {
            "--model": folder / "ours",
            "--engine": "onnx" if side == "onnx" else "keras",
            "--precision": "float32",
            "--prompt": PROMPT,
            "--negative-prompt": NEGATIVE,
            "--sampler": "ddim",
            "--steps": STEPS,
            "--timestep-spacing": "trailing",
            "--guidance-scale": GUIDANCE,
            "--seed": 0,
            "--out": out,
        }
        words = [str(word) for pair in options.items() for word in pair]
        main(["generate", *words, "--quiet", "--overwrite"], standalone_mode=False)
        from PIL import Image

        return np.asarray(Image.open(out))[None]

    return generate


def actions(side: str, folder: Path, size: str, precision: str) -> Callable[..., Action]:
    """Function (job, batch) → action, on networks that are loaded once, when they are needed."""
    if side != "onnx":
        from latentddpm.utils.startup import import_keras

        import_keras()
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

    engine = "onnx" if side == "onnx" else "keras"
    load = partial(LatentDiffusion.load, folder / "ours", engine=engine, precision=precision)
    model = cache(load)

    @cache
    def network(part: str) -> Any:
        """Network alone, as diffusers' side loads it; graphs read their weights when called."""
        if side == "onnx":
            return model().unet if part == "unet" else model().autoencoder
        from latentddpm.models.archive import load_archive
        from latentddpm.models.networks import Autoencoder, UNet

        kind = UNet if part == "unet" else Autoencoder
        return load_archive(folder / "ours" / f"{part}.keras", kind, precision=precision)

    def encode(images: Any) -> Any:
        vae = network("vae")
        return vae.encoder(images)[..., : vae.latent_channels]

    def decode(latents: Any) -> Any:
        vae = network("vae")
        return vae.decoder(vae.latent_space.to_raw(latents))

    functions = {
        "vae-encode": encode,
        "vae-decode": decode,
        "unet-forward": lambda inputs: network("unet")(inputs),
    }

    def action(job: str, batch: int) -> Action:
        values = arrays(size, batch)
        if job == "generate":
            return lambda: model().generate(
                PROMPT,
                negative_prompt=NEGATIVE,
                num_images=batch,
                batch_size=batch,
                latents=values["start"],
                num_steps=STEPS,
                sampler="ddim",
                timestep_spacing="trailing",
                guidance_scale=GUIDANCE,
            )
        inputs: Any = {name: values[name] for name in ("noisy_latents", "timesteps", "context")}
        inputs = {"vae-encode": values["image"], "vae-decode": values["latent"]}.get(job, inputs)
        if side == "onnx":
            return lambda: functions[job](inputs)
        import tensorflow as tf

        inputs = tf.nest.map_structure(tf.constant, inputs)
        if job == "unet-train":
            return training(network("unet"), inputs, values["target"], side == "keras-xla")
        network("unet" if job == "unet-forward" else "vae")  # its variables, outside of the graph
        graph = tf.function(functions[job], jit_compile=side == "keras-xla")
        return lambda: np.asarray(graph(inputs))

    return action


def training(unet: Any, inputs: Any, target: np.ndarray, xla: bool) -> Action:
    """A training step, which returns all losses so far."""
    import tensorflow as tf

    from latentddpm.diffusion.schedule import NoiseSchedule
    from latentddpm.training.step.denoising_trainer import DenoisingTrainer
    from latentddpm.training.step.optimizer import FlatAdamW

    optimizer = FlatAdamW(RATE, weight_decay=DECAY, global_clipnorm=CLIP, epsilon=EPSILON)
    trainer = DenoisingTrainer(unet, NoiseSchedule())
    trainer.compile(optimizer, jit_compile=xla)
    optimizer.build(trainer.trainable_variables)
    stream = iter(tf.data.Dataset.from_tensors((inputs, target)).repeat())
    trainer.make_train_function()
    losses: list[float] = []

    def step() -> list[float]:
        trainer.reset_metrics()
        losses.append(float(trainer.train_function(stream)["loss"]))
        return losses

    return step
