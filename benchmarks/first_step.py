"""From the command to the first training step, and the rate after it.

    python benchmarks/first_step.py --data DIR --vae runs/emoji-64-vae [--repeats 3]

Runs `latentddpm train-diffusion` with an 18 M parameter UNet on a warm latents cache and
watches its log. Prints JSON: seconds until the first step is logged, examples a second of
the later ones.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STEPS = 12
SETTINGS = {
    "data.resolution": "64",
    "unet.channels": "112",
    "unet.channel_multipliers": "[1, 2]",
    "unet.num_res_blocks": "2",
    "unet.attention_levels": "[0, 1]",
    "unet.num_heads": "4",
    "unet.norm_groups": "16",
    "text.source": "scratch",
    "text.context_length": "16",
    "text.hidden_dim": "128",
    "text.num_layers": "2",
    "training.batch_size": "16",
    "training.num_steps": str(STEPS),
    "training.log_every": "1",
    "training.validate_every": "1000000",
    "training.checkpoint_every": "1000000",
}


def one_run(data: str, vae: str, latents: Path, out: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "latentddpm", "train-diffusion", "--data", data]
    command += ["--vae", vae, "--latents", str(latents), "--out", str(out), "--quiet"]
    for key, value in SETTINGS.items():
        command += ["--set", f"{key}={value}"]
    log = out / "log.jsonl"
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (log.is_file() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    first = time.perf_counter() - start
    while process.poll() is None and len(log.read_text("utf-8").splitlines()) < STEPS:
        time.sleep(0.2)
    process.terminate()
    process.wait()
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    rates = [line["examples_per_second"] for line in lines[2:] if "loss" in line]
    return first, statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True)
    parser.add_argument("--vae", required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        latents = Path(folder, "latents")
        command = [sys.executable, "-m", "latentddpm", "encode", "--data", options.data]
        command += ["--vae", options.vae, "--out", str(latents), "--quiet"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        runs = [
            one_run(options.data, options.vae, latents, Path(folder, f"run-{i}"))
            for i in range(options.repeats)
        ]
    print(
        json.dumps(
            {
                "benchmark": "train-diffusion, warm cache, to the first step",
                "seconds_to_first_step": [round(first, 1) for first, _ in runs],
                "median_seconds": round(statistics.median(first for first, _ in runs), 1),
                "examples_per_second": [round(rate, 1) for _, rate in runs],
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
