"""A small model whose every part says something: random weights, none of them zero."""

import contextlib
import copy
import functools
import json
import shutil
import warnings

import keras
import numpy as np
import tensorflow as tf
from conftest import EMOJI
from safetensors.numpy import save_file

from latentddpm.clip.text_encoder import build_text_encoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.conditions import NO_CONDITIONS, Conditions
from latentddpm.data.pictures.wav import save_wav
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils.images.pixel_format import PixelFormat

AUTOENCODER = {
    "channels": 8,
    "channel_multipliers": (1, 2, 2, 2),
    "num_res_blocks": 1,
    "norm_groups": 4,
    "scaling_factor": 0.7,
}
UNET = {
    "channels": 16,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "num_heads": 2,
    "norm_groups": 4,
    "zero_init": False,  # else the prediction is zero, whatever the prompt
}
CONTEXT_LENGTH = 16
SIZE = (32, 32)


def tiny_autoencoder(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    return Autoencoder(**{**AUTOENCODER, **changes})


def tiny_model(seed=0, text=True, **unet_changes):
    """A `LatentDiffusion` of 32-pixel images; with `text`, one that words can move."""
    return assemble(tiny_autoencoder(seed), seed, text, unet_changes)


def assemble(autoencoder, seed, text, unet_changes):
    """A model of `autoencoder`, and of a UNet as `UNET` has it but for `unet_changes`."""
    unet = UNet(**{**UNET, **unet_changes}, context_dim=16 if text else None)
    text_encoder = tokenizer = None
    if text:
        text_encoder = build_text_encoder(
            hidden_dim=16, num_layers=1, num_heads=2, context_length=CONTEXT_LENGTH
        )
        tokenizer = CLIPTokenizer(CONTEXT_LENGTH)
    perturb(unet, seed)
    return LatentDiffusion(
        autoencoder,
        unet,
        NoiseSchedule(),
        text_encoder,
        tokenizer,
        SIZE,
        {"num_steps": 3, "guidance_scale": 3.0},
    )


def shared_model(text=True):
    """The `tiny_model` of tests that change no weight: built and traced once in a process."""
    return copy.copy(_built(text))


@functools.cache
def _built(text):
    return tiny_model(text=text)


QUICK_AUTOENCODER = {"channel_multipliers": (1, 1), "num_res_blocks": 0}
QUICK_UNET = {"channel_multipliers": (1,), "num_res_blocks": 0, "attention_levels": ()}
"""Every kind of layer, but few: time goes by layers, not by channels."""


def quick_model(seed=0, text=True, conditions=NO_CONDITIONS, **autoencoder_changes):
    """A `tiny_model` that is read and traced in a quarter of the time, for tests around it."""
    autoencoder = tiny_autoencoder(seed, **{**QUICK_AUTOENCODER, **autoencoder_changes})
    perturb(autoencoder, seed)
    model = assemble(autoencoder, seed, text, {**QUICK_UNET, "conditions": conditions.specs()})
    model.conditions = conditions
    return model


CONDITIONS = [
    {"name": "lines", "kind": "picture", "channels": 4},
    {"name": "digit", "kind": "class", "words": ["a", "b", "c"]},
    {"name": "age", "kind": "number", "mean": [40.0], "std": [10.0]},
    {"name": "style", "kind": "number", "enters": "timestep", "null": False},
]


def conditioned_model(text=True):
    """A `quick_model` that is told `CONDITIONS`, of which one is a picture."""
    conditions = Conditions.from_json(CONDITIONS)
    sizes = {**QUICK_UNET, "conditions": conditions.specs()}
    model = assemble(
        tiny_autoencoder(num_res_blocks=1, channel_multipliers=(1, 1)), 0, text, sizes
    )
    model.conditions = conditions
    perturb(model.autoencoder)
    return model


def pixel_model(channels=1, learned_variance=False, **defaults):
    """A model that denoises pixels of 12×12, without an autoencoder."""
    unet = UNet(
        8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_levels=(),
        num_heads=2,
        latent_channels=channels,
        norm_groups=4,
        learned_variance=learned_variance,
    )
    perturb(unet)
    return LatentDiffusion(
        PixelSpace(channels), unet, NoiseSchedule(), image_size=(12, 12), defaults=defaults
    )


def pixel_model_of_words(side=16):
    """A model that words can move, of pixels: read, trained and drawn with in no time."""
    model = assemble(PixelSpace(3), 0, True, {**QUICK_UNET, "latent_channels": 3})
    model.image_size = (side, side)
    return model


def few_signals(folder, *lengths, rate=8000):
    """A folder of WAV files of two channels, sines, of some lengths in samples."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, length in enumerate(lengths):
        angles = np.arange(length) / 3 + number
        values = 0.8 * np.stack([np.sin(angles), np.cos(angles)], axis=-1)
        save_wav(folder / f"{number}.wav", values, rate)
    return folder


def signal_model(channels=2, pixels=None, **defaults):
    """A model of signals of 12 samples, WAV files by default."""
    unet = UNet(
        8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_levels=(1,),
        num_heads=2,
        latent_channels=channels,
        norm_groups=4,
        spatial_dims=1,
    )
    perturb(unet)
    pixels = pixels or PixelFormat(channels, "float", (-1, 1), spatial_dims=1, rate=8000)
    space = PixelSpace(channels)
    defaults = {"num_steps": 2, **defaults}
    return LatentDiffusion(
        space, unet, NoiseSchedule(), image_size=(12,), defaults=defaults, pixels=pixels
    )


def perturb(network, seed=0, size=0.1):
    """Add noise to every weight."""
    numbers = np.random.default_rng(seed)
    for variable in network.weights:
        noise = numbers.normal(0, size, variable.shape).astype("float32")
        variable.assign(variable + noise)


@contextlib.contextmanager
def step_by_step():
    """No graphs inside: for few steps of a tiny network a third of the time."""
    tf.config.run_functions_eagerly(True)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Even though the `tf.config.experimental")
            yield
    finally:
        tf.config.run_functions_eagerly(False)


def tiny_lora(path, seed=0, width=32):
    """A LoRA file of rank 2 that shows, under kohya's names; `width` is the middle's."""
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    down, up = np.random.default_rng(seed).normal(size=(2, 2, width)).astype("float32")
    halves = {"lora_down": down, "lora_up": np.ascontiguousarray(up.T)}
    save_file({f"{stem}.{half}.weight": matrix for half, matrix in halves.items()}, path)
    return path


def few_emoji(folder, count=10):
    """The first `count` emoji with their captions."""
    lines = (EMOJI / "metadata.jsonl").read_text("utf-8").splitlines()[:count]
    for line in lines:
        name = json.loads(line)["file_name"]
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(EMOJI / name, folder / name)
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")


def endpoint_inputs(model, height, width, length, seed):
    """Five of everything that an exported endpoint takes, by name; contexts of `length` tokens."""
    numbers = np.random.default_rng(seed)
    factor = model.autoencoder.downsample_factor
    latents = (5, height // factor, width // factor, model.autoencoder.latent_channels)
    return {
        "images": numbers.uniform(-1, 1, (5, height, width, 3)).astype("float32"),
        "latents": numbers.normal(size=latents).astype("float32"),
        "noisy_latents": numbers.normal(size=latents).astype("float32"),
        "timesteps": np.array([0, 0.5, 500, 998.25, 999], "float32"),
        "context": numbers.normal(size=(5, length, 16)).astype("float32"),
        "token_ids": numbers.integers(0, 49408, (5, CONTEXT_LENGTH)).astype("int32"),
    }
