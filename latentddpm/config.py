"""Configuration of a run: its settings, with defaults, types and ranges.

Every field has a default, so a file holds only what differs (see `config_file`). A size whose
default is null follows from what a run is given: its data, its autoencoder, the model that it
starts from (see `training.plan.resolve`). Sections follow the constructors that they are passed
to: `autoencoder:` has arguments of `Autoencoder`, `unet:` of `UNet`, `schedule:` of
`NoiseSchedule`, `adversarial:` of `Adversary`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError


class Section(pydantic.BaseModel):
    """Section of a configuration; unknown keys are refused."""

    model_config = pydantic.ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    @pydantic.field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: pydantic.ValidationInfo) -> Any:
        """Refuse YAML's `true` (also `yes`, `on`), which pydantic would accept as the number 1."""
        annotation = cls.model_fields[info.field_name].annotation
        if annotation is not bool and bool not in get_args(annotation):
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, bool):
                    raise PydanticCustomError("bool", "expected a value, not true or false")
        return value


Multipliers = Annotated[list[pydantic.PositiveInt], Field(min_length=1)]
Betas = Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
"""Decay of AdamW's two moments."""


class DataConfig(Section):
    """Data: size and preparation of images, captions, and the split into training and validation.

    `DiffusionData` adds the settings of `train-diffusion`.
    """

    resolution: pydantic.PositiveInt | None = Field(
        None,
        description="side of the square, in pixels; null: that of the autoencoder's training, "
        "else the data's own, at most 256",
    )
    background: Literal["white", "random"] = Field(
        "white", description="colour behind transparent pixels; the latents cache uses white"
    )
    flip: bool = Field(False, description="mirror half of the images, drawn per use")
    caption_templates: list[str] = Field(
        [],
        description='such as "{text}, {style} style", with columns of the metadata, or "{folder}"',
    )
    validation_fraction: float = Field(0.05, ge=0, lt=1, description="share of validation images")
    validation_by: Literal["path", "caption"] = Field(
        "path",
        description="a hash of the image's path, or of its first caption, decides; by caption all "
        "pictures of the same thing are validation images, or none",
    )


class DiffusionData(DataConfig):
    """Data settings of `train-diffusion`: those of both commands, and aspect buckets."""

    aspect_buckets: bool = Field(
        False, description="crop to the nearest of several shapes with the square's area"
    )
    bucket_step: int = Field(64, gt=0, description="sides of these shapes are multiples of it")
    bucket_max_ratio: float = Field(
        2.0, ge=1, description="greatest ratio of the longer side to the shorter side"
    )


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


class UNetConfig(Section):
    """Sizes of the UNet; the defaults (about 90 M parameters) train on one GPU."""

    channels: int = Field(128, gt=0, description="width at the latents' resolution")
    channel_multipliers: Multipliers | None = Field(
        None,
        description="width of each level, in units of channels; null: [1, 2, 3, 4], or fewer "
        "where the latents are small",
    )
    num_res_blocks: int = Field(2, gt=0, description="blocks per level, one more on the way up")
    attention_levels: list[int] | None = Field(
        None,
        description="levels with attention; 0 has the latents' resolution; null: 1, 2 and 3, as "
        "far as they exist",
    )
    num_heads: pydantic.PositiveInt | Multipliers = Field(
        8, description="of attention: a number, or one for each level"
    )
    norm_groups: int = Field(32, gt=0, description="of every group norm; divides all widths")
    dropout: float = Field(0.0, ge=0, lt=1, description="in the residual blocks")
    recompute: bool = Field(
        False, description="compute blocks again in the backward pass: less memory, more time"
    )


class TextConfig(Section):
    """Text encoder: its source and, from scratch, its sizes."""

    source: Literal["auto", "none", "scratch", "clip", "preset", "init"] = Field(
        "auto",
        description="auto: scratch where the data has captions, else none; none: unconditional; "
        "scratch: trained along with the UNet; clip, preset: CLIP, of path; init: of the model "
        "that init names",
    )
    trainable: bool | None = Field(
        None, description="train it along with the UNet; null: only from scratch"
    )
    path: str = Field("", description="CLIP folder, or KerasHub preset name")
    context_length: int = Field(24, ge=3, le=77, description="tokens, for source scratch")
    hidden_dim: int = Field(256, gt=0, description="width, for source scratch")
    num_layers: int = Field(4, gt=0, description="transformer blocks, for source scratch")
    num_heads: int = Field(4, gt=0, description="of attention; divides hidden_dim")

    @property
    def trained(self) -> bool:
        """True where the text encoder trains along with the UNet."""
        return self.source == "scratch" if self.trainable is None else self.trainable


Projection = Literal["query", "key", "value", "out", "proj_in", "proj_out", "ff_in", "ff_out"]


class LoraConfig(Section):
    """LoRA: a low-rank change of the attention of a finished model (`init`), trained alone."""

    rank: int = Field(0, ge=0, description="of the change of each projection; 0: no LoRA")
    alpha: float = Field(
        0.0, ge=0, description="the change is multiplied by alpha / rank; 0: by 1"
    )
    targets: list[Projection] = Field(
        ["query", "key", "value", "out"], min_length=1, description="projections that change"
    )


class ScheduleConfig(Section):
    """Noise schedule of the forward process, and the quantity that the UNet predicts."""

    beta_schedule: Literal["linear", "scaled_linear", "cosine"] = Field(
        "scaled_linear", description="how the betas rise; scaled_linear is Stable Diffusion's"
    )
    beta_start: float = Field(0.00085, gt=0, description="not used by cosine")
    beta_end: float = Field(0.012, gt=0, lt=1, description="not used by cosine")
    num_train_timesteps: int = Field(1000, gt=1, description="T")
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = Field(
        "epsilon", description="what the UNet predicts: the noise, v, or the clean latents"
    )
    rescale_zero_terminal_snr: bool = Field(
        False, description="end in pure noise; not with epsilon"
    )


class TrainingConfig(Section):
    """Training: length, optimizer, precision and intervals in steps; batch sizes are global."""

    num_steps: int = Field(100_000, gt=0, description="length of the run, in optimizer steps")
    batch_size: int = Field(32, gt=0, description="of all replicas together")
    optimizer: Literal["adamw", "adafactor", "lion"] = Field(
        "adamw",
        description="adamw stores two numbers per weight, lion one, adafactor less than one",
    )
    betas: Betas = Field([0.9, 0.999], description="of adamw: decay of its two moments")
    learning_rate: float = Field(1e-4, gt=0, description="after the warm-up")
    learning_rate_schedule: Literal["constant", "cosine"] = Field(
        "constant", description="cosine falls to 0 at num_steps"
    )
    warmup_steps: int = Field(500, ge=0, description="steps over which the rate rises from 0")
    weight_decay: float = Field(0.01, ge=0, description="of weights, not of biases and norms")
    clip_norm: float = Field(1.0, gt=0, description="limit of the gradients' global norm")
    ema_momentum: float = Field(
        0.9999,
        ge=0,
        lt=1,
        description="of the EMA of the weights, which is validated and saved; 0: none",
    )
    ema_warmup: bool = Field(
        True, description="shorter average at first: momentum at most n / (n + 9) at step n"
    )
    seed: int = Field(0, ge=0, description="of the initial weights and of everything random")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="of the layers; weights, losses and moments stay float32. auto: bfloat16 "
        "where the machine computes faster in it, else float32",
    )
    accumulation_steps: int = Field(
        1, gt=0, description="micro-batches that a batch is split into, one after the other"
    )
    on_nan: Literal["stop", "skip"] = Field(
        "stop", description="skip: drop and count a batch whose loss or gradient is not finite"
    )
    jit_compile: bool = Field(False, description="compile the step with XLA")
    wandb: str = Field("", description="project of Weights & Biases to log to as well")
    log_every: int = Field(50, gt=0, description="steps")
    validate_every: int = Field(2000, gt=0, description="steps")
    checkpoint_every: int = Field(1000, gt=0, description="steps")
    keep_checkpoints: int = Field(2, gt=0, description="number of newest checkpoints to keep")
    best_metric: Literal["loss", "none"] = Field(
        "loss", description="metric of validation; its best checkpoint is kept beside the newest"
    )
    keep_best: bool = Field(
        False, description="the finished model is the best checkpoint, not the last"
    )


class AutoencoderTraining(TrainingConfig):
    """Training settings of `train-vae`: those of both commands, and the autoencoder's loss."""

    train: Literal["all", "decoder"] = Field(
        "all", description="decoder: only that of the model in init; its latents stay the same"
    )
    best_metric: Literal["loss", "psnr", "ssim", "perceptual", "none"] = Field(
        "loss", description="metric of validation; its best checkpoint is kept beside the newest"
    )
    reconstruction_loss: Literal["l1", "l2"] = Field("l1", description="mean over pixels")
    kl_weight: float = Field(
        1e-6, ge=0, description="of the KL term, summed over the latents of an image"
    )


class DiffusionTraining(TrainingConfig):
    """Training settings of `train-diffusion`: those of both commands, and the training target."""

    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="share of examples trained on the empty prompt"
    )
    min_snr_gamma: float = Field(
        0.0, ge=0, description="weight timesteps by min(snr, gamma), usually 5; 0: no weights"
    )
    offset_noise: float = Field(
        0.0, ge=0, description="additional noise, constant over a channel, such as 0.1"
    )
    input_perturbation: float = Field(
        0.0, ge=0, description="additional noise in the input, not in the target, such as 0.1"
    )


class SamplesConfig(Section):
    """Sample grid of every validation, always of the same prompts and seeds.

    Sampler, spacing, steps and guidance become the finished model's defaults.
    """

    prompts: list[str] = Field([], description="one for each row; none: captions of the data")
    images_per_prompt: int = Field(4, gt=0, description="columns of the grid")
    num_steps: int = Field(30, gt=0, description="of the sampler")
    sampler: str = Field("ddim", description="see latentddpm generate --sampler")
    timestep_spacing: Literal["leading", "trailing", "linspace"] = Field(
        "trailing", description="choice of the timesteps that the sampler visits"
    )
    guidance_scale: float = Field(4.0, ge=0, description="1: none")
    seed: int = Field(0, ge=0, description="of the first column")


INIT = Field("", description="model folder to start from instead of random weights (--init)")


class AutoencoderRun(Section):
    """Configuration of `train-vae`."""

    init: str = INIT
    data: DataConfig = DataConfig()
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    perceptual: PerceptualConfig = PerceptualConfig()
    adversarial: AdversarialConfig = AdversarialConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    training: AutoencoderTraining = AutoencoderTraining()


class DiffusionRun(Section):
    """Configuration of `train-diffusion`."""

    init: str = INIT
    data: DiffusionData = DiffusionData()
    schedule: ScheduleConfig = ScheduleConfig()
    unet: UNetConfig = UNetConfig()
    text: TextConfig = TextConfig()
    lora: LoraConfig = LoraConfig()
    training: DiffusionTraining = DiffusionTraining()
    samples: SamplesConfig = SamplesConfig()


COMMANDS: dict[str, type[AutoencoderRun] | type[DiffusionRun]] = {
    "train-vae": AutoencoderRun,
    "train-diffusion": DiffusionRun,
}
"""Class of the settings of each command that trains."""
