"""The same networks, weights and inputs here and in diffusers on PyTorch, side by side.

    pip install ".[reference,plot]"
    python benchmarks/vs_diffusers.py [--rounds 5] [--jobs vae-decode unet-train] [--out FILE.json]
        [--batches 1 4 16] [--precisions float32 bfloat16] [--large 512 1024] [--isa avx2]
    python benchmarks/vs_diffusers.py --quick

Every measurement is a process of its own and the sides take turns, so that a noisy machine is
noisy for all of them. A process warms up, repeats its job and reports the median; the table
has the median over the rounds, the ratio to the better memory format of PyTorch, the peak of
resident memory and its ratio, and how far the outputs lie apart. What is done: `side.py`. Table
and plot of a report: `ratios.py`.

`--batches` does UNet and `generate` at these batches too, `--precisions` all but training and
cold starts in each. `cold-again` is the second start, with the user's cache of the first.
`--large` is one step of a UNet of Stable Diffusion's size (16 GiB of memory and of disk).
`--isa avx2` hides AVX-512 from oneDNN, MKL and PyTorch's own kernels, and leaves TensorFlow the
kernels that it takes on such a processor; for ONNX Runtime there is no such switch, so `onnx` is
left out. `--quick` is a check meant for two minutes, see `quick.py`.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import quick
from ratios import table
from sides.jobs import COLD, SIZES

JOBS = ("vae-encode", "vae-decode", "unet-forward", "unet-train", "generate", *COLD)
SIDES = ("keras", "keras-xla", "onnx", "torch", "torch-channels-last")
BATCHED = ("unet-forward", "generate")
PRECISIONS = ("float32", "bfloat16", "float16")
WORKER = Path(__file__).parent / "side.py"
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "XLA_FLAGS": "--xla_cpu_max_isa=AVX2",
}


class Cell(NamedTuple):
    """A job with its conditions: a row of the report for each side."""

    job: str
    size: str
    batch: int
    precision: str

    @property
    def name(self) -> str:
        own = SIZES[self.size].get("batch", 1) if self.job.startswith("unet") else 1
        return " ".join(
            [self.job]
            + [self.size] * (self.size != "page")
            + [f"batch {self.batch}"] * (self.batch != own)
            + [self.precision] * (self.precision != "float32")
        )

    def takes(self, side: str) -> bool:
        """False where a side cannot do it, or XLA compiles for longer than all the rest takes."""
        if side == "keras-xla":
            return self.job in ("vae-encode", "vae-decode", "unet-forward") and self.size == "page"
        if side == "onnx":
            return self.job != "unet-train" and self.precision == "float32"
        # A second start is like the first there, and a cold one the same in either format.
        return not (side == "torch-channels-last" and self.job in COLD)


def cells(jobs: list[str], size: str, batches: list[int], precisions: list[str]) -> list[Cell]:
    """Cells of the jobs on the networks of a size."""
    found = []
    for job, precision in itertools.product(jobs, precisions):
        if precision == "float32" or job not in ("unet-train", *COLD):
            own = SIZES[size]["batch"] if job.startswith("unet") else 1
            several = {own, *batches} if job in BATCHED else {own}
            found += [Cell(job, size, batch, precision) for batch in sorted(several)]
    return found


class Bench:
    """Processes that measure, in a folder with the models.

    Args:
        folder: for the models of every size, the outputs and caches.
        isa: instructions to compute with: None for all, or "avx2".
    """

    def __init__(self, folder: Path, isa: str | None) -> None:
        self.folder, self.isa = folder, isa
        self.versions: dict[str, str] = {}

    def environment(self, job: str, cache: Path) -> dict[str, str]:
        own = {"HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "XDG_CACHE_HOME": str(cache)}
        if self.isa:  # as `latentddpm.utils` chooses TensorFlow's kernels on such a processor
            own |= {**AVX2, "TF_ENABLE_ONEDNN_OPTS": str(int(job == "unet-train"))}
        return {**os.environ, **own}

    def worker(
        self, side: str, job: str, size: str, cache: Path, *more: str
    ) -> tuple[dict, float]:
        """What one process of `side.py` reports, and its whole wall time."""
        command = [sys.executable, str(WORKER), side, job, str(self.folder / size)]
        start = time.perf_counter()
        answer = subprocess.run(
            [*command, "--size", size, *more],
            env=self.environment(job, cache),
            capture_output=True,
            text=True,
            check=False,
        )
        spent = time.perf_counter() - start
        if answer.returncode:
            sys.exit(f"{side} {job} {' '.join(more)} failed:\n{answer.stderr[-3000:]}")
        return json.loads(answer.stdout.splitlines()[-1]), spent

    def once(self, side: str, cell: Cell) -> dict:
        """One measurement of a side."""
        more = ["--batch", str(cell.batch), "--precision", cell.precision]
        more += ["--out", str(self.output(side, cell))]
        cache = self.folder / "cache"
        if cell.job in COLD:
            cache = Path(tempfile.mkdtemp(dir=self.folder))  # nothing of an earlier start
        arguments = (side, cell.job, cell.size, cache, *more)
        if cell.job == "cold-again" and not side.startswith("torch"):
            self.worker(*arguments)
        line, spent = self.worker(*arguments)
        return {**line, "seconds": spent} if cell.job in COLD else line

    def output(self, side: str, cell: Cell) -> Path:
        return self.folder / f"{side} {cell.name}.npy"

    def measure(self, cell: Cell, sides: list[str], rounds: int) -> dict[str, dict]:
        """Per side: seconds of every round, first call, peak memory, difference to PyTorch."""
        if not (self.folder / cell.size).is_dir():
            (self.folder / cell.size).mkdir()
            versions, _ = self.worker("keras", "prepare", cell.size, self.folder / "cache")
            self.versions |= versions
        runs: dict[str, list[dict]] = {side: [] for side in sides if cell.takes(side)}
        for _ in range(rounds):
            for side, done in runs.items():
                done.append(self.once(side, cell))
                print(f"{cell.name:30} {side:20} {done[-1]['seconds']:8.3f} s", file=sys.stderr)
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
            expected = np.load(self.output(best, cell))
            for side, values in found.items():
                values["ratio"] = values["seconds"] / theirs[best]
                values["peak_ratio"] = values["peak_mib"] / found[best]["peak_mib"]
                values["difference"] = float(
                    np.abs(np.load(self.output(side, cell)) - expected).max()
                )
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--jobs", nargs="*", default=JOBS, choices=JOBS)
    parser.add_argument("--sides", nargs="+", default=SIDES, choices=SIDES)
    parser.add_argument("--size", default="page", choices=("page", "tiny"), help="tiny: rehearse")
    parser.add_argument("--batches", nargs="+", type=int, default=[])
    parser.add_argument("--precisions", nargs="+", default=("float32",), choices=PRECISIONS)
    parser.add_argument("--large", nargs="+", default=[], choices=("512", "1024"))
    parser.add_argument("--isa", choices=("avx2",), help="hide AVX-512")
    parser.add_argument("--quick", action="store_true", help="check ratios, two minutes")
    parser.add_argument("--write", action="store_true", help="of --quick: keep these ratios")
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    sides = [side for side in options.sides if not (options.isa and side == "onnx")]
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), options.isa)
        if options.quick:
            sys.exit(quick.run(bench, options.write))
        asked = cells(options.jobs, options.size, options.batches, options.precisions)
        asked += [Cell("unet-forward", size, 1, "float32") for size in options.large]
        for cell in asked:
            found[cell.name] = bench.measure(cell, sides, options.rounds)
    report = {
        "versions": bench.versions,
        "cores": os.cpu_count(),
        "isa": options.isa or "all",
        "rounds": options.rounds,
        "jobs": found,
    }
    text = json.dumps(report, indent=2)
    print(text)
    print(table(report), file=sys.stderr)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
