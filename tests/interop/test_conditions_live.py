"""Conditions side by side with diffusers itself; needs the `reference` extra.

Class embeddings of each kind, and input channels behind the noisy latents, read and written.
"""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import perturb

from latentddpm.conditions.conditions import Conditions
from latentddpm.interop.diffusers.folder import read_folder
from latentddpm.interop.diffusers.networks import rows_of, validate
from latentddpm.interop.diffusers.weights import write
from latentddpm.interop.diffusers.write_config import unet_config
from latentddpm.models.denoisers.unet import UNet

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
reference = importlib.import_module("reference_networks")

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|diffusers|transformers)"),
]
TOLERANCE = 1e-5
SIZES = {
    **reference.SMALL,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "attention_head_dim": 2,
}
TEXT = {
    **SIZES,
    "cross_attention_dim": 6,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
PLAIN = {
    **SIZES,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
PROJECTION = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 5}
CASES = {
    "plain, classes": (PLAIN, {"num_class_embeds": 7}, ["label"]),
    "plain, timestep": (PLAIN, {"class_embed_type": "timestep"}, ["label"]),
    "plain, identity": (PLAIN, {"class_embed_type": "identity"}, ["label"]),
    "plain, super-resolution of LDM": (PLAIN, {"in_channels": 6, "out_channels": 3}, ["picture"]),
    "text, classes": (TEXT, {"num_class_embeds": 7}, ["label"]),
    "text, timestep": (TEXT, {"class_embed_type": "timestep"}, ["label"]),
    "text, projection": (TEXT, PROJECTION, ["label"]),
    "text, identity": (TEXT, {"class_embed_type": "identity"}, ["label"]),
    "text, depth": (TEXT, {"in_channels": 5}, ["picture"]),
    "text, low resolution": (TEXT, {"in_channels": 7}, ["low_resolution"]),
    "text, pictures": (TEXT, {"in_channels": 8}, ["picture"]),
    "text, inpainting": (TEXT, {"in_channels": 9}, ["inpainting"]),
    "text, upscaler": (
        TEXT,
        {"in_channels": 7, "num_class_embeds": 11},
        ["low_resolution", "noise_level"],
    ),
}


def nhwc(tensor):
    return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def answers(theirs, ours):
    """What both answer to the same question: three examples, not square."""
    channels, latents = theirs.config.in_channels, ours.latent_channels
    whole, timesteps = torch.randn(3, channels, 8, 12), torch.tensor([1, 500, 999])
    inputs = {"noisy_latents": nhwc(whole[:, :latents]), "timesteps": timesteps.numpy()}
    more, at = {}, latents
    if ours.context_dim is not None:
        more["encoder_hidden_states"] = torch.randn(3, 7, ours.context_dim)
        inputs["context"] = more["encoder_hidden_states"].numpy()
    for one in ours.conditions:
        name, enters, size = one["name"], one["enters"], one["size"]
        if enters == "concat":
            inputs[name] = nhwc(whole[:, at : at + size])
            at += size
        elif enters == "rows":
            labels = torch.tensor([0, size - 1, 2])
            inputs[name], more["class_labels"] = np.eye(size, dtype="float32")[labels], labels
        else:
            values = torch.randn(3, size) * (50 if enters == "timestep" else 1)
            inputs[name] = values.numpy()
            more["class_labels"] = values[:, 0] if enters == "timestep" else values
    assert at == channels, "some channels are no one's"
    return np.asarray(ours(inputs)), nhwc(theirs(whole, timesteps, **more).sample)


def assert_close(found, expected, tolerance=TOLERANCE):
    assert found.shape == expected.shape
    size = np.abs(expected).max()
    assert 0.2 < size < 100, f"answers of order {size:.2g} say little"
    difference = np.abs(found - expected).max()
    assert difference <= tolerance, f"differs by {difference:.2g} of {size:.2g}"


@pytest.mark.parametrize("case", CASES)
def test_a_unet_with_conditions_there_and_back(case, tmp_path):
    sizes, more, names = CASES[case]
    kind = diffusers.UNet2DModel if sizes is PLAIN else diffusers.UNet2DConditionModel
    theirs = reference.randomize(kind(**{**sizes, "in_channels": 4, "out_channels": 4, **more}))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = validate(read_folder(tmp_path / "theirs").unet).build()
    assert [one["name"] for one in ours.conditions] == names
    assert_close(*answers(theirs, ours))
    again = opened(ours, tmp_path / "ours", kind)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), f"{key} became another"
    assert len(again.state_dict()) == len(theirs.state_dict())


OURS = {
    "class with null": [{"name": "digit", "kind": "class", "words": ["a", "b", "c"]}],
    "labels without null": [
        {"name": "face", "kind": "labels", "words": ["x", "y", "z"], "null": False}
    ],
    "numbers": [{"name": "age", "kind": "number", "mean": [1.0, 2.0], "std": [0.5, 3.0]}],
    "two pictures and a class": [
        {"name": "lines", "kind": "picture", "channels": 3, "through": "pixels"},
        {"name": "digit", "kind": "class", "words": ["a", "b", "c"]},
        {"name": "hole", "kind": "inpainting", "channels": 5},
    ],
}


@pytest.mark.parametrize("case", OURS)
def test_conditions_made_here_answer_in_diffusers_and_come_back(case, tmp_path):
    conditions = Conditions.from_json(OURS[case])
    unet = UNet(
        8,
        channel_multipliers=(1, 2),
        num_res_blocks=1,
        attention_levels=(0,),
        num_heads=2,
        context_dim=6,
        norm_groups=4,
        zero_init=False,
        conditions=conditions.specs(),
    )
    perturb(unet)
    theirs = opened(unet, tmp_path, diffusers.UNet2DConditionModel, conditions)
    assert_close(*answers(theirs, unet))
    again = validate(read_folder(tmp_path).unet).build()
    assert again.conditions == conditions.specs()
    for found, expected in zip(again.get_weights(), unet.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def opened(unet, folder, kind, conditions=None):
    """The network as diffusers opens what is written of it."""
    folder.mkdir(exist_ok=True)
    config = unet_config(unet, (8, 12), conditions)
    (folder / "config.json").write_text(json.dumps(config))
    file = folder / "diffusion_pytorch_model.safetensors"
    write(unet, rows_of(unet), file, "unet", "float32", quiet=True)
    return kind.from_pretrained(folder)
