"""Settings of the training: length, optimizer, precision, intervals."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from latentddpm.config.section import Betas, Section

JIT = {True: "on", False: "off"}
"""Boolean → setting `jit_compile`."""


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
    jit_compile: Literal["auto", "on", "off"] = Field(
        "auto", description="compile the step with XLA. auto: on a GPU, where it compiles"
    )
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

    @field_validator("jit_compile", mode="before")
    @classmethod
    def _on_or_off(cls, value: Any) -> Any:
        """YAML reads on and off as true and false, which older configurations hold."""
        return JIT.get(value, value) if isinstance(value, bool) else value


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
    latent_normalization: Literal["scale", "channels"] = Field(
        "scale",
        description="measured at the end: scale: one factor for all latents; channels: mean and "
        "standard deviation of each channel",
    )


class DiffusionTraining(TrainingConfig):
    """Training settings of `train-diffusion`: those of both commands, and the training target."""

    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="share of examples trained on the empty prompt"
    )
    timestep_sampling: Literal["uniform", "logit_normal", "mode"] = Field(
        "uniform", description="density of the timesteps; logit_normal has more of the middle"
    )
    logit_mean: float = Field(0.0, description="of logit_normal; above 0: more noise")
    logit_std: float = Field(1.0, gt=0, description="of logit_normal")
    mode_scale: float = Field(
        1.29, ge=-1, le=1.75, description="of mode; above 0: more of the middle"
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
