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
from latentddpm.config import AutoencoderRun, DiffusionRun, ScheduleConfig, Section
from latentddpm.config.denoiser import not_taken
from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import ModelFolder
from latentddpm.pipeline.settings import DEFAULTS
from latentddpm.training.plan.resolve import is_open
from latentddpm.utils.files import AUTOENCODER, TEXT_ENCODER, read_arguments, read_network
from latentddpm.utils.files import DENOISERS as NETWORKS

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
    changes["samples"] = _fill(config.samples, drawn)
    if base.image_size is not None and len(set(base.image_size)) == 1:
        changes["data"] = _fill(changes["data"], {"resolution": base.image_size[0]})
    config = config.model_copy(update=changes)
    if config.lora.rank and config.text.trained:
        raise UserError(
            "lora.rank: what would be trained of the text encoder is not part of a LoRA file; "
            "set text.trainable=false"
        )
    return config


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
