"""The memory of the input side does not grow with the number of images."""

import gc
import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
import tracemalloc
from pathlib import Path

import keras
import nasty
import pytest
import tensorflow as tf

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import DataConfig
from latentddpm.data.captions import Captions, prepare_tokens
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import split_catalog
from latentddpm.data.examples import diffusion_examples, image_examples
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.random import RandomStream
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.latent_space import LatentSpace

ROOT = Path(__file__).parents[2]
COUNTS = (1000, 4000)  # fewer than a thousand do not fill the buffers
# A path or a caption in a Python list takes over a hundred bytes.
BYTES_AN_IMAGE = 40


def make_shards(folder, count, each=1000):
    """`count` pictures, all different, with captions and columns."""
    folder.mkdir()
    for start in range(0, count, each):
        path = folder / f"shard-{start // each:06d}.tar"
        with tarfile.open(path, "w") as shard:
            for i in range(start, min(start + each, count)):
                row = b"\0" + bytes([i % 256, i // 256 % 256, i // 65536])
                columns = {"text": [f"picture {i}", f"number {i}"], "style": f"style {i % 9}"}
                members = {"png": nasty.png(1, 1, 8, 2, row), "json": json.dumps(columns).encode()}
                for suffix, data in members.items():
                    info = tarfile.TarInfo(f"some/longer/name/of/a/picture-{i:09d}.{suffix}")
                    info.size = len(data)
                    shard.addfile(info, io.BytesIO(data))
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture(scope="module")
def autoencoder():
    keras.utils.set_random_seed(0)
    sizes = {"channels": 2, "channel_multipliers": (1, 1), "num_res_blocks": 1, "norm_groups": 1}
    return Autoencoder(**sizes)


TOKENIZER = CLIPTokenizer(16)


def input_side(data, folder, autoencoder):
    """All that both trainers do before and around their networks; then a few batches of each."""
    catalog = open_catalog(data, folder / "catalog", quiet=True)
    training, validation = split_catalog(catalog, DataConfig(validation_fraction=0.2))
    captions = Captions(catalog, ["{text}", "{text}, {style}"])
    tokens = prepare_tokens(captions, TOKENIZER, quiet=True)
    cache = prepare_latents(
        catalog,
        folder / "latents",
        vae_digest="a",
        load_autoencoder=lambda: autoencoder,
        resolution=2,
        batch_size=200,
        quiet=True,
    )
    settings = {
        "batch_size": 8,
        "positions": tf.data.Dataset.range(1 << 40),
        "stream": RandomStream(0, "train"),
    }
    streams = [
        image_examples(catalog, training, resolution=2, latent_shape=(1, 1, 4), **settings),
        diffusion_examples(
            cache, training, NoiseSchedule(), LatentSpace(1.0), tokens=tokens, **settings
        ),
    ]
    for stream in streams:
        assert len(list(itertools.islice(stream, 5))) == 5, "the stream ended"
    assert len(training) + len(validation) == len(catalog), "the test reads everything"
    return len(catalog)


@pytest.mark.slow
def test_python_and_numpy_hold_no_more_for_more_images(tmp_path, autoencoder):
    warm = make_shards(tmp_path / "warm", 50)
    input_side(warm, tmp_path / "first", autoencoder)  # what is loaded and traced once
    peaks = []
    for count in COUNTS:
        data = make_shards(tmp_path / f"data-{count}", count)
        gc.collect()
        tracemalloc.start()
        assert input_side(data, tmp_path / str(count), autoencoder) == count, "lost images"
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    growth = (peaks[1] - peaks[0]) / (COUNTS[1] - COUNTS[0])
    assert growth < BYTES_AN_IMAGE, (
        f"peaks of {peaks} bytes for {COUNTS} images: {growth:.0f} bytes an image, "
        f"expected less than {BYTES_AN_IMAGE}"
    )


@pytest.mark.slow
def test_processes_hold_no_more_for_more_images():
    """Everything a process holds, C++ included, by the benchmark of docs/guides/scale.md."""
    counts = ("5000", "20000", "80000")
    command = [sys.executable, "benchmarks/scale.py", "--images", *counts]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for phase in ("scan", "tokenize", "encode", "start", "train"):
        held = [report[count][phase]["anonymous"] for count in counts]
        growth = (held[-1] - held[1]) / (int(counts[-1]) - int(counts[1]))  # buffers are full
        assert growth < 50, f"{phase}: {held} bytes for {counts} images, {growth:.0f} an image"
