"""Contract of a run: the settings and digests of its data that `--resume` compares.

Weights, optimizer state and step number say how far a run has come. A resumed run takes the same
next step only if its configuration and its data are the same too, so every checkpoint holds both.
`--resume` names each key that differs and refuses to go on, unless `--allow-changes` is given or
the key changes nothing that is learned (`FREE`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pydantic

from latentddpm.config import COMMANDS, AutoencoderRun, DiffusionRun
from latentddpm.config.training import JIT
from latentddpm.errors import UserError

FREE = (
    *("training.log_every", "training.validate_every", "training.on_nan", "training.wandb"),
    *("training.checkpoint_every", "training.keep_checkpoints"),
    *("training.best_metric", "training.keep_best"),
    # The same sums in another order or on another device: equal up to rounding.
    *("training.jit_compile", "training.accumulation_steps"),
    "unet.recompute",
    *("lora.storage", "control.storage"),
    # Sample grids, and the finished model's defaults.
    "samples.",
)
"""Prefixes of keys that may change without changing what is learned."""

INIT = "init"
"""Key of a model's folder in the configuration, and of its digest, which decides, in the data."""

SHOWN = 12  # characters of a digest in messages


@dataclass(frozen=True)
class Contract:
    """Configuration and data of a run: all that a step depends on beside the state before it.

    Attributes:
        command: "train-vae" or "train-diffusion".
        config: the resolved configuration, as JSON.
        data: facts about the data, such as the digest of its images, under names for messages;
            with `config["init"]` also `init`, the digest of that model.
    """

    command: str
    config: Mapping[str, Any]
    data: Mapping[str, int | str]

    @classmethod
    def of(cls, config: AutoencoderRun | DiffusionRun, data: Mapping[str, int | str]) -> Contract:
        """Contract of a run.

        Args:
            config: resolved; its class decides the command.
            data: facts about the data, under names for messages.
        """
        command = next(name for name, kind in COMMANDS.items() if isinstance(config, kind))
        return cls(command, config.model_dump(mode="json"), dict(data))

    def dump(self) -> str:
        """JSON of the contract, which `parse` reads."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Contract:
        """Contract from its JSON.

        Args:
            text: as `dump` returned it.

        Raises:
            ValueError, TypeError: `text` is something else.
        """
        return cls(**json.loads(text))


def in_todays_words(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run, also of an older version, in the words of this one.

    A version without a pixel format had 8-bit RGB, `jit_compile` was true or false, and text was
    not dropped alone.

    Args:
        config: sections with their settings, as JSON.
    """
    data = dict(config.get("data", {}))
    if data.get("channels") is None:
        data |= {"channels": 3, "bit_depth": 8}
    training = dict(config.get("training", {}))
    if training.get("jit_compile") in (True, False):
        training["jit_compile"] = JIT[training["jit_compile"]]
    found = {**config, "data": data, "training": training}
    if "text" in config:
        found["text"] = {**config["text"], "dropout": config["text"].get("dropout") or 0.0}
    return found


def compare(old: Contract, new: Contract, step: int) -> tuple[list[str], list[str]]:
    """Differences of two contracts, as lines for messages.

    Args:
        old: of the newest checkpoint.
        new: of the run that resumes.
        step: of that checkpoint.

    Returns:
        (refused, noted): differences that need `--allow-changes`, and those that do not.

    Raises:
        UserError: the contracts belong to different commands.
    """
    if old.command != new.command:
        raise UserError(f"this is a run of {old.command}, not of {new.command}")
    kind = COMMANDS[new.command]
    try:
        # A setting that an older version did not have gets its default.
        known = kind.model_validate(old.config).model_dump(mode="json")
    except pydantic.ValidationError:
        known = old.config
    refused, noted = [], []
    for key, was, now in _differences(in_todays_words(known), in_todays_words(new.config)):
        if key == INIT:
            continue
        text = f"{key} {_shown(was)} → {_shown(now)}"
        free = key.startswith(FREE)
        if key == "training.num_steps":
            free, effect = _more_steps(new.config["training"], was, now, step)
            text += effect
        (noted if free else refused).append(text)
    for key, was, now in _differences(old.data, new.data):
        if key != INIT:
            refused.append(f"{key} {_shown(was)} → {_shown(now)}")
    was, now = _init(old), _init(new)
    if was != now:
        # The digest decides, not the folder's name.
        same = old.data.get(INIT) == new.data.get(INIT)
        (noted if same else refused).append(f"init {was} → {now}")
    return refused, noted


def _init(contract: Contract) -> str:
    """Folder and digest of the model that a run started from, for messages."""
    place, digest = contract.config.get(INIT), contract.data.get(INIT)
    return f"{place} ({str(digest)[:SHOWN]})" if place else "nothing"


def _more_steps(training: Mapping[str, Any], was: int, now: int, step: int) -> tuple[bool, str]:
    """True where another `num_steps` does not change the next steps; else False and the effect."""
    if training["learning_rate_schedule"] == "constant" or was is None:
        return True, ""
    warmup = training["warmup_steps"]

    def share(total: int) -> float:
        """Share of the cosine's decay that lies before `step`, in [0, 1]."""
        return min(max((step - warmup) / max(total - warmup, 1), 0.0), 1.0)

    return False, (
        f" (at step {step} the learning rate's cosine is {share(was):.0%} down, "
        f"of the new length {share(now):.0%})"
    )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both values; None for a key that is missing."""
    if not (isinstance(old, Mapping) and isinstance(new, Mapping)):
        if old != new:
            yield key, old, new
        return
    for name in dict.fromkeys([*old, *new]):
        yield from _differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64 and " " not in value:
        return value[:SHOWN]
    return "nothing" if value is None else json.dumps(value, ensure_ascii=False)
