"""Cold `latentddpm generate`: one image in a new process, imports included.

    python benchmarks/generate.py [--model emoji-128] [--repeats 5]

Prints JSON: wall seconds of each run, their median, and the stretches `--timing` names.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def one_run(model: str, out: Path) -> tuple[float, dict[str, float]]:
    command = [sys.executable, "-m", "latentddpm", "generate", "--prompt", "red apple"]
    command += ["--seed", "0", "--model", model, "--out", str(out), "--timing", "--quiet"]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - start
    parts = re.findall(r"^\s*([\d.]+) s  (.+)$", done.stderr, re.MULTILINE)
    return seconds, {name: float(value) for value, name in parts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="emoji-128")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = [one_run(options.model, Path(folder, "a.png")) for _ in range(options.repeats)]
    walls = [seconds for seconds, _ in runs]
    stretches = {name: statistics.median(parts[name] for _, parts in runs) for name in runs[0][1]}
    print(
        json.dumps(
            {
                "benchmark": "generate, cold, one image",
                "model": options.model,
                "seconds": [round(s, 2) for s in walls],
                "median_seconds": round(statistics.median(walls), 2),
                "median_stretches": stretches,
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
