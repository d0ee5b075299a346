"""Settings of the autoencoder, and of what judges its reconstructions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from latentddpm.config.section import Betas, Multipliers, Section


class AutoencoderConfig(Section):
    """Sizes of the autoencoder; the defaults are Stable Diffusion's."""

    channels: int = Field(128, gt=0, description="width at full resolution")
    channel_multipliers: Multipliers | None = Field(
        None,
        description="width of each level, in units of channels; each level but the first halves "
        "the resolution; null: [1, 2, 4, 4], or fewer where the latents would be too small",
    )
    num_res_blocks: int = Field(2, gt=0, description="blocks per level; the decoder has one more")
    latent_channels: int = Field(4, gt=0, description="channels of the latents")
    norm_groups: int = Field(32, gt=0, description="of every group norm; divides all widths")


class PerceptualConfig(Section):
    """Perceptual distance between image and reconstruction, as a term of the loss."""

    source: str = Field(
        "none", description="none, imagenet, hed, or a file of VGG16: .safetensors, .h5, .keras"
    )
    weight: float = Field(1.0, ge=0, description="of the term; 0: only measured, at validation")


class AdversarialConfig(Section):
    """Adversarial loss: a discriminator that the autoencoder is trained against."""

    weight: float = Field(0.0, ge=0, description="of the generator's loss; 0: no discriminator")
    loss: Literal["hinge", "vanilla"] = Field(
        "hinge", description="hinge, or vanilla: binary cross-entropy"
    )
    start_step: int = Field(
        0, ge=0, description="first step with it; before that the autoencoder learns alone"
    )
    warmup_steps: int = Field(
        0, ge=0, description="steps after start_step over which the weight rises from 0"
    )
    adaptive: bool = Field(
        True, description="give both losses gradients of the same norm at the decoder's last layer"
    )
    r1_weight: float = Field(
        0.0, ge=0, description="of the gradient penalty at real images, R1; 0: none"
    )


class DiscriminatorConfig(Section):
    """PatchGAN discriminator: sizes and optimizer, with the usual defaults."""

    channels: int = Field(64, gt=0, description="width of its first layer")
    num_layers: int = Field(
        3, gt=0, description="strided layers; a logit sees 70 pixels with 3, 34 with 2"
    )
    norm: Literal["group", "instance", "none"] = Field("group", description="between its layers")
    norm_groups: int = Field(32, gt=0, description="of norm: group")
    spectral_norm: bool = Field(False, description="spectral normalization of every layer")
    learning_rate: float | None = Field(None, gt=0, description="null: the autoencoder's")
    betas: Betas = Field([0.5, 0.9], description="of adamw: decay of its two moments")
