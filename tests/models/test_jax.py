"""The networks know no backend: under JAX they give TensorFlow's numbers and train.

Runs where JAX is installed, in a process of its own (a process has one Keras backend).
`LATENTDDPM_JAX_PYTHON` may name the interpreter of another environment.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from tiny import tiny_model

from latentddpm.models.archive import save_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.unet import UNet

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("LATENTDDPM_JAX_PYTHON", sys.executable)
SIZES = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4}

pytestmark = [
    pytest.mark.slow,  # XLA compiles each network twice
    pytest.mark.skipif(
        sys.executable == PYTHON and importlib.util.find_spec("jax") is None,
        reason="JAX is not installed",
    ),
]

PREAMBLE = """
import sys
import jax, keras, numpy as np
assert keras.backend.backend() == "jax", f"the backend is {keras.backend.backend()}"
from latentddpm.models.archive import load_archive
data = dict(np.load(sys.argv[2]))
"""


def under_jax(folder, script, **arrays):
    """Run `script` under JAX, with `folder/model.keras` and `arrays`; what it says last."""
    np.savez(folder / "data.npz", **arrays)
    environment = os.environ | {"KERAS_BACKEND": "jax", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [PYTHON, "-c", PREAMBLE + script, folder / "model.keras", folder / "data.npz"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f"under JAX: {done.stderr[-3000:]}"
    return done.stdout.split()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def check_loss(losses):
    losses = [float(loss) for loss in losses]
    assert np.isfinite(losses).all(), f"losses {losses} are not all finite"
    assert losses[-1] < 0.9 * losses[0], f"losses {losses} do not fall"


@pytest.mark.parametrize("context_dim", [None, 6])
def test_the_unet_gives_the_same_numbers_and_trains(tmp_path, context_dim):
    keras.utils.set_random_seed(0)
    unet = UNet(
        **SIZES, attention_levels=(1,), num_heads=2, context_dim=context_dim, zero_init=False
    )
    save_archive(unet, tmp_path / "model.keras")
    inputs = {"noisy_latents": normal(3, 4, 6, 4), "timesteps": np.array([0, 400, 999], "int32")}
    if context_dim:
        inputs["context"] = normal(3, 5, context_dim, seed=1)
    script = """
from latentddpm import DenoisingTrainer, NoiseSchedule, UNet
unet = load_archive(sys.argv[1], UNet)
expected, target = data.pop("expected"), data.pop("target")
error = np.abs(jax.jit(unet)(data) - expected).max()
trainer = DenoisingTrainer(unet, NoiseSchedule())
trainer.compile(keras.optimizers.Adam(1e-2))
losses = [trainer.fit(data, target, verbose=0).history["loss"][0] for _ in range(8)]
print(error, *losses)
"""
    error, *losses = under_jax(
        tmp_path,
        script,
        **inputs,
        expected=unet(inputs).numpy(),
        target=normal(3, 4, 6, 4, seed=2),
    )
    assert float(error) < 1e-5, f"JAX and TensorFlow differ by {error}"
    check_loss(losses)


def test_the_autoencoder_gives_the_same_numbers_and_trains(tmp_path):
    keras.utils.set_random_seed(0)
    autoencoder = Autoencoder(**SIZES, scaling_factor=0.7)
    save_archive(autoencoder, tmp_path / "model.keras")
    images = np.tanh(normal(2, 8, 12, 3))
    mean, logvar = autoencoder.encode(images)
    noise = normal(*mean.shape, seed=1)
    latents = autoencoder.to_latents(mean, logvar, noise)
    script = """
from latentddpm import Autoencoder, AutoencoderTrainer
model = load_archive(sys.argv[1], Autoencoder)
mean, logvar = jax.jit(model.encode)(data["images"])
latents = model.to_latents(mean, logvar, data["noise"])
decoded = jax.jit(model.decode)(data["latents"])
found = {"mean": mean, "logvar": logvar, "latents": latents, "decoded": decoded}
error = max(np.abs(np.asarray(array) - data[name]).max() for name, array in found.items())
trainer = AutoencoderTrainer(model, "l2")
trainer.compile(keras.optimizers.Adam(3e-3))
inputs = {"images": data["images"], "noise": data["noise"]}
losses = [trainer.fit(inputs, verbose=0).history["loss"][0] for _ in range(8)]
print(error, *losses)
"""
    error, *losses = under_jax(
        tmp_path,
        script,
        images=images,
        noise=noise,
        mean=mean,
        logvar=logvar,
        latents=latents,
        decoded=autoencoder.decode(latents),
    )
    assert float(error) < 1e-5, f"JAX and TensorFlow differ by {error}"
    check_loss(losses)


def test_images_are_those_of_tensorflow(tmp_path):
    """From a model folder, where TensorFlow need not be installed."""
    model = tiny_model()
    model.save(tmp_path / "model")
    settings = {"num_images": 2, "seed": 0, "num_steps": 2}
    script = f"""
from pathlib import Path
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
model = LatentDiffusion.load(Path(sys.argv[1]).with_suffix(""))
images = model.generate("apple", **{settings})
print(images.shape == data["images"].shape, np.abs(images.astype(int) - data["images"]).max())
"""
    same_shape, levels = under_jax(tmp_path, script, images=model.generate("apple", **settings))
    assert same_shape == "True", "JAX gives images of another shape"
    assert int(levels) <= 1, f"images of JAX and TensorFlow are {levels} of 255 apart"
