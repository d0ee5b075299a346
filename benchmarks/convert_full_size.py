"""Converting and loading a UNet of Stable Diffusion 1.x's size: 859,520,964 parameters.

    python benchmarks/convert_full_size.py [--work DIR]

Random weights, float16 in the diffusers folder. Every step runs in a process of its own and
reports its seconds, the seconds its threads were computing, and its peak memory: `anonymous` is
what the process itself holds, `resident` counts the pages of memory-mapped files too, which the
system may take back. The files stand in the page cache (a warm disk). Prints one JSON object;
needs 9 GB of disk below DIR, which is removed again, and about 10 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

PARAMETERS = 859_520_964
CONFIG = {
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
STEPS = ("make", "build", "convert", "load", "export")


def make(work: Path) -> dict[str, float]:
    """The diffusers folder."""
    import numpy as np
    from safetensors.numpy import save_file

    from latentddpm.interop.diffusers.networks import UNET_SIZES
    from latentddpm.interop.diffusers.read_config import unet_arguments
    from latentddpm.interop.diffusers.weight_map import unet_rows

    arguments = unet_arguments(CONFIG, "config.json")
    numbers = np.random.default_rng(0)
    tensors = {
        row.key: (0.02 * numbers.standard_normal(row.shape, np.float32)).astype(np.float16)
        for row in unet_rows(**{key: arguments[key] for key in UNET_SIZES})
    }
    count = sum(array.size for array in tensors.values())
    if count != PARAMETERS:
        raise SystemExit(f"the table has {count:,} parameters, expected {PARAMETERS:,}")
    (work / "theirs").mkdir()
    (work / "theirs" / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors, work / "theirs" / "diffusion_pytorch_model.safetensors")
    return {}


def build(work: Path) -> dict[str, float]:
    """From the diffusers folder into memory, then one step."""
    from latentddpm.interop.diffusers.folder import read_folder
    from latentddpm.interop.diffusers.networks import validate

    start, cpu = time.perf_counter(), time.process_time()
    unet = validate(read_folder(work / "theirs").unet).build(quiet=True)
    loaded = time.perf_counter() - start
    return {
        "load_seconds": loaded,
        "load_cpu_seconds": time.process_time() - cpu,
        **one_step(unet),
    }


def convert(work: Path) -> dict[str, float]:
    """`latentddpm convert --from`: diffusers folder to model folder."""
    from latentddpm.interop.convert import convert_from

    convert_from(work / "theirs", work / "ours")
    return {}


def load(work: Path) -> dict[str, float]:
    """From the model folder into memory, digest of the file checked, then one step."""
    from latentddpm.models.archive import load_archive
    from latentddpm.models.denoisers.unet import UNet
    from latentddpm.pipeline.model_folder import read_model_folder

    start, cpu = time.perf_counter(), time.process_time()
    file = read_model_folder(work / "ours").file("unet")
    checked = time.perf_counter() - start
    unet = load_archive(file, UNet)
    loaded = time.perf_counter() - start
    return {
        "check_seconds": checked,
        "load_seconds": loaded,
        "load_cpu_seconds": time.process_time() - cpu,
        **one_step(unet),
    }


def export(work: Path) -> dict[str, float]:
    """`latentddpm convert --to diffusers`: model folder to diffusers folder, float16."""
    from latentddpm.interop.convert import convert_to

    convert_to("diffusers", work / "ours", work / "again", storage="float16")
    name = "diffusion_pytorch_model.safetensors"
    from latentddpm.interop.tensors import TensorFiles

    before = TensorFiles([work / "theirs" / name])
    after = TensorFiles([work / "again" / "unet" / name])
    if set(before.keys()) != set(after.keys()):
        raise SystemExit("other keys after the round trip")
    for key in before.keys():  # noqa: SIM118 (it is no mapping)
        if before.read(key).tobytes() != after.read(key).tobytes():
            raise SystemExit(f"{key} changed in the round trip")
    return {"bit_exact": True}


def one_step(unet) -> dict[str, float]:
    """One prediction for latents of a 512×512 image, guidance included (a batch of two)."""
    import numpy as np

    numbers = np.random.default_rng(0)
    inputs = {
        "noisy_latents": numbers.standard_normal((2, 64, 64, 4), np.float32),
        "timesteps": np.full(2, 500, "int32"),
        "context": numbers.standard_normal((2, 77, 768), np.float32),
    }
    start = time.perf_counter()
    prediction = unet.predict_on_batch(inputs)
    if not np.isfinite(prediction).all():
        raise SystemExit("a prediction is not finite")
    return {"first_step_seconds": time.perf_counter() - start}


def anonymous_gigabytes() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1e6
    return float("nan")


def run_step(name: str, work: Path) -> None:
    """One step in this process; prints its numbers as JSON."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from latentddpm.utils.startup import import_keras

    import_keras()
    peak, done = [anonymous_gigabytes()], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], anonymous_gigabytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start, cpu_start = time.perf_counter(), time.process_time()
    try:
        numbers = globals()[name](work)
    finally:
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        done.set()
        watcher.join()
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        json.dumps(
            {
                "seconds": seconds,
                "cpu_seconds": cpu_seconds,
                **numbers,
                "peak_anonymous_gb": peak[0],
                "peak_resident_gb": resident,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=None, help="folder for the files")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        run_step(arguments.step, arguments.work)
        return
    results = {
        "parameters": PARAMETERS,
        "float32_gb": 4 * PARAMETERS / 1e9,
        "cores": os.cpu_count(),
        "load_average_before": os.getloadavg()[0],
    }
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        for step in STEPS:
            command = [sys.executable, __file__, "--step", step, "--work", work]
            answer = subprocess.run(command, capture_output=True, text=True, check=False)
            if answer.returncode:
                raise SystemExit(f"{step} failed:\n{answer.stderr[-2000:]}")
            results[step] = json.loads(answer.stdout.splitlines()[-1])
            print(f"{step}: {results[step]}", file=sys.stderr)
    results["load_average_after"] = os.getloadavg()[0]
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
