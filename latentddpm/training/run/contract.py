"""What a run was started with, and what may differ when it goes on.

Weights, optimizer and step say how far a run has come; that the next step is the one it would
have been follows from the configuration and the data. Both are kept in every checkpoint. On
`--resume` what differs is named key by key, and refused unless `--allow-changes` says that it is
meant.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pydantic

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.errors import UserError

COMMANDS: dict[str, type[AutoencoderRun] | type[DiffusionRun]] = {
    "train-vae": AutoencoderRun,
    "train-diffusion": DiffusionRun,
}

FREE = (
    *("training.log_every", "training.validate_every", "training.on_nan", "training.wandb"),
    *("training.checkpoint_every", "training.keep_checkpoints"),
    *("training.best_metric", "training.keep_best"),
    # The same sums in another order or another place: equal up to rounding.
    *("training.jit_compile", "training.accumulation_steps"),
    "unet.recompute",
    # Pictures to look at, and the finished model's defaults.
    "samples.",
)
"""Keys that do not change what is learned: the beginnings of their names."""

INIT = "init"
"""In the configuration a model's folder, among the facts its digest, which is what counts."""

SHOWN = 12  # characters of a digest


@dataclass(frozen=True)
class Contract:
    """What every step of a run depends on, beside its number.

    Attributes:
        command: "train-vae" or "train-diffusion".
        config: the resolved configuration, as JSON.
        data: facts about the data, such as the digest of its images, by the names people read;
            with `config["init"]` also `init`, the digest of that model.
    """

    command: str
    config: Mapping[str, Any]
    data: Mapping[str, int | str]

    @classmethod
    def of(cls, config: AutoencoderRun | DiffusionRun, data: Mapping[str, int | str]) -> Contract:
        command = next(name for name, kind in COMMANDS.items() if isinstance(config, kind))
        return cls(command, config.model_dump(mode="json"), dict(data))

    def dump(self) -> str:
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def parse(cls, text: str | bytes) -> Contract:
        """What `dump` gave.

        Raises:
            ValueError, TypeError: it is something else.
        """
        return cls(**json.loads(text))


def compare(old: Contract, new: Contract, step: int) -> tuple[list[str], list[str]]:
    """What `new` does otherwise than `old` from `step` on: what has to be allowed, and the rest.

    Raises:
        UserError: they are not of the same command.
    """
    if old.command != new.command:
        raise UserError(f"this is a run of {old.command}, not of {new.command}")
    kind = COMMANDS[new.command]
    try:
        # Settings that came later had their default.
        known = kind.model_validate(old.config).model_dump(mode="json")
    except pydantic.ValidationError:
        known = old.config
    refused, noted = [], []
    for key, was, now in _differences(known, new.config):
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
        # The same model in another place is the same, another one in the same place is not.
        same = old.data.get(INIT) == new.data.get(INIT)
        (noted if same else refused).append(f"init {was} → {now}")
    return refused, noted


def _init(contract: Contract) -> str:
    """The model that a run started from: where it lies, and its digest."""
    place, digest = contract.config.get(INIT), contract.data.get(INIT)
    return f"{place} ({str(digest)[:SHOWN]})" if place else "nothing"


def _more_steps(training: Mapping[str, Any], was: int, now: int, step: int) -> tuple[bool, str]:
    """Whether another number of steps leaves the next ones alone, and what it does to them."""
    if training["learning_rate_schedule"] == "constant" or was is None:
        return True, ""
    warmup = training["warmup_steps"]

    def share(total: int) -> float:
        """Of the way down, gone at `step`."""
        return min(max((step - warmup) / max(total - warmup, 1), 0.0), 1.0)

    return False, (
        f" (at step {step} the learning rate's cosine is {share(was):.0%} down, "
        f"of the new length {share(now):.0%})"
    )


def _differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted keys whose values differ, with both; None where there is no such key."""
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
