"""Large pictures: a pass of Stable Diffusion's UNet or autoencoder, here and in diffusers.

    pip install ".[reference]"
    python benchmarks/large.py [unet] [--side 1024] [--batch 1] [--sides keras torch]
    python benchmarks/large.py decode --side 1024

The networks have full size (UNet 860 M, decoder 49 M parameters) and random weights, float32. At
1024×1024 the first level of the UNet has 16,384 positions. Each side is a process of its own: it
makes the network, makes one pass, or two with `--passes 2`, and reports seconds of the pass by the
clock and of the CPU, and the peak of resident memory before and after, in GiB. The weights of the
UNet alone are 3.2. The outputs are not compared, since the weights differ: `vs_diffusers.py` does.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

FACTOR, WORDS, WIDTH = 8, 77, 768
FULL = (320, 640, 1280, 1280)


def keras_pass(job: str) -> Callable[[dict[str, np.ndarray]], Any]:
    """Network of ours, as `generate` runs it; weights that need not be drawn are constant."""
    from latentddpm.utils.startup import import_keras

    import_keras()
    from latentddpm.models.autoencoder.encoder_decoder import Decoder
    from latentddpm.models.denoisers.unet import UNet
    from latentddpm.models.inference import compiled
    from latentddpm.models.layers import blank_weights

    if job == "decode":
        network = Decoder()
        return lambda inputs: np.asarray(network(inputs["noisy_latents"]))
    with blank_weights():
        network = UNet(
            320, (1, 2, 4, 4), attention_levels=(0, 1, 2), num_heads=8, context_dim=WIDTH
        )
    for number, weight in enumerate(network.weights):
        if weight.name == "kernel":  # zeros are a page that the system shares, not memory
            weight.assign(np.full(weight.shape, 1e-3 * (1 + number % 3), "float32"))
    run = compiled(network)
    return lambda inputs: np.asarray(run(inputs))


def torch_pass(job: str) -> Callable[[dict[str, np.ndarray]], Any]:
    """Network of diffusers, with its own attention."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    torch.set_grad_enabled(False)

    def tensor(array: np.ndarray) -> Any:
        array = torch.from_numpy(array)
        return array.permute(0, 3, 1, 2).contiguous() if array.ndim == 4 else array

    if job == "decode":
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
        return lambda inputs: vae.decode(tensor(inputs["noisy_latents"])).sample.numpy()
    unet = UNet2DConditionModel(
        block_out_channels=FULL, cross_attention_dim=WIDTH, attention_head_dim=8
    ).eval()

    def run(inputs: dict[str, np.ndarray]) -> Any:
        noisy, timesteps, context = map(tensor, inputs.values())
        return unet(noisy, timesteps.long(), encoder_hidden_states=context).sample.numpy()

    return run


def cell(options: argparse.Namespace) -> dict[str, float]:
    """Seconds and peak memory of this process."""
    numbers = np.random.default_rng(0)
    side = options.side // FACTOR
    inputs = {
        "noisy_latents": numbers.standard_normal((options.batch, side, side, 4)),
        "timesteps": np.full(options.batch, 500),
        "context": numbers.standard_normal((options.batch, WORDS, WIDTH)),
    }
    inputs = {
        name: array.astype("int32" if name == "timesteps" else "float32")
        for name, array in inputs.items()
    }
    run = {"keras": keras_pass, "torch": torch_pass}[options.cell](options.job)
    before = peak()
    for _ in range(options.passes):
        wall, cpu = time.perf_counter(), time.process_time()
        output = run(inputs)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    assert np.isfinite(output).all(), "the output is not finite"
    return {
        "seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "gib_before": round(before, 2),
        "gib_peak": round(peak(), 2),
    }


def peak() -> float:
    """Resident memory at its most, GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", nargs="?", choices=("unet", "decode"), default="unet")
    parser.add_argument("--side", type=int, default=1024, help="of the square image, in pixels")
    parser.add_argument("--batch", type=int, default=1, help="2 with guidance")
    parser.add_argument("--passes", type=int, default=1, help="the last one is timed")
    parser.add_argument("--sides", nargs="+", choices=("keras", "torch"), default=["keras"])
    parser.add_argument("--cell", choices=("keras", "torch"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        print(json.dumps(cell(options)))
        return
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TF_CPP_MIN_LOG_LEVEL": "3"}
    for side in options.sides:
        answer = subprocess.run(
            [sys.executable, __file__, *sys.argv[1:], "--cell", side],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if answer.returncode:
            sys.exit(f"{side}: failed, exit code {answer.returncode}")
        print(f"{options.job} {options.side} {side}: {answer.stdout.splitlines()[-1]}", flush=True)


if __name__ == "__main__":
    main()
