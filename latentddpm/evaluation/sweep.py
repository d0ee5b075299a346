"""`--sweep`: which settings are compared, from `steps=10,20`, `guidance=1,4`, `sampler=ddim`."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from latentddpm.choices import SAMPLERS, TIMESTEP_SPACINGS
from latentddpm.errors import UserError, check_choice
from latentddpm.evaluation.generated import Setting
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

KEYS = {
    "sampler": "sampler",
    "spacing": "timestep_spacing",
    "guidance": "guidance_scale",
    "steps": "num_steps",
}
"""Of the command line → of `Setting`; settings come in this order, steps fastest."""

KINDS = {"guidance": float, "steps": int}
CHOICES = {"sampler": SAMPLERS, "spacing": TIMESTEP_SPACINGS}


def parse_sweep(options: Sequence[str]) -> dict[str, list[Any]]:
    """`["steps=10,20", "sampler=ddim"]` → `{"sampler": ["ddim"], "num_steps": [10, 20]}`.

    Raises:
        UserError: an unknown or repeated key, or a value that is none of it.
    """
    swept: dict[str, list[Any]] = {}
    for option in options:
        key, _, values = option.partition("=")
        check_choice("--sweep", key, KEYS)
        if key in swept:
            raise UserError(f"--sweep {option}: {key} was given before; name all values in one")
        swept[key] = list(dict.fromkeys(_value(option, key, text) for text in values.split(",")))
    return {name: swept[key] for key, name in KEYS.items() if key in swept}


def settings_of(
    model: LatentDiffusion, swept: dict[str, list[Any]], **fixed: Any
) -> list[Setting]:
    """Every combination of what is swept; the rest is as given, else the model's default.

    Raises:
        UserError: what is swept is given as well, or see `Setting.of`; before anything is drawn.
    """
    for key, name in KEYS.items():
        if name in swept and fixed.get(name) is not None:
            raise UserError(
                f"--sweep {key}=…: {key} is given as {fixed[name]} as well; leave one out"
            )
    return [
        Setting.of(model, **{**fixed, **dict(zip(swept, values, strict=True))})
        for values in itertools.product(*swept.values())
    ]


def _value(option: str, key: str, text: str) -> Any:
    text = text.strip()
    if key in CHOICES:
        return check_choice(f"--sweep {key}", text, CHOICES[key])
    try:
        return KINDS[key](text)
    except ValueError:
        example = {"guidance": "guidance=1,2.5,4", "steps": "steps=10,20,50"}[key]
        raise UserError(f"--sweep {option}: {text!r} is no number; such as {example}") from None
