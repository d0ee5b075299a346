"""Check meant for two minutes, `vs_diffusers.py --quick`: no ratio is 25 % worse than it was.

One process a side loads small networks (`side.py`, size quick) and then does jobs as it is told,
so the sides take turns call by call and a noisy machine is noisy for both. A ratio is of the best
of N calls each, which other work on the machine changes little. `quick.json` has the ratios that
belong to the page, for each kind of processor; `--write` writes those of this one. A kind without
any, and a machine without PyTorch, are said and pass.
"""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from latentddpm.utils.machine.kernels import processor_flags

JOBS = {"unet-forward": 15, "unet-train": 12, "vae-decode": 15}
WORSE = 1.25
SIDES = ("keras", "torch", "torch-channels-last")
KNOWN = Path(__file__).with_suffix(".json")


def kind_of_processor() -> str:
    """What decides the kernels of both sides."""
    flags = processor_flags()
    kinds = ("amx_bf16", "avx512_vnni", "avx512f", "avx2")
    return next((kind for kind in kinds if kind in flags), "other")


class Side:
    """Process of a side that does jobs as it is told."""

    def __init__(self, bench: Any, side: str) -> None:
        worker = Path(__file__).parent / "side.py"
        command = [sys.executable, str(worker), side, "serve", str(bench.folder / "quick")]
        self.process = subprocess.Popen(
            [*command, "--size", "quick"],
            env=bench.environment("unet-train", bench.folder / "cache"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def seconds(self, job: str) -> float:
        """Seconds of one call; the first of a job warms up before."""
        print(job, file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"--quick: {' '.join(self.process.args)} ended; run it by hand")
        return json.loads(line)["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def run(bench: Any, write: bool) -> int:
    """Exit code: 0 where every ratio holds.

    Args:
        bench: a `vs_diffusers.Bench`.
        write: keep the ratios as those of this kind of processor.
    """
    for package in ("torch", "diffusers"):
        if importlib.util.find_spec(package) is None:
            print(f"--quick: {package} is not installed (the extra reference): nothing compared")
            return 0
    (bench.folder / "quick").mkdir()
    bench.worker("keras", "prepare", "quick", bench.folder / "cache")
    known = json.loads(KNOWN.read_text("utf-8")) if KNOWN.is_file() else {}
    kind = bench.isa or kind_of_processor()
    sides, found, missed = {name: Side(bench, name) for name in SIDES}, {}, []
    try:
        for job, count in JOBS.items():
            best = dict.fromkeys(SIDES, float("inf"))
            for _ in range(count):
                for name, side in sides.items():
                    best[name] = min(best[name], side.seconds(job))
            found[job] = round(best["keras"] / min(best[name] for name in SIDES[1:]), 3)
            before = known.get(kind, {}).get(job)
            line = f"{job:14} {found[job]:.2f}  (best: {1000 * best['keras']:.0f} ms)"
            print(line if before is None else f"{line}, was {before:.2f}", flush=True)
            if before is not None and found[job] > WORSE * before:
                missed.append(f"{job}: ratio {found[job]:.2f}, was {before:.2f}")
    finally:
        for side in sides.values():
            side.close()
    if write:
        KNOWN.write_text(json.dumps({**known, kind: found}, indent=2) + "\n", "utf-8")
    elif kind not in known:
        print(f"--quick: no ratios of {kind} to compare with; --write keeps these")
    elif missed:
        print(f"--quick: more than {WORSE - 1:.0%} worse: {'; '.join(missed)}")
        return 1
    return 0
