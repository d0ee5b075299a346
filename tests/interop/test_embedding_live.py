"""Side by side with diffusers: textual inversions in its pipeline and here; `reference`."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import tiny_model

from latentddpm import interop
from latentddpm.interop.embedding import save_embedding

for package in ("torch", "diffusers", "transformers"):
    pytest.importorskip(package)

pytestmark = [
    pytest.mark.reference,
    # torch's and transformers' own business.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|diffusers|transformers)"),
]

VECTORS = np.random.default_rng(0).normal(size=(3, 16)).astype("float32")
PROMPTS = ["a photo of <cat-toy> here", "<cat-toy>", "a red apple"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A folder with a model of ours, and the folder of the model for diffusers."""
    folder, model = tmp_path_factory.mktemp("base"), tiny_model()
    model.save(folder / "ours")
    interop.save_diffusers(model, folder / "theirs")
    return folder


@pytest.mark.parametrize("layout", ["ours", "emb_params"])
@pytest.mark.parametrize("count", [1, 3])
def test_text_states_are_those_of_diffusers(pair, tmp_path, layout, count):
    import torch
    from diffusers import StableDiffusionPipeline

    from latentddpm.pipeline.latent_diffusion import LatentDiffusion

    file = tmp_path / "file.safetensors"
    if layout == "ours":
        save_embedding(file, "<cat-toy>", VECTORS[:count], {})
    else:
        save_file({"emb_params": VECTORS[:count]}, file)
    given = {} if layout == "ours" else {"token": "<cat-toy>"}
    pipe = StableDiffusionPipeline.from_pretrained(pair / "theirs", safety_checker=None)
    pipe.load_textual_inversion(file, **given)
    model = LatentDiffusion.load(pair / "ours")
    interop.load_embedding(model, file, given.get("token", ""))
    for prompt in PROMPTS:
        with torch.no_grad():
            expected, _ = pipe.encode_prompt(prompt, "cpu", 1, False)
        ids = model.tokenizer([prompt])
        found = np.asarray(model.text_encoder({"token_ids": ids}))
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-5, err_msg=prompt)
