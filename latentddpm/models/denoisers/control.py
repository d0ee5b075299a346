"""ControlNet: what a picture adds to a UNet that stays as it is.

    hint        h = zero(conv … conv(picture)),     from pixels to the size of the latents
    residuals   r_i = zero(skip_i(x_t, t, c; h)),   skip_i of a copy of the UNet's way down
    UNet        skip_i ← skip_i + s · r_i,          the middle in the same way

(Zhang 2023, eq. 2 to 4, with the sizes of diffusers' `ControlNetModel`.) "zero" is a convolution
whose weights start at zero, so at first nothing is added, and the gradient of its kernel, which is
r's input times the gradient at its output, is not zero. s is the scale; several ControlNets add
their residuals. The UNet is frozen: what is trained is the copy.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import layers, ops

from latentddpm.models.denoisers.base import denoiser_inputs
from latentddpm.models.denoisers.facts import DenoiserFacts, control_misfit
from latentddpm.models.denoisers.unet import NORM_EPSILON, NOT_SAVED, UNet
from latentddpm.models.denoisers.way_down import MIDDLE_RESIDUAL, RESIDUAL, Blocks
from latentddpm.models.functional import FunctionalModel, constructor_arguments, rebuild
from latentddpm.models.layers import PACKAGE, PaddedConv2D
from latentddpm.utils.machine.memory import blank_weights

CONTROL = "control"
"""Name of the input that holds the pictures."""
HINT_CHANNELS = (16, 32, 96, 256)
"""Widths of the hint's convolutions; each but the first halves the resolution."""


@keras.saving.register_keras_serializable(package=PACKAGE)
class ControlNet(DenoiserFacts, FunctionalModel):
    """ControlNet: a copy of a UNet's way down that sees a picture, with the UNet's residuals.

    Args:
        channels, channel_multipliers, num_res_blocks, attention_levels, num_heads: see `UNet`.
        context_dim, latent_channels, norm_groups, dropout, zero_init: see `UNet`.
        norm_epsilon, original_ddpm, time_scale_shift, conditions, recompute: see `UNet`.
        image_channels: of the picture.
        hint_channels: widths of the convolutions that bring the picture to the size of the
            latents; each but the first halves its sides. Four for an autoencoder with a downsample
            factor of 8, one for a model of pixels; see `hint_channels`.
        dtype: dtype or dtype policy of the layers.
        name: of the Keras model.

    Call arguments:
        inputs: those of the UNet, `{"noisy_latents": (B, h, w, c), "timesteps": (B,)[, "context":
            (B, L, context_dim)]}`, and the picture, `"control"`: (B, f·h, f·w, image_channels) in
            [0, 1], where f is the `image_factor`.

    Returns:
        Residuals by name: `"residual_0"` … for the skip connections, from the first to the last,
        each of its shape, and `"residual_mid"` for the middle.

    Raises:
        ValueError: see `UNet`; or no width of the hint.

    Example:
        >>> unet = latentddpm.UNet(
        ...     16, channel_multipliers=(1, 2), attention_levels=(), norm_groups=4
        ... )
        >>> control = latentddpm.ControlNet.from_unet(unet)
        >>> inputs = {"noisy_latents": np.zeros((1, 8, 8, 4)), "timesteps": np.zeros(1)}
        >>> residuals = control({**inputs, "control": np.ones((1, 64, 64, 3))})
        >>> tuple(residuals["residual_mid"].shape)
        (1, 4, 4, 32)
    """

    def __init__(
        self,
        channels: int = 320,
        channel_multipliers: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        attention_levels: Sequence[int] = (0, 1, 2),
        num_heads: int | Sequence[int] = 8,
        context_dim: int | None = None,
        latent_channels: int = 4,
        norm_groups: int = 32,
        dropout: float = 0.0,
        zero_init: bool = True,
        norm_epsilon: float = NORM_EPSILON,
        original_ddpm: bool = False,
        time_scale_shift: bool = False,
        conditions: Sequence[Mapping[str, Any]] | None = None,
        image_channels: int = 3,
        hint_channels: Sequence[int] = HINT_CHANNELS,
        recompute: bool = False,
        dtype: Any = None,
        name: str = "control_net",
    ) -> None:
        arguments = constructor_arguments(locals())
        arguments["conditions"] = [dict(one) for one in conditions or ()] or None
        config = {key: value for key, value in arguments.items() if key not in NOT_SAVED}
        for key in ("conditions", "time_scale_shift"):  # as in archives of before
            if not arguments[key]:
                del config[key]
        if not hint_channels:
            raise ValueError("hint_channels: none, expected one width or more")
        inputs = denoiser_inputs(latent_channels, 2, context_dim, arguments["conditions"] or ())
        if CONTROL in inputs:
            raise ValueError(f"condition {CONTROL!r}: the name of the picture's input")
        inputs[CONTROL] = keras.Input((None, None, image_channels), name=CONTROL, dtype="float32")
        blocks = Blocks({**arguments, "dtype": dtype}, inputs)
        hint = _hint(inputs[CONTROL], hint_channels, channels, dtype)
        middle, skips = blocks.way_down(hint)
        names = [*map(RESIDUAL.format, range(len(skips))), MIDDLE_RESIDUAL]
        residuals = {
            name: PaddedConv2D(one.shape[-1], 1, zero_init=True, dtype=dtype, name=f"{name}_conv")(
                one
            )
            for name, one in zip(names, [*skips, middle], strict=True)
        }
        super().__init__(inputs, residuals, config, name=name)

    @property
    def image_channels(self) -> int:
        """Channels of the picture."""
        return self._arguments["image_channels"]

    @property
    def image_factor(self) -> int:
        """Pixels of the picture per position of the latents, along a side."""
        return 2 ** (len(self._arguments["hint_channels"]) - 1)

    @classmethod
    def from_unet(cls, unet: UNet, **changes: Any) -> ControlNet:
        """ControlNet of a UNet, with a copy of its weights, which adds nothing yet.

        Args:
            unet: of two dimensions.
            changes: further arguments, such as `hint_channels`.

        Raises:
            ValueError: another kind of network, or signals or volumes.
        """
        if not isinstance(unet, UNet) or unet.spatial_dims != 2:
            what = f"{type(unet).__name__} of {unet.spatial_dims} dimensions"
            raise ValueError(f"a ControlNet is a copy of a UNet of 2 dimensions, not of a {what}")
        known = inspect.signature(cls).parameters
        taken = {k: v for k, v in unet.get_config().items() if k in known and k != "name"}
        control = cls(**{**taken, **changes})
        own = {layer.name for layer in unet.layers}
        for layer in control.layers:
            if layer.name in own:
                layer.set_weights(unet.get_layer(layer.name).get_weights())
        return control


class ControlledUNet(DenoiserFacts, keras.Model):
    """UNet with ControlNets, called as one denoiser that is told pictures too.

    Training, sampling and precision treat it as a UNet. It is not saved: its parts are.

    Args:
        unet: the base; it is copied, unless it was made with `control_residuals`.
        controls: the ControlNets, which are used as they are.
        scales: s of each, any finite number; None for 1.
        name: of the Keras model.

    Attributes:
        unet: the base, with `control_residuals`.
        controls, scales: as given.

    Call arguments:
        inputs: those of the UNet, and `"control"`: the pictures of all ControlNets one after the
            other, (B, H, W, 3·n) in [0, 1].

    Returns:
        The prediction, float32 (B, h, w, c).

    Raises:
        ValueError: not one scale for each, or a ControlNet of other sizes than the UNet's.

    Example:
        ```python
        controlled = ControlledUNet(unet, [ControlNet.from_unet(unet)])
        prediction = controlled({**inputs, "control": pictures})
        ```
    """

    def __init__(
        self,
        unet: UNet,
        controls: Sequence[ControlNet],
        scales: Sequence[float] | None = None,
        name: str = "controlled_unet",
    ) -> None:
        super().__init__(name=name, autocast=False)
        scales = [1.0] * len(controls) if scales is None else [float(one) for one in scales]
        if len(scales) != len(controls):
            raise ValueError(f"scales: {len(scales)} for {len(controls)} ControlNets")
        if RESIDUAL.format(0) not in unet.input:
            unet = rebuild(unet, control_residuals=True)
        for control in controls:
            if reason := control_misfit(unet.get_config(), control.get_config()):
                raise ValueError(f"controls: a ControlNet {reason}")
        self.unet, self.controls, self.scales = unet, list(controls), scales
        self._arguments = unet.get_config()
        self.built = True

    def call(self, inputs, training=None):
        inputs = dict(inputs)
        pictures, total, first = inputs.pop(CONTROL), {}, 0
        for control, scale in zip(self.controls, self.scales, strict=True):
            last = first + control.image_channels
            told = {name: inputs[name] for name in control.input if name != CONTROL}
            told[CONTROL] = pictures[..., first:last]
            for key, residual in control(told, training=training).items():
                own = ops.cast(residual, "float32") * scale
                total[key] = total[key] + own if key in total else own
            first = last
        return self.unet({**inputs, **total}, training=training)

    @property
    def variable_dtype(self) -> str:
        """Type of the weights of the UNet."""
        return self.unet.variable_dtype

    @property
    def base(self) -> UNet:
        """UNet without ControlNets, a copy in float32 that can be saved."""
        return rebuild(self.unet, control_residuals=False, dtype="float32")

    def get_config(self) -> dict[str, Any]:
        return {
            "unet": self.unet.get_config(),
            "controls": [control.get_config() for control in self.controls],
            "scales": self.scales,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> ControlledUNet:
        dtype = {"dtype": config["dtype"]} if "dtype" in config else {}
        with blank_weights():
            unet = UNet(**{**config["unet"], **dtype, "control_residuals": True})
            controls = [ControlNet(**{**one, **dtype}) for one in config["controls"]]
        return cls(unet, controls, config["scales"], config["name"])


def hint_channels(factor: int) -> list[int]:
    """Widths of the hint's convolutions for a downsample factor.

    Args:
        factor: pixels per position of the latents along a side, a power of two; 1 for a model of
            pixels.

    Raises:
        ValueError: no power of two.
    """
    if factor < 1 or factor & (factor - 1):
        raise ValueError(f"downsample factor {factor}: expected a power of two")
    halvings = factor.bit_length() - 1
    return [HINT_CHANNELS[min(k, len(HINT_CHANNELS) - 1)] for k in range(halvings + 1)]


def _hint(picture: Any, widths: Sequence[int], channels: int, dtype: Any) -> Any:
    """Graph from a picture to its hint, at the size of the latents."""
    sizes = [(widths[0], 1)]
    for width, wider in itertools.pairwise(widths):
        sizes += [(width, 1), (wider, 2)]
    hidden = picture
    for number, (width, stride) in enumerate(sizes):
        hidden = PaddedConv2D(
            width, 3, padding=1, stride=stride, dtype=dtype, name=f"hint_{number}"
        )(hidden)
        hidden = layers.Activation("silu", dtype=dtype, name=f"hint_{number}_act")(hidden)
    return PaddedConv2D(channels, 3, padding=1, zero_init=True, dtype=dtype, name="hint_out")(
        hidden
    )
