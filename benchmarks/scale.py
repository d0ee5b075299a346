"""What the input side of training costs as the number of images grows.

    python benchmarks/scale.py [--images 10000 40000 160000] [--scratch DIR]

Captioned 64×64 JPEGs in tars of 10,000 go through the commands' own functions, each phase in a
process of its own: scan, tokenize, encode (a tiny autoencoder at 8×8: the encoder is not what
is measured), start (everything is there already), train (batches of 64 of both trainers' input,
no network). Prints JSON: for each number of images and phase the seconds, the memory a phase
needs beyond what its process had when it began (`anonymous`: what counts against a limit;
`files`: pages of mapped files, which the system takes back at need), and the bytes on disk.
"""

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from PIL import Image

SHARD = 10_000
BATCHES, BATCH = 300, 64
PHASES = ("scan", "tokenize", "encode", "start", "train")


def make_shards(folder: Path, count: int) -> None:
    """`count` different JPEGs with captions; existing shards are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    pictures = []
    for _ in range(64):
        stream = io.BytesIO()
        pixels = Image.fromarray(numbers.integers(0, 256, (8, 8, 3), np.uint8)).resize((64, 64))
        pixels.save(stream, "JPEG", quality=80)
        pictures.append(stream.getvalue())
    for start in range(0, count, SHARD):
        path = folder / f"shard-{start // SHARD:06d}.tar"
        if path.exists():
            continue
        with tarfile.open(path, "w") as shard:
            for i in range(start, min(start + SHARD, count)):
                caption = (
                    f"picture {i % 997} of a {['red', 'green', 'blue'][i % 3]} thing on a table"
                )
                # Bytes behind the end of a JPEG are passed over: all files differ.
                data = {"jpg": pictures[i % 64] + i.to_bytes(8, "big"), "txt": caption.encode()}
                for suffix, content in data.items():
                    info = tarfile.TarInfo(f"{i:09d}.{suffix}")
                    info.size = len(content)
                    shard.addfile(info, io.BytesIO(content))
                shard.members.clear()
        os.utime(path, (1e9, 1e9))


def memory() -> dict[str, int]:
    """Bytes of this process: anonymous, and of mapped files."""
    lines = dict(
        line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if line
    )
    return {
        name: int(lines[key].split()[0]) * 1024
        for name, key in (("anonymous", "RssAnon"), ("files", "RssFile"))
    }


class Watch:
    """The highest memory between `with` and its end, above that at its beginning."""

    def __enter__(self) -> "Watch":
        self.first = memory()
        self.peak = dict(self.first)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        self.start = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self.start
        self._end.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._end.wait(0.02):
            now = memory()
            self.peak = {name: max(self.peak[name], now[name]) for name in now}

    def report(self) -> dict[str, float]:
        growth = {name: self.peak[name] - self.first[name] for name in self.peak}
        return {"seconds": round(self.seconds, 3), **growth}


def run_phase(phase: str, data: Path, here: Path) -> dict[str, float]:
    """One phase, in this process."""
    import keras
    import tensorflow as tf

    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.config import DataConfig
    from latentddpm.data import examples
    from latentddpm.data.captions import Captions, prepare_tokens
    from latentddpm.data.catalog.scan import open_catalog
    from latentddpm.data.catalog.split import split_catalog
    from latentddpm.data.latents.cache import prepare_latents
    from latentddpm.data.random import RandomStream
    from latentddpm.diffusion.schedule import NoiseSchedule
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.autoencoder.latent_space import LatentSpace

    tokenizer = CLIPTokenizer(24)
    keras.utils.set_random_seed(0)
    sizes = {"channels": 4, "channel_multipliers": (1, 1), "num_res_blocks": 1, "norm_groups": 2}
    model = Autoencoder(**sizes)
    model.encode_on_batch(np.zeros((256, 8, 8, 3), np.float32))  # traced before the watch begins
    tf.zeros(()).numpy()

    def latents(catalog):
        return prepare_latents(
            catalog,
            here / "latents",
            vae_digest="benchmark",
            load_autoencoder=lambda: model,
            resolution=8,
            batch_size=256,
            quiet=True,
        )

    with Watch() as watch:
        catalog = open_catalog(data, here / "catalog", quiet=True)
        if phase != "scan":
            training, _ = split_catalog(catalog, DataConfig())
            tokens = prepare_tokens(Captions(catalog), tokenizer, quiet=True)
        if phase in ("encode", "start", "train"):
            cache = latents(catalog)
        if phase == "train":
            settings = {
                "batch_size": BATCH,
                "stream": RandomStream(0, "benchmark"),
                "positions": tf.data.Dataset.range(1 << 40),
            }
            streams = {
                "latents": examples.diffusion_examples(
                    cache, training, NoiseSchedule(), LatentSpace(1.0), tokens=tokens, **settings
                ),
                "images": examples.image_examples(
                    catalog, training, resolution=64, latent_shape=(8, 8, 4), **settings
                ),
            }
            rates = {}
            for name, stream in streams.items():
                batches = iter(stream)
                next(batches)
                start = time.perf_counter()
                for _ in itertools.islice(batches, BATCHES):
                    pass
                rates[name] = BATCHES * BATCH / (time.perf_counter() - start)
    report = watch.report()
    if phase == "train":
        report |= {f"{name}_per_second": round(rate) for name, rate in rates.items()}
    return report


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 40_000, 160_000])
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--phase", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.phase:
        phase, data, here = options.phase
        print(json.dumps(run_phase(phase, Path(data), Path(here))))
        return
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        report = {}
        for count in options.images:
            data, here = Path(scratch, f"data-{count}"), Path(scratch, f"run-{count}")
            make_shards(data, count)
            found = report[str(count)] = {}
            for phase in PHASES:
                command = [sys.executable, __file__, "--phase", phase, str(data), str(here)]
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    sys.exit(f"{phase} of {count} images failed:\n{done.stderr}")
                found[phase] = json.loads(done.stdout.splitlines()[-1])
                print(f"{count} {phase}: {found[phase]}", file=sys.stderr)
            catalog = size_of(here / "catalog")
            tokens = sum(map(size_of, (here / "catalog").glob("version-*/tokens-*")))
            found["disk"] = {
                "shards": size_of(data),
                "catalog": catalog - tokens,
                "tokens": tokens,
                "latents": size_of(here / "latents"),
            }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
