"""Settings of a run that starts from a finished model, `init`.

Sizes, schedule, text encoder, image size and sampling defaults come from the model. A
configuration that sets another value is refused where the weights depend on it: a UNet that was
trained to predict ε does not predict v. Settings on which no weights depend (dropout, image size,
sampling) may differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from latentddpm.choices import DENOISERS
from latentddpm.clip.added_tokens import check_word
from latentddpm.config import AutoencoderRun, DiffusionRun, ScheduleConfig, Section
from latentddpm.config.denoiser import not_taken
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder
from latentddpm.pipeline.settings import DEFAULTS
from latentddpm.training.plan.resolve import is_open
from latentddpm.utils.files import AUTOENCODER, TEXT_ENCODER, read_arguments, read_network
from latentddpm.utils.files import DENOISERS as NETWORKS

DISTILLED = {
    "training": {"ema_momentum": 0.95, "condition_dropout": 0.0},
    "samples": {"sampler": "lcm", "num_steps": 4, "guidance_scale": 1.0},
}
"""Section → values of a distillation for settings that are not given. The EMA is its target, which
has to follow; guidance is part of what is learned."""
CHANGED = ("query", "key", "value", "out", "conv1", "conv2")
CHANGED_WITH_TEXT = ("proj_in", "proj_out", "ff_in", "ff_out")
"""Targets of the LoRA of a distillation; and those that only transformer blocks have."""
NOT_DISTILLED = ("min_snr_gamma", "offset_noise", "input_perturbation")
"""Settings of the training target, which a distillation takes from its teacher."""

OWN_SOURCES = ("init", "scratch")
"""Values of `text.source` allowed with an `init` that has a text encoder."""


def inherit_config(config: DiffusionRun, base: ModelFolder) -> DiffusionRun:
    """Configuration of a run that starts from a model, whose values fill in those not given.

    Args:
        config: as given.
        base: the model.

    Returns:
        The complete configuration.

    Raises:
        UserError: the model has no UNet, or the configuration sets another value where weights
            depend on it; key, value and the model's value are named.
    """
    name, unet = read_network(base.file("unet"), *NETWORKS)
    sizes = {key: unet[key] for key in type(config.unet).model_fields if key in unet}
    sizes |= {"kind": NETWORKS[name]}
    if "time_scale_shift" in DENOISERS[sizes["kind"]]:
        sizes.setdefault("time_scale_shift", False)  # archives tell it only where it is true
    sizes.pop("dropout", None)
    _check_trainable(config, sizes["kind"], unet, base)
    text = {"source": "none"}
    if "text_encoder" in base.parts:
        encoder = read_arguments(base.file("text_encoder"), TEXT_ENCODER)
        text = {key: encoder[key] for key in type(config.text).model_fields if key in encoder}
        text.pop("trainable", None)
        text["source"] = "init"
        if config.text.source in OWN_SOURCES:
            text["source"] = config.text.source
    changes = {
        "unet": _agree(config.unet, "unet", sizes, base),
        "text": _agree(config.text, "text", text, base),
    }
    if base.schedule is not None:
        defaults = ScheduleConfig().model_dump()
        schedule = {key: base.schedule.get(key, value) for key, value in defaults.items()}
        changes["schedule"] = _agree(config.schedule, "schedule", schedule, base)
    changes["data"] = _agree(config.data, "data", _format(base), base)
    drawn = {key: base.defaults[key] for key in DEFAULTS if key in base.defaults}
    changes |= _distilled(config, drawn, base)
    if base.image_size is not None and len(set(base.image_size)) == 1:
        changes["data"] = _fill(changes["data"], {"resolution": base.image_size[0]})
    config = config.model_copy(update=changes)
    if config.lora.rank and config.text.trained:
        raise UserError(
            "lora.rank: what would be trained of the text encoder is not part of a LoRA file; "
            "set text.trainable=false"
        )
    check_control(config, base)
    check_prior(config)
    check_new_token(config, base)
    return config


def _distilled(
    config: DiffusionRun, drawn: Mapping[str, Any], base: ModelFolder
) -> dict[str, Section]:
    """Sections that a distillation fills in, and that of the samples, by name."""
    if config.distill.kind == "none":
        return {"samples": _fill(config.samples, drawn)}
    has_text = "text_encoder" in base.parts
    scale = drawn.get("guidance_scale", DEFAULTS["guidance_scale"])
    guided = has_text or base.conditions.guided
    teacher = {"guidance_scale": [scale, scale] if guided else None}
    targets = [*CHANGED, *CHANGED_WITH_TEXT] if has_text else [*CHANGED]
    return {
        "samples": _fill(config.samples, {**drawn, **DISTILLED["samples"]}),
        "training": _fill(config.training, DISTILLED["training"]),
        "distill": _fill(config.distill, teacher),
        "lora": _fill(config.lora, {"targets": targets}),
    }


def check_control(config: DiffusionRun, base: ModelFolder) -> None:
    """Refuse settings that do not go with the training of a ControlNet.

    Args:
        config: of the run, complete.
        base: the model.

    Raises:
        UserError: naming the setting.
    """
    if not config.control.trained:
        return
    if config.unet.kind != "unet" or config.data.spatial_dims != 2:
        what = "draws signals" if config.data.spatial_dims == 1 else f"is of {config.unet.kind}"
        raise UserError(
            f"control: a ControlNet is for a network of kind unet of images, and {base.path} "
            f"{what}; leave control out"
        )
    for name, other in (
        ("lora.rank", config.lora.rank),
        ("distill.kind", config.distill.kind != "none"),
        ("text.trainable", config.text.trained),
        ("data.aspect_buckets", config.data.aspect_buckets),
    ):
        if other:
            raise UserError(f"{name}: not beside control, where a ControlNet alone is trained")


def check_prior(config: DiffusionRun) -> None:
    """Refuse settings that do not go with prior preservation.

    Args:
        config: of the run, complete.

    Raises:
        UserError: naming the setting.
    """
    prior = config.prior
    if not prior.used:
        return
    if not config.init:
        raise UserError("prior: of which model? name it: init=MODEL or --init")
    if prior.prompt and config.text.source == "none":
        other = "leave it out" if prior.data else "name images with prior.data"
        raise UserError(f"prior.prompt: {config.init} is unconditional; {other}")
    if config.training.batch_size < 2:
        raise UserError(
            f"training.batch_size: {config.training.batch_size}, expected at least 2 with prior: "
            "a batch has examples of both"
        )
    for name, other in (
        ("control", config.control.trained),
        ("distill.kind", config.distill.kind != "none"),
        ("conditions", bool(config.conditions)),
        ("data.aspect_buckets", config.data.aspect_buckets),
        ("data.augment", config.data.augment.changes),
        ("data.mask", config.data.mask.given),
    ):
        if other:
            raise UserError(f"{name}: not beside prior; leave it or prior out")


def check_new_token(config: DiffusionRun, base: ModelFolder | None) -> None:
    """Refuse settings that do not go with a textual inversion.

    Args:
        config: of the run, complete.
        base: the model; None from scratch.

    Raises:
        UserError: naming the setting.
    """
    text = config.text
    if not text.new_token:
        if text.new_token_init or text.new_token_vectors != 1:
            raise UserError("text.new_token: which word? such as text.new_token='<cat-toy>'")
        return
    if base is None:
        raise UserError("text.new_token: a word for which model? name it: init=MODEL or --init")
    if "text_encoder" not in base.parts:
        raise UserError(f"text.new_token: {base.path} is unconditional, without words")
    check_word(text.new_token, "text.new_token")
    if not text.new_token_init.strip():
        raise UserError(
            "text.new_token_init: what is it like? words that the model knows, such as toy"
        )
    for name, other in (
        ("text.trainable", config.text.trained),
        ("lora.rank", config.lora.rank),
        ("control", config.control.trained),
        ("distill.kind", config.distill.kind != "none"),
        ("conditions", bool(config.conditions)),
    ):
        if other:
            raise UserError(f"{name}: not beside text.new_token, whose vectors alone are trained")


def check_distillation(config: DiffusionRun) -> None:
    """Refuse settings that do not go with a distillation.

    Args:
        config: of the run.

    Raises:
        UserError: naming the setting.
    """
    distill, training = config.distill, config.training
    if distill.kind == "none":
        return
    if not config.init:
        raise UserError(
            f"distill.kind={distill.kind}: of which model? name it: init=MODEL or --init"
        )
    if config.schedule.kind == "flow":
        raise UserError(
            f"distill.kind={distill.kind}: needs a schedule of betas, and this model's is 'flow'; "
            "train it with schedule.kind=ddpm"
        )
    total = config.schedule.num_train_timesteps
    if distill.solver_steps > total:
        raise UserError(
            f"distill.solver_steps: {distill.solver_steps}, expected at most {total}, the "
            "timesteps of training"
        )
    if config.text.trained:
        raise UserError(
            "text.trainable: a distillation takes the text encoder as it is; leave it out"
        )
    if config.data.mask.given:
        raise UserError(
            "data.mask: a distillation learns from its teacher everywhere; leave it out"
        )
    for key in NOT_DISTILLED:
        if getattr(training, key):
            raise UserError(
                f"training.{key}: changes the target, which is the teacher's in a distillation; "
                "leave it out"
            )
    scales = distill.guidance_scale
    if scales is not None and not 0 <= scales[0] <= scales[1]:
        raise UserError(f"distill.guidance_scale: {scales}, expected [lowest, highest], from 0 on")
    if scales is not None and config.text.source == "none" and not config.conditions:
        raise UserError(
            f"distill.guidance_scale: {scales}, but {config.init} is unconditional: there is no "
            "guidance; leave it out"
        )


def inherit_autoencoder_config(config: AutoencoderRun, base: ModelFolder) -> AutoencoderRun:
    """Configuration of a `train-vae` run that starts from a model, whose values fill in others.

    Args:
        config: as given.
        base: the model.

    Returns:
        The complete configuration.

    Raises:
        UserError: the model has no autoencoder, or the configuration sets other sizes.
    """
    arguments = read_arguments(base.file("vae"), AUTOENCODER)
    sizes = {key: arguments[key] for key in type(config.autoencoder).model_fields}
    changes = {
        "autoencoder": _agree(config.autoencoder, "autoencoder", sizes, base),
        "data": _agree(config.data, "data", _format(base), base),
    }
    if base.image_size is not None and len(set(base.image_size)) == 1:
        changes["data"] = _fill(changes["data"], {"resolution": base.image_size[0]})
    return config.model_copy(update=changes)


def check_autoencoder(base: ModelFolder, vae: ModelFolder) -> None:
    """Refuse an autoencoder other than the one that a UNet was trained with.

    Args:
        base: folder with the UNet.
        vae: folder with the autoencoder.

    Raises:
        UserError: naming both folders.
    """
    known = base.parts["unet"].get("vae_digest")
    found = vae.parts["vae"]["digest"]
    if known not in (None, found):
        raise UserError(
            f"{vae.path}: another autoencoder (digest {found[:12]}) than the one whose latents "
            f"{base.path} was trained on ({known[:12]}); leave --vae out to take its own"
        )


def _check_trainable(
    config: DiffusionRun, kind: str, unet: Mapping[str, Any], base: ModelFolder
) -> None:
    """Refuse a network that is not trained here, and settings that its kind does not take."""
    if unet.get("learned_variance"):
        raise UserError(
            f"init: {base.path} predicts a variance too (learned_variance); such a network is "
            "sampled and converted, not trained"
        )
    for key in sorted(_given(config.unet).difference(("kind", *DENOISERS[kind]))):
        raise UserError(f"unet.{key}: {not_taken(kind)} ({base.path}, which the run starts from)")
    if config.lora.rank and "attention_levels" not in DENOISERS[kind]:
        raise UserError(
            f"lora.rank: a LoRA changes attention, and {base.path} has none (kind {kind}); leave "
            "lora.rank out"
        )


def inherit_pixels(config: DiffusionRun, vae: ModelFolder) -> DiffusionRun:
    """Configuration with the pixel format of an autoencoder.

    Args:
        config: of a run.
        vae: folder with the autoencoder.

    Raises:
        UserError: the configuration sets another one.
    """
    data = _agree(config.data, "data", _format(vae), vae)
    return config.model_copy(update={"data": data})


def _format(model: ModelFolder) -> dict[str, Any]:
    """Pixel format of a model, as settings of `data:`."""
    return {"spatial_dims": 2, "rate": None, **model.pixels.to_json()}


def _agree(section: Section, name: str, known: Mapping[str, Any], base: ModelFolder) -> Section:
    """Section with the model's values; one that is set to another value is refused."""
    given = _given(section)
    for key in type(section).model_fields:
        value = getattr(section, key)
        if key in given & known.keys() and value != known[key]:
            raise UserError(
                f"{name}.{key}: {value!r}, but {base.path}, which the run starts from, has "
                f"{known[key]!r}; leave it out, or train from scratch"
            )
    return section.model_copy(update=dict(known))


def _fill(section: Section, known: Mapping[str, Any]) -> Section:
    """Section with the model's values where none is set."""
    given = _given(section)
    left_out = {key: value for key, value in known.items() if key not in given}
    return section.model_copy(update=left_out)


def _given(section: Section) -> set[str]:
    """Keys of a section that were set to a value."""
    return {key for key in section.model_fields_set if not is_open(getattr(section, key))}
