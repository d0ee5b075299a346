"""Latent diffusion in Keras 3 on TensorFlow, end to end.

    import latentddpm
    model = latentddpm.LatentDiffusion.load("weights/emoji-128")
    images = model.generate("red apple", num_images=4, seed=0)

The public names load on first use, so `import latentddpm` imports neither TensorFlow nor Keras;
when they load, TensorFlow's log lines do not appear (see `utils.startup`). As soon as both are
imported, in whatever order, the networks' classes are registered with Keras, so that
`keras.saving.load_model("….keras")` finds them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latentddpm.utils.registration import register_with_keras

__version__ = "0.1.0"

# Public name → the module that defines it, or the module itself if that has the same name.
_HOMES = {
    "Adversary": "latentddpm.training.step.adversarial",
    "Autoencoder": "latentddpm.models.autoencoder.autoencoder",
    "AutoencoderTrainer": "latentddpm.training.step.autoencoder_trainer",
    "BasicUNet": "latentddpm.models.denoisers.basic",
    "CLIPTokenizer": "latentddpm.clip.tokenizer",
    "ClassifierFreeGuidance": "latentddpm.diffusion.guidance",
    "ClassicUNet": "latentddpm.models.denoisers.classic",
    "Control": "latentddpm.pipeline.control.control",
    "ControlNet": "latentddpm.models.denoisers.control",
    "Decoder": "latentddpm.models.autoencoder.encoder_decoder",
    "DenoisingTrainer": "latentddpm.training.step.denoising_trainer",
    "Encoder": "latentddpm.models.autoencoder.encoder_decoder",
    "FlowSchedule": "latentddpm.diffusion.flow",
    "LatentDiffusion": "latentddpm.pipeline.latent_diffusion",
    "NoiseSchedule": "latentddpm.diffusion.schedule",
    "PatchDiscriminator": "latentddpm.models.discriminator",
    "Region": "latentddpm.pipeline.regions.region",
    "TextEncoder": "latentddpm.clip.text_encoder",
    "UNet": "latentddpm.models.denoisers.unet",
    "UserError": "latentddpm.errors",
    "export": "latentddpm.export",
    "interop": "latentddpm.interop",
    "noisy_examples": "latentddpm.data.examples",
    "open_dataset": "latentddpm.data.dataset",
    "samplers": "latentddpm.diffusion.samplers",
    "train_diffusion": "latentddpm.training.diffusion",
    "train_vae": "latentddpm.training.autoencoder",
}

# Those that are there without Keras.
_LIGHT = ("CLIPTokenizer", "LatentDiffusion", "Region", "UserError", "open_dataset")

__all__ = [
    "Adversary",
    "Autoencoder",
    "AutoencoderTrainer",
    "BasicUNet",
    "CLIPTokenizer",
    "ClassicUNet",
    "ClassifierFreeGuidance",
    "Control",
    "ControlNet",
    "Decoder",
    "DenoisingTrainer",
    "Encoder",
    "FlowSchedule",
    "LatentDiffusion",
    "NoiseSchedule",
    "PatchDiscriminator",
    "Region",
    "TextEncoder",
    "UNet",
    "UserError",
    "__version__",
    "export",
    "interop",
    "noisy_examples",
    "open_dataset",
    "samplers",
    "train_diffusion",
    "train_vae",
]

if TYPE_CHECKING:
    from latentddpm import export, interop
    from latentddpm.clip.text_encoder import TextEncoder
    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.data.dataset import open_dataset
    from latentddpm.data.examples import noisy_examples
    from latentddpm.diffusion import samplers
    from latentddpm.diffusion.flow import FlowSchedule
    from latentddpm.diffusion.guidance import ClassifierFreeGuidance
    from latentddpm.diffusion.schedule import NoiseSchedule
    from latentddpm.errors import UserError
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.autoencoder.encoder_decoder import Decoder, Encoder
    from latentddpm.models.denoisers.basic import BasicUNet
    from latentddpm.models.denoisers.classic import ClassicUNet
    from latentddpm.models.denoisers.control import ControlNet
    from latentddpm.models.denoisers.unet import UNet
    from latentddpm.models.discriminator import PatchDiscriminator
    from latentddpm.pipeline.control.control import Control
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion
    from latentddpm.pipeline.regions.region import Region
    from latentddpm.training.autoencoder import train_vae
    from latentddpm.training.diffusion import train_diffusion
    from latentddpm.training.step.adversarial import Adversary
    from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
    from latentddpm.training.step.denoising_trainer import DenoisingTrainer


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in _LIGHT:
        importlib.import_module("latentddpm.utils.startup").import_keras()
    module = importlib.import_module(_HOMES[name])
    value = module if _HOMES[name].endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_keras()
