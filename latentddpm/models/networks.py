"""Networks by name: all classes that a `.keras` archive of this package can contain.

Importing this module registers them, so that `keras.saving.load_model` finds them. Importing both
`latentddpm` and Keras does the same, in any order, see `utils.registration`.
"""

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.encoder_decoder import Decoder, Encoder
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.classic import ClassicUNet
from latentddpm.models.denoisers.control import ControlNet
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.discriminator import PatchDiscriminator
from latentddpm.models.perceptual import PerceptualDistance

__all__ = [
    "Autoencoder",
    "BasicUNet",
    "ClassicUNet",
    "ControlNet",
    "Decoder",
    "Encoder",
    "PatchDiscriminator",
    "PerceptualDistance",
    "TextEncoder",
    "UNet",
]
