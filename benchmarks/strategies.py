"""One training by each command under `--strategy mirrored`, and its numbers beside a CPU's.

    python benchmarks/strategies.py                   all GPUs of the machine: a few minutes
    python benchmarks/strategies.py --devices 2       a rehearsal: two logical CPU devices

Small networks on the emoji of `tests/assets`. `train-vae`, then `train-diffusion` on its latents,
then `generate`, each once on the devices and once on one CPU device, from the same seed, in
float32 (TF32 is switched off). Compares the loss of every logged step, the numbers of the
validation, and the pictures that both draw with the model of the CPU. Exit code 1 if a loss is
further apart than `--tolerance`, relative, or a picture more than two levels of 255.

It never ran on a GPU. Both trainings were rehearsed on two logical CPU devices.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

DATA = Path(__file__).parents[1] / "tests" / "assets" / "emoji"
TRAINING = {
    "training.num_steps": 12,
    "training.batch_size": 8,
    "training.learning_rate": 1e-3,
    "training.warmup_steps": 0,
    "training.log_every": 1,
    "training.validate_every": 6,
    "training.checkpoint_every": 100,
    "training.precision": "float32",
    "data.resolution": 32,
    "data.validation_fraction": 0.2,
}
VAE = {
    "autoencoder.channels": 16,
    "autoencoder.channel_multipliers": [1, 2],
    "autoencoder.num_res_blocks": 1,
    "autoencoder.norm_groups": 8,
}
LDM = {
    "unet.channels": 16,
    "unet.channel_multipliers": [1, 2],
    "unet.num_res_blocks": 1,
    "unet.attention_levels": [1],
    "unet.num_heads": 2,
    "unet.norm_groups": 8,
    "text.source": "scratch",
    "text.context_length": 16,
    "text.hidden_dim": 32,
    "text.num_layers": 1,
    "text.num_heads": 2,
    "samples.num_steps": 2,
}
PROMPTS = ("red apple", "cat face")


def settings(values: dict[str, object]) -> list[str]:
    """Options `--set` of a command."""
    return [word for item in values.items() for word in ("--set", "{}={}".format(*item))]


class Machine:
    """Devices that commands run on.

    Args:
        folder: for the runs.
        strategy: of the commands.
        gpu: False hides GPUs.
    """

    def __init__(self, folder: Path, strategy: str, gpu: bool) -> None:
        self.folder, self.strategy, self.seconds = folder, strategy, {}
        own = {} if gpu else {"CUDA_VISIBLE_DEVICES": ""}
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "NVIDIA_TF32_OVERRIDE": "0"}
        self.environment = {**os.environ, "KERAS_BACKEND": "tensorflow", **quiet, **own}

    def call(self, command: str, *words: object) -> None:
        start = time.perf_counter()
        line = [sys.executable, "-m", "latentddpm", command, *map(str, words), "--quiet"]
        done = subprocess.run(
            [*line, "--strategy", self.strategy],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            sys.exit(f"{command} --strategy {self.strategy} failed:\n{done.stderr[-3000:]}")
        self.seconds[command] = round(time.perf_counter() - start, 1)

    def train(self, vae: Path) -> None:
        """Both trainings; the second with the autoencoder of `vae`."""
        data = ("--data", DATA)
        out = self.folder / "vae"
        self.call("train-vae", *data, "--out", out, *settings(TRAINING | VAE))
        out = self.folder / "ldm"
        more = settings(TRAINING | LDM)
        self.call("train-diffusion", *data, "--vae", vae, "--out", out, *more)

    def draw(self, model: Path) -> np.ndarray:
        """Pictures of a model."""
        from PIL import Image

        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        out = self.folder / "drawn"
        self.call(
            "generate", "--model", model, *prompts, "--num-images", 2, "--seed", 0, "--out", out
        )
        files = sorted(out.glob("*.png"))
        return np.stack([np.asarray(Image.open(file)) for file in files]).astype(int)


def numbers(run: Path) -> dict[tuple[int, str], float]:
    """Losses that a run logged, by step and name."""
    lines = (json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines())
    return {
        (line["step"], name): value
        for line in lines
        for name, value in line.items()
        if "loss" in name and isinstance(value, float)
    }


def apart(one: Path, other: Path) -> float:
    """Largest relative difference of two runs' losses."""
    found, expected = numbers(one), numbers(other)
    if not expected or found.keys() != expected.keys():
        sys.exit(
            f"{one} and {other} logged other losses: {sorted(found.keys() ^ expected.keys())}"
        )
    return max(abs(found[key] / expected[key] - 1) for key in expected)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", type=int, help="logical CPU devices instead of GPUs")
    parser.add_argument("--tolerance", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    options = parser.parse_args()
    strategy = f"mirrored:{options.devices}" if options.devices else "mirrored"
    with tempfile.TemporaryDirectory() as folder:
        one = Machine(Path(folder, "one"), "one", gpu=False)
        all_of_them = Machine(Path(folder, "all"), strategy, gpu=not options.devices)
        vae, model = one.folder / "vae", one.folder / "ldm"
        one.train(vae)
        all_of_them.train(vae)
        pictures = all_of_them.draw(model) - one.draw(model)
        found = {
            "strategy": strategy,
            "train-vae": apart(all_of_them.folder / "vae", vae),
            "train-diffusion": apart(all_of_them.folder / "ldm", model),
            "levels": int(np.abs(pictures).max()),
            "seconds": {"one": one.seconds, strategy: all_of_them.seconds},
        }
    print(json.dumps(found, indent=2))
    if options.out:
        options.out.write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    worst = max(found["train-vae"], found["train-diffusion"])
    return int(worst > options.tolerance or found["levels"] > 2)


if __name__ == "__main__":
    sys.exit(main())
