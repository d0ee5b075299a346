"""The table of a sweep as a picture: the Fréchet distance of each sampler, over what was swept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from latentddpm.utils.figures import new_figure
from latentddpm.utils.files import atomic_path

AXES = {"guidance_scale": "guidance", "num_steps": "steps"}


def plot_sweep(path: Path, report: dict[str, Any]) -> None:
    """Write a PNG: Fréchet against guidance, or against steps where guidance was not swept.

    Each sampler has a line, and what else was swept a panel for each of its values.

    Args:
        report: of `generator.evaluate_generator`; of its rows, those that compare with the floor.

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
            panel.axhline(floor["frechet"], color="gray", linestyle="--", label="held back")
        panel.set(title=f"{AXES[other]} {value:g}, {spacing}", xlabel=AXES[across])
        panel.grid(alpha=0.3)
    panels[0].set_ylim(bottom=0)  # of all panels, now that each has drawn its lines
    panels[0].set_ylabel(f"{report['frechet']}, n = {count}")
    panels[-1].legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
