"""Sweep over generation settings (`--sweep steps=10,20`): their combinations, and a plot."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.choices import SAMPLERS, TIMESTEP_SPACINGS
from latentddpm.errors import UserError, check_choice
from latentddpm.pipeline.settings import GenerationSettings, ModelFacts
from latentddpm.utils.figures import new_figure
from latentddpm.utils.files import atomic_path

if TYPE_CHECKING:
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

KEYS = {
    "sampler": "sampler",
    "spacing": "timestep_spacing",
    "guidance": "guidance_scale",
    "steps": "num_steps",
}
"""Name on the command line → name in `GenerationSettings`; the last one varies fastest."""

KINDS = {"guidance": float, "steps": int}
CHOICES = {"sampler": SAMPLERS, "spacing": TIMESTEP_SPACINGS}


def parse_sweep(options: Sequence[str]) -> dict[str, list[Any]]:
    """Values to sweep over, by setting.

        ["steps=10,20", "sampler=ddim"]  →  {"sampler": ["ddim"], "num_steps": [10, 20]}

    Args:
        options: each `KEY=A,B,…`, with a key of `KEYS`.

    Returns:
        Values by the names of `GenerationSettings`, in the order of `KEYS`.

    Raises:
        UserError: an unknown or repeated key, or a value that it does not take.
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
    model: ModelFacts | LatentDiffusion, swept: dict[str, list[Any]], **fixed: Any
) -> list[GenerationSettings]:
    """Settings of each combination of a sweep; others are as given, else the model's default.

    Args:
        model: whose settings they are.
        swept: returned by `parse_sweep`.
        fixed: the same in all combinations, by the names of `GenerationSettings`.

    Raises:
        UserError: a setting is both swept and fixed; or see `ModelFacts.settings`.
    """
    for key, name in KEYS.items():
        if name in swept and fixed.get(name) is not None:
            raise UserError(
                f"--sweep {key}=…: {key} is given as {fixed[name]} as well; leave one out"
            )
    return [
        model.settings(**{**fixed, **dict(zip(swept, values, strict=True))})
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


AXES = {"guidance_scale": "guidance", "num_steps": "steps"}


def plot_sweep(path: Path, report: dict[str, Any]) -> None:
    """Plot the Fréchet distance over guidance, or over steps if guidance was not swept.

    Each sampler has a line, each value of the other settings a panel. If the floor has fewer
    images, only the rows of that number are plotted.

    Args:
        path: PNG file to write.
        report: returned by `generator.evaluate_generator`.

    Raises:
        UserError: matplotlib is not installed.
    """
    floor = report["floor"]
    count = min(row["count"] for row in report["settings"])
    rows = [row for row in report["settings"] if row["count"] == count]
    across, other = AXES
    if len({row[across] for row in rows}) == 1:
        across, other = other, across
    values = sorted({(row[other], row["timestep_spacing"]) for row in rows})
    figure = new_figure(1 + 3.2 * len(values), 3.4)
    panels = figure.subplots(1, len(values), sharey=True, squeeze=False)[0]
    for panel, (value, spacing) in zip(panels, values, strict=True):
        for sampler in dict.fromkeys(row["sampler"] for row in rows):
            line = sorted(
                (row[across], row["frechet"])
                for row in rows
                if (row["sampler"], row[other], row["timestep_spacing"])
                == (sampler, value, spacing)
            )
            panel.plot(*zip(*line, strict=True), marker="o", label=sampler)
        if floor is not None:
            panel.axhline(
                floor["frechet"], color="gray", linestyle="--", label="validation images"
            )
        panel.set(title=f"{AXES[other]} {value:g}, {spacing}", xlabel=AXES[across])
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)  # of all panels: they share the axis
    panels[0].set_ylabel(f"{report['frechet']}, n = {count}")
    panels[-1].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
