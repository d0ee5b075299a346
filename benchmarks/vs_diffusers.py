"""The same networks, weights and inputs here and in diffusers on PyTorch, side by side.

    pip install ".[reference]"
    python benchmarks/vs_diffusers.py [--rounds 5] [--jobs vae-decode unet-train] [--out FILE]

Every measurement is a process of its own and the sides take turns, so that a noisy machine is
noisy for all of them. A process warms up, repeats its job and reports the median; the table
has the median over the rounds, the ratio to the better memory format of PyTorch, the peak of
resident memory, and how far the outputs lie apart. What is done: `side.py`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

JOBS = ("vae-encode", "vae-decode", "unet-forward", "unet-train", "generate", "cold")
SIDES = ("keras", "keras-xla", "torch", "torch-channels-last")
WORKER = Path(__file__).parent / "side.py"
# XLA compiles for longer than a whole `generate` or cold start takes; a step takes minutes.
SKIPPED = {
    *((job, "keras-xla") for job in ("unet-train", "generate", "cold")),
    ("cold", "torch-channels-last"),
}


def worker(*arguments: str) -> tuple[dict, float]:
    """What one process of `side.py` reports, and its whole wall time."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
    start = time.perf_counter()
    answer = subprocess.run(
        [sys.executable, str(WORKER), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    spent = time.perf_counter() - start
    if answer.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{answer.stderr[-3000:]}")
    return json.loads(answer.stdout.splitlines()[-1]), spent


def measure(job: str, sides: list[str], rounds: int, folder: str) -> dict[str, dict]:
    """Per side: seconds of every round, first call, peak memory, difference to PyTorch."""
    runs: dict[str, list[dict]] = {side: [] for side in sides if (job, side) not in SKIPPED}
    for _ in range(rounds):
        for side, done in runs.items():
            line, spent = worker(side, job, folder)
            if job == "cold":
                line["seconds"] = spent
            done.append(line)
            print(f"{job:14} {side:20} {line['seconds']:8.3f} s", file=sys.stderr)
    found = {
        side: {
            "seconds": statistics.median(line["seconds"] for line in done),
            "every_round": [round(line["seconds"], 4) for line in done],
            "first_call": statistics.median(line["first"] for line in done),
            "peak_mib": round(statistics.median(line["peak_mib"] for line in done)),
        }
        for side, done in runs.items()
    }
    theirs = {side: values["seconds"] for side, values in found.items() if "torch" in side}
    if theirs:
        best = min(theirs, key=theirs.__getitem__)
        expected = np.load(Path(folder, f"{job}-{best}.npy"))
        for side, values in found.items():
            values["ratio"] = values["seconds"] / theirs[best]
            output = np.load(Path(folder, f"{job}-{side}.npy"))
            values["difference"] = float(np.abs(output - expected).max())
    return found


def table(found: dict[str, dict[str, dict]]) -> str:
    lines = [
        "| job | side | median s | first call s | ratio | peak MiB | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for job, sides in found.items():
        for side, values in sides.items():
            lines.append(
                f"| {job} | {side} | {values['seconds']:.3f} | {values['first_call']:.1f} "
                f"| {values.get('ratio', float('nan')):.2f} | {values['peak_mib']} "
                f"| {values.get('difference', float('nan')):.1e} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", nargs="+", default=JOBS, choices=JOBS)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        versions, _ = worker("keras", "prepare", folder)
        found = {job: measure(job, options.sides, options.rounds, folder) for job in options.jobs}
    text = json.dumps(
        {"versions": versions, "cores": os.cpu_count(), "rounds": options.rounds, "jobs": found},
        indent=2,
    )
    print(text)
    print(table(found), file=sys.stderr)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
