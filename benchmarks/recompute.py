"""What `unet.recompute` saves in memory and costs in time.

    python benchmarks/recompute.py [--channels 128] [--size 32] [--batch 8] [--steps 5]

Training steps of a UNet of the default sizes (attention at levels 1, 2, 3; no text), with and
without, every cell a process of its own, taking turns. Prints JSON: parameters; the median of the
steps behind the first, in seconds by the clock and of the CPU; the highest resident memory, and
that before the first step, in MiB; the mean loss, which is the same.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def cell(options: argparse.Namespace, recompute: bool) -> dict[str, float]:
    """Seconds a step and peak memory of this process."""
    import keras
    import numpy as np

    from latentddpm.diffusion.schedule import NoiseSchedule
    from latentddpm.models.denoisers.unet import UNet
    from latentddpm.training.step.denoising_trainer import DenoisingTrainer
    from latentddpm.training.step.optimizer import FlatAdamW

    keras.utils.set_random_seed(0)
    unet = UNet(options.channels, (1, 2, 3, 4), 2, (1, 2, 3), recompute=recompute)
    trainer = DenoisingTrainer(unet, NoiseSchedule())
    trainer.compile(FlatAdamW(1e-4, global_clipnorm=1.0))
    trainer.optimizer.build(trainer.trainable_variables)
    numbers = np.random.default_rng(0)
    shape = (options.batch, options.size, options.size, 4)
    noisy_latents, target = numbers.standard_normal((2, *shape)).astype("float32")
    inputs = {
        "noisy_latents": noisy_latents,
        "timesteps": numbers.integers(0, 1000, options.batch).astype("int32"),
    }
    before, seconds, cpu_seconds = peak(), [], []
    for _ in range(options.steps + 1):
        start, cpu_start = time.perf_counter(), time.process_time()
        loss = float(trainer.train_on_batch(inputs, target, return_dict=True)["loss"])
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
    return {
        "parameters": unet.count_params(),
        "seconds": statistics.median(seconds[1:]),
        "cpu_seconds": statistics.median(cpu_seconds[1:]),
        "peak_mib": peak(),
        "before_mib": before,
        "loss": loss,
    }


def peak() -> int:
    """The highest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("channels", 128), ("size", 32), ("batch", 8), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cell", choices=("plain", "recompute"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options, options.cell == "recompute")))
        return
    found = {"plain": [], "recompute": []}
    for _ in range(options.rounds):
        for name, cells in found.items():
            command = [sys.executable, *sys.argv, "--cell", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            cells.append(json.loads(done.stdout.splitlines()[-1]))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
