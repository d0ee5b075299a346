"""Latent diffusion in Keras 3 on TensorFlow, end to end.

    import latentddpm
    model = latentddpm.LatentDiffusion.load("weights/emoji-128")
    images = model.generate("red apple", num_images=4, seed=0)

The public names load on first use, so `import latentddpm` imports neither TensorFlow nor Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Public name → the module it lives in, or the module itself when the names end alike.
_HOMES = {
    "Autoencoder": "latentddpm.models.autoencoder.autoencoder",
    "CLIPTokenizer": "latentddpm.clip.tokenizer",
    "Decoder": "latentddpm.models.autoencoder.encoder_decoder",
    "Encoder": "latentddpm.models.autoencoder.encoder_decoder",
    "LatentDiffusion": "latentddpm.pipeline.latent_diffusion",
    "NoiseSchedule": "latentddpm.diffusion.schedule",
    "UNet": "latentddpm.models.unet",
    "interop": "latentddpm.interop",
    "samplers": "latentddpm.diffusion.samplers",
}

__all__ = [
    "Autoencoder",
    "CLIPTokenizer",
    "Decoder",
    "Encoder",
    "LatentDiffusion",
    "NoiseSchedule",
    "UNet",
    "__version__",
    "interop",
    "samplers",
]

if TYPE_CHECKING:
    from latentddpm import interop
    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.diffusion import samplers
    from latentddpm.diffusion.schedule import NoiseSchedule
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.autoencoder.encoder_decoder import Decoder, Encoder
    from latentddpm.models.unet import UNet
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_HOMES[name])
    value = module if _HOMES[name].endswith(f".{name}") else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
