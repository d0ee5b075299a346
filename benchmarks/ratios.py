"""A report of `vs_diffusers.py --out` as a table in Markdown and as a plot of ratio by job.

    python benchmarks/ratios.py REPORT.json [--plot FILE.png]

The plot needs matplotlib (the extra `plot`).
"""

import argparse
import json
from pathlib import Path
from typing import Any

COLUMNS = ("job", "side", "median s", "first call s", "ratio", "peak MiB", "ratio", "difference")
COLOURS = {"keras": "#d7572b", "keras-xla": "#e3a33b", "onnx": "#3a7ca5"}


def table(report: dict[str, Any]) -> str:
    """Table of all sides of all jobs."""
    none = float("nan")
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    for job, sides in report["jobs"].items():
        for side, values in sides.items():
            seconds, first = f"{values['seconds']:.3f}", f"{values['first_call']:.1f}"
            ratio, peak = values.get("ratio", none), values.get("peak_ratio", none)
            difference = f"{values.get('difference', none):.1e}"
            row = [job, side, seconds, first, f"**{ratio:.2f}**", f"{values['peak_mib']:,}"]
            rows.append([*row, f"{peak:.2f}", difference])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def plot(report: dict[str, Any], file: Path) -> None:
    """Bars of our sides beside the line at 1, which is PyTorch's better memory format."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    jobs = report["jobs"]
    sides = [side for side in COLOURS if any(side in values for values in jobs.values())]
    figure, both = pyplot.subplots(
        1, 2, figsize=(10, 1 + 0.45 * len(jobs)), sharey=True, layout="constrained"
    )
    for axes, key, title in zip(
        both, ("ratio", "peak_ratio"), ("time", "peak of memory"), strict=True
    ):
        for number, side in enumerate(sides):
            shift = (number - (len(sides) - 1) / 2) * 0.8 / len(sides)
            found = [(row, one[side]) for row, one in enumerate(jobs.values()) if side in one]
            bars = axes.barh(
                [row + shift for row, _ in found],
                [values[key] for _, values in found],
                0.8 / len(sides),
                color=COLOURS[side],
                label=side,
            )
            axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8)
        axes.axvline(1, color="black", linewidth=1)
        axes.set_title(f"{title}, PyTorch's better format = 1", fontsize=10)
        axes.set_yticks(range(len(jobs)), list(jobs))
        axes.margins(x=0.12)
    both[0].invert_yaxis()
    both[0].legend(loc="lower right", fontsize=8)
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("report", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    report = json.loads(options.report.read_text("utf-8"))
    print(table(report))
    if options.plot:
        plot(report, options.plot)


if __name__ == "__main__":
    main()
