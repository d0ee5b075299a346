"""Archives and a model folder written before networks and trainers were parted still load.

`assets/first_archives` was written at commit 22e4293, with what its networks answered. In a new
process `keras.saving.load_model` finds the classes of every archive after either import.
"""

import subprocess
import sys

import numpy as np
import pytest
from conftest import TESTS, environment
from tiny import step_by_step

from latentddpm.models import Autoencoder, Decoder, Encoder, PatchDiscriminator, UNet
from latentddpm.models.archive import load_archive, save_archive
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

FIRST = TESTS / "assets" / "first_archives"
ANSWERS = np.load(FIRST / "answers.npz")
PARTS = {"encoder": Encoder, "decoder": Decoder, "discriminator": PatchDiscriminator}

LOAD = """
import sys
{imports}
for path in sys.argv[1:]:
    model = keras.saving.load_model(path)
    print(type(model).__name__)
"""


@pytest.mark.parametrize("name", PARTS)
def test_a_part_answers_as_it_did(name):
    network = load_archive(FIRST / f"{name}.keras", PARTS[name])
    np.testing.assert_allclose(
        network(ANSWERS[f"{name}_in"]), ANSWERS[name], atol=1e-5, err_msg=f"the first {name}"
    )


def test_a_network_that_was_saved_with_its_own_step_answers_as_it_did():
    unet = load_archive(FIRST / "compiled_unet.keras", UNet)
    inputs = {"noisy_latents": ANSWERS["z"], "timesteps": np.array([10.0], "float32")}
    np.testing.assert_allclose(unet(inputs), ANSWERS["compiled_unet"], atol=1e-5)
    assert not unet.compiled, "expected a network without a training setup"


@step_by_step()
def test_the_model_folder_draws_what_it_drew(tmp_path):
    model = LatentDiffusion.load(FIRST / "model")
    images = model.generate("red apple", num_images=2, seed=0, num_steps=2)
    apart = np.abs(images.astype(int) - np.load(FIRST / "images.npy")).max()
    assert apart <= 1, f"images {apart} of 255 apart, expected at most a rounding"
    model.save(tmp_path / "again")
    digest = LatentDiffusion.load(tmp_path / "again").digest
    assert digest == model.digest, "the model has another digest after it was saved again"


@pytest.mark.parametrize(
    "imports",
    [
        "import keras, latentddpm",
        pytest.param("import latentddpm, keras", marks=pytest.mark.slow),
        pytest.param("import latentddpm.models, keras", marks=pytest.mark.slow),
    ],
)
def test_keras_loads_every_archive_in_a_new_process(imports, tmp_path):
    save_archive(UNet(4, (1,), 0, (), 2, norm_groups=2), tmp_path / "unet.keras")
    sizes = {"channels": 4, "channel_multipliers": (1,), "num_res_blocks": 1, "norm_groups": 2}
    save_archive(Autoencoder(**sizes), tmp_path / "vae.keras")
    archives = sorted(tmp_path.glob("*.keras"))
    expected = ["UNet", "Autoencoder"]
    if imports == "import keras, latentddpm":  # once is enough for all
        archives = [*sorted(FIRST.rglob("*.keras")), *archives]
        first = "UNet Decoder PatchDiscriminator Encoder TextEncoder UNet Autoencoder"
        expected = [*first.split(), *expected]
    done = subprocess.run(
        [sys.executable, "-c", LOAD.format(imports=imports), *map(str, archives)],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"after `{imports}`: {done.stderr[-2000:]}"
    assert done.stdout.split() == expected, f"after `{imports}`: other classes"
