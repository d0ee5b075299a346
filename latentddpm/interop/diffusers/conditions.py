"""Conditions of diffusers' UNets: a class embedding, and channels behind the noisy latents.

    num_class_embeds N              class `label` of N words, "0" … "N − 1"
    class_embed_type                timestep, projection or identity: number `label`
    in_channels − out_channels      1 + c   inpainting: mask, latents of the picture around it
                                    c       picture, through the autoencoder
                                    3       low_resolution, for c other than 3
                                    others  picture, through pixels

diffusers says neither the names nor the words of a condition, nor whether a network knows "not
told". What is written here says them under a key of its own, `_latentddpm` in the UNet's
`config.json`, which diffusers leaves alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError, check_choice
from latentddpm.interop.diffusers.known_keys import CONDITIONAL_UNET, OWN, UNET, Config
from latentddpm.models.denoisers.told import CONCAT
from latentddpm.pipeline.weight_files import INPAINT, PIX2PIX, TEXT

if TYPE_CHECKING:
    from latentddpm.models.autoencoder.autoencoder import Autoencoder

LABEL = "label"
LEVEL = "noise_level"
"""Name of the class embedding, and of that of an upscaler."""
TYPE, ROWS = "class_embed_type", "num_class_embeds"
WIDTH = "projection_class_embeddings_input_dim"
TYPES = {
    UNET: ("timestep", "identity"),
    CONDITIONAL_UNET: ("timestep", "projection", "identity"),
}
"""Class of a UNet → values of `class_embed_type` beside null."""
LARGEST = 100_000
"""Classes, or numbers, that are listed at most."""


def read_conditions(
    config: Config, source: str, vae: Mapping[str, Any] | None = None
) -> Conditions:
    """Conditions of a `UNet2DModel` or `UNet2DConditionModel`.

    Args:
        config: of diffusers, with valid `block_out_channels`.
        source: its file, for messages.
        vae: arguments of the autoencoder; None for none.

    Raises:
        UserError: something is not supported; the message names the key.
    """
    if OWN in config:
        return _own_conditions(config, source)
    entries = [*_map(config, source, vae), *_embedding(config, source)]
    if [one["kind"] for one in entries] == ["low_resolution", "class"]:
        entries[-1]["name"] = LEVEL
    return Conditions.from_json(entries)


def map_channels(conditions: Sequence[Mapping[str, Any]]) -> int:
    """Input channels of a UNet beside those of the noisy latents.

    Args:
        conditions: of the UNet; see `models.denoisers.told`.
    """
    return sum(one["size"] for one in conditions if one["enters"] == CONCAT)


def condition_keys(conditions: Sequence[Mapping[str, Any]], kind: str) -> dict[str, Any]:
    """Keys of the configuration of a UNet that are about its class embedding.

    Args:
        conditions: of the UNet; see `models.denoisers.told`.
        kind: class of the UNet in diffusers.

    Raises:
        UserError: diffusers has no embedding like this, or no second one.
    """
    vectors = [one for one in conditions if one["enters"] != CONCAT]
    if len(vectors) > 1:
        names = ", ".join(one["name"] for one in vectors)
        raise UserError(
            f"conditions {names}: diffusers' UNets have one class embedding; expected a model "
            "that is told one of these, and any number of pictures"
        )
    if not vectors:
        return {}
    (one,) = vectors
    if one["enters"] == "rows":
        return {ROWS: one["size"]}
    if one["enters"] not in TYPES[kind]:
        raise UserError(
            f"condition {one['name']!r}: enters by {one['enters']}, which {kind} has not; "
            f"expected a class, or a model with text ({CONDITIONAL_UNET})"
        )
    width = {WIDTH: one["size"]} if one["enters"] == "projection" else {}
    return {TYPE: one["enters"], **width}


def own_keys(conditions: Conditions) -> dict[str, Any]:
    """Key of our own in the configuration of a UNet, with its conditions; {} for none.

    Args:
        conditions: of the model.
    """
    return {OWN: {"conditions": conditions.to_json()}} if conditions else {}


def pipeline_of(conditions: Conditions, autoencoder: Autoencoder) -> str | None:
    """Class of diffusers for a model with text; None where none takes its conditions.

    Args:
        conditions: of the model.
        autoencoder: of the model.
    """
    if not conditions:
        return TEXT
    (one, *more), latents = conditions, autoencoder.latent_channels
    if more or not getattr(one, "encoded", False):
        return None
    if one.kind == "inpainting" and one.channels == 1 + latents:
        return INPAINT
    if one.kind == "picture" and one.channels == latents:
        raw = _unscaled(autoencoder.scaling_factor, autoencoder.shift_factor)
        return PIX2PIX if one.scale == raw else None
    return None


def _unscaled(scaling_factor: Any, shift_factor: Any) -> float | None:
    """Factor that makes raw latents of scaled ones; None where that is not one factor."""
    plain = isinstance(scaling_factor, float) and shift_factor == 0
    return 1 / scaling_factor if plain else None


def _own_conditions(config: Config, source: str) -> Conditions:
    """Conditions of the key of our own, which have to fit the keys of diffusers."""
    where, own = f"{source}: {OWN}", config[OWN]
    if not isinstance(own, Mapping) or not isinstance(own.get("conditions"), list):
        raise UserError(f"{where}: {own!r:.80}, expected its conditions")
    try:
        found = Conditions.from_json(own["conditions"])
        specs = found.specs()
        if any(type(one["size"]) is not int or one["size"] < 1 for one in specs):
            raise ValueError("a size that is no positive whole number")
        keys = condition_keys(specs, config["_class_name"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{where}: malformed ({error})") from None
    for key in (TYPE, ROWS, WIDTH):
        if keys.get(key) != config.get(key):
            raise UserError(
                f"{source}: {key}: {config.get(key)!r:.80}, but {OWN} makes it {keys.get(key)!r}"
            )
    return found


def _embedding(config: Config, source: str) -> list[dict[str, Any]]:
    """Entry of the class embedding; empty for none."""
    kind, entry = config.get(TYPE), {"name": LABEL, "null": False}
    width = config["block_out_channels"][0]
    if kind is None:
        if config.get(ROWS) is None:
            return []
        words = list(map(str, range(_count(config, source, ROWS))))
        return [{**entry, "kind": "class", "words": words}]
    if not isinstance(kind, str):
        raise UserError(f"{source}: {TYPE}: {kind!r:.80}, expected a name or null")
    check_choice(f"{source}: {TYPE}", kind, TYPES[config["_class_name"]])
    size = 1
    if kind == "projection":
        size = _count(config, source, WIDTH)
    elif kind == "identity":
        size = 4 * width
    entry |= {"kind": "number", "mean": [0.0] * size, "std": [1.0] * size, "enters": kind}
    return [entry]


def _map(config: Config, source: str, vae: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Entry of the map behind the noisy latents; empty for none.

    Pictures of InstructPix2Pix are raw latents, those of the inpainting pipeline scaled ones.
    """
    latents = config.get("out_channels", config.get("in_channels"))
    channels = config.get("in_channels", latents)
    if type(latents) is not int or type(channels) is not int or channels <= latents:
        return []  # their own checks refuse what is no number
    rest = channels - latents
    entry = {"channels": rest, "null": False}
    if rest == 1 + latents:
        kind = "inpainting"
    elif rest == latents:
        kind = "picture"
        scale = _unscaled(vae["scaling_factor"], vae["shift_factor"]) if vae else 1.0
        if scale is None:
            raise UserError(
                f"{source}: in_channels: {channels}, of which {rest} are raw latents, is not "
                "supported with an autoencoder that shifts its latents"
            )
        entry |= {"null": True, "scale": scale}
    elif rest == 3:
        factor = 2 ** (len(vae["channel_multipliers"]) - 1) if vae else 4
        kind = "low_resolution"
        entry |= {"factor": factor, "depth": 1}
    else:
        kind = "picture"
        entry["through"] = "pixels"
    return [{"name": kind, "kind": kind, **entry}]


def _count(config: Config, source: str, key: str) -> int:
    value = config.get(key)
    if type(value) is not int or not 1 <= value <= LARGEST:
        raise UserError(
            f"{source}: {key}: {value!r:.80}, expected a whole number from 1 to {LARGEST:,}"
        )
    return value
