"""Control of images by ControlNets: what `generate` is given, and what the networks are told.

    Control(network, picture, scale), …  ─►  ControlledUNet, and its input `control`

The pictures are told alike with the prompt and without it, as by diffusers, so guidance leads
away from the negative prompt alone.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from latentddpm.conditions.control import CONTROL
from latentddpm.data.pictures.given import (
    file_name,
    in_pixels,
    open_given,
    own_size,
    read_given,
)
from latentddpm.errors import UserError, check_type
from latentddpm.models.graph_networks import is_graph
from latentddpm.models.precision import hold_in, precision_of
from latentddpm.pipeline.control.folder import load_control
from latentddpm.pipeline.told.told import Told
from latentddpm.utils.images.pictures import Picture

if TYPE_CHECKING:
    from latentddpm.models.denoisers.control import ControlledUNet, ControlNet


@dataclass(frozen=True)
class Control:
    """Control of images: a ControlNet, the picture that it sees, and how strongly it acts.

    Args:
        control: a `ControlNet`, or the folder of one, or the run that trained it.
        picture: file, PIL image or array; or a list with that of each image.
        scale: factor of what is added to the UNet, any finite number; 1 as it was trained.

    Example:
        >>> autoencoder = latentddpm.Autoencoder(8, channel_multipliers=(1, 2), norm_groups=4)
        >>> unet = latentddpm.UNet(8, channel_multipliers=(1,), attention_levels=(), norm_groups=4)
        >>> model = latentddpm.LatentDiffusion(autoencoder, unet, latentddpm.NoiseSchedule())
        >>> network = latentddpm.ControlNet.from_unet(unet, hint_channels=[16, 32])
        >>> lines = latentddpm.Control(network, np.zeros((16, 16)), scale=0.8)
        >>> model.generate(num_steps=2, height=16, width=16, controls=[lines]).shape
        (1, 16, 16, 3)
    """

    control: ControlNet | str | Path
    picture: Picture | Sequence[Picture]
    scale: float = 1.0

    @cached_property
    def network(self) -> ControlNet:
        """The ControlNet, read from its folder when it is first asked for."""
        own = self.control
        return load_control(own) if isinstance(own, str | Path) else own

    def pixels(self, size: tuple[int, int], count: int) -> np.ndarray:
        """Pictures that the network sees, float32 (count, H, W, 3) in [0, 1].

        Args:
            size: (height, width) of the images, in pixels.
            count: number of the images.

        Raises:
            UserError: a picture that cannot be read, or not one for each image.
        """
        several = isinstance(self.picture, list | tuple)
        pictures = list(self.picture) if several else [self.picture]
        if several and len(pictures) != count:
            raise UserError(f"control picture: {len(pictures)} for {count} images; one or {count}")
        found = np.stack([read_control_picture(one, size) for one in pictures])
        return np.repeat(found, count // len(found), axis=0).astype(np.float32) / 255


def read_control_picture(picture: Picture, size: tuple[int, int]) -> np.ndarray:
    """Picture for a ControlNet at the size of the images, uint8 (H, W, 3).

    A file or PIL image of another size is scaled and cropped, with a warning; an array has to
    have the size.

    Args:
        picture: see `utils.images.pictures`.
        size: (height, width) in pixels.

    Raises:
        UserError: no picture or an unreadable one, or an array of another size.
    """
    what = "control picture"
    found = open_given(what, picture)
    own = own_size(what, found)
    if own != size:
        if hasattr(picture, "__array__") and not isinstance(picture, Image.Image):
            raise UserError(
                f"{what}: an array of {in_pixels(own)} for an image of {in_pixels(size)}; scale it"
            )
        name = file_name(found).strip() or what
        warnings.warn(
            f"{name}: {in_pixels(own)}, scaled and cropped to {in_pixels(size)}", stacklevel=3
        )
    return read_given(what, found, size)


def controlled_unet(unet: Any, controls: Sequence[Control], factor: int) -> ControlledUNet:
    """UNet of a model with the ControlNets of `generate`.

    Args:
        unet: of the model; one that has these ControlNets already is returned as it is.
        controls: at least one.
        factor: downsample factor of the model's autoencoder; 1 for a model of pixels.

    Raises:
        UserError: the network is a graph or no UNet, a ControlNet is for another one or for
            another autoencoder, or a scale is no finite number.
    """
    from latentddpm.models.denoisers.control import ControlledUNet
    from latentddpm.models.denoisers.unet import UNet

    scales = [check_scale("control scale", one.scale) for one in controls]
    networks = [one.network for one in controls]
    if isinstance(unet, ControlledUNet):
        if [*map(id, unet.controls)] == [*map(id, networks)] and unet.scales == scales:
            return unet
        unet = unet.unet
    if is_graph(unet):
        raise UserError("controls: need the engine keras; load the model with engine='keras'")
    if not isinstance(unet, UNet) or unet.spatial_dims != 2:
        raise UserError(
            "controls: a ControlNet adds to a network of kind unet of images; this model's is a "
            f"{type(unet).__name__} of {unet.spatial_dims} dimensions"
        )
    for one in networks:
        if one.image_factor != factor:
            raise UserError(
                f"controls: the ControlNet is for latents of 1/{one.image_factor} of the image's "
                f"sides, this model's are of 1/{factor}"
            )
    held = precision_of(unet)
    try:
        return ControlledUNet(unet, [hold_in(one, held) for one in networks], scales)
    except ValueError as error:
        raise UserError(str(error)) from None


def check_alone(regions: Sequence[Any]) -> None:
    """Refuse regions beside ControlNets, whose pictures are of the whole image.

    Args:
        regions: of `generate`.

    Raises:
        UserError: there are some.
    """
    if regions:
        raise UserError("controls: not together with regions; leave one of them out")


def check_scale(name: str, scale: Any) -> float:
    """Check that the scale of a ControlNet is a finite number, and return it.

    Args:
        name: of the option, for the message.
        scale: as given.

    Raises:
        UserError: it is not.
    """
    number = float(check_type(name, scale, float))
    if not math.isfinite(number):
        raise UserError(f"{name}: {number}, expected a finite number")
    return number


def told_controls(controls: Sequence[Control], size: tuple[int, int], count: int) -> Told:
    """Pictures that a controlled network is told of N images, the same where guidance leads away.

    Args:
        controls: of `generate`.
        size: (height, width) of the images, in pixels.
        count: N.

    Raises:
        UserError: see `Control.pixels`.
    """
    pictures = np.concatenate([one.pixels(size, count) for one in controls], axis=-1)
    return Told({CONTROL: pictures}, {CONTROL: pictures})
