"""What diffusers makes of a single-file checkpoint, frozen for tests that run without it.

python tests/golden/make_single_file_golden.py        (needs the `reference` extra)

single_file_names.json            of the full Stable Diffusion 1.x and of the tiny one of
                                  tests/support/compvis.py: diffusers' name and shape of every
                                  tensor → CompVis' name, by diffusers' own conversion
single_file_outputs.safetensors   inputs and outputs of the tiny one, run by diffusers in
                                  float64
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1] / "support"))

import compvis
import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModel

from latentddpm.interop.compvis.names import unet_names, vae_names

GOLDEN = Path(__file__).parent

TINY_UNET = {
    "block_out_channels": [32, 64],
    "layers_per_block": 1,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 64,
    "attention_head_dim": 8,
}
TINY_VAE = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "latent_channels": 4,
}
TINY_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
}
FULL_UNET = {"layers_per_block": 2, "cross_attention_dim": 768, "attention_head_dim": 8}
FULL_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 4,
}


class Marked(str):
    """A tensor's stand-in that remembers its name through a conversion."""

    shape = (1, 1, 1, 1)

    def __getitem__(self, _):
        return self


def converted_names(kind: type, config: dict, sizes: tuple) -> dict:
    """diffusers' name → [CompVis' name, diffusers' shape], by diffusers' own conversion.

    Our names go in. Those that diffusers does not know, or sends to another tensor than the
    network of this configuration has, do not come out again.
    """
    with torch.device("meta"):
        state = kind(**config).state_dict()
    unet = kind is UNet2DConditionModel
    names = (unet_names if unet else vae_names)(state, *sizes)
    prefix = compvis.PREFIXES["unet" if unet else "vae"]
    convert = convert_ldm_unet_checkpoint if unet else convert_ldm_vae_checkpoint
    found = convert({prefix + name: Marked(name) for name in names.values()}, config)
    if found.keys() != state.keys():
        raise SystemExit(f"{kind.__name__}: {found.keys() ^ state.keys()}")
    return {key: [str(found[key]), list(state[key].shape)] for key in state}


def models() -> tuple:
    """The tiny networks of diffusers and transformers with the weights of support/compvis.py."""
    weights = {key: torch.from_numpy(value) for key, value in compvis.tensors().items()}
    unet, vae = UNet2DConditionModel(**TINY_UNET), AutoencoderKL(**TINY_VAE)
    text = CLIPTextModel(CLIPTextConfig(**TINY_TEXT))
    unet.load_state_dict(convert_ldm_unet_checkpoint(dict(weights), TINY_UNET))
    vae.load_state_dict(convert_ldm_vae_checkpoint(dict(weights), TINY_VAE))
    prefix = compvis.PREFIXES["text"]
    text.load_state_dict(
        {key.removeprefix(prefix): v for key, v in weights.items() if key.startswith(prefix)}
    )
    return tuple(model.double().eval() for model in (unet, vae, text))


@torch.no_grad()
def outputs() -> dict[str, np.ndarray]:
    """Inputs and outputs, channels last."""
    numbers = np.random.default_rng(0)
    unet, vae, text = models()
    images = numbers.uniform(-1, 1, (2, 3, 16, 24))
    latents = numbers.normal(size=(2, 4, 4, 6))
    token_ids = np.full((2, 77), 49_407)
    token_ids[:, :5] = [[49_406, 320, 2368, 537, 320], [49_406, 736, 1929, 0, 256]]
    timesteps = np.array([10, 801])
    moments = vae.encode(torch.from_numpy(images)).latent_dist
    context = text(torch.from_numpy(token_ids)).last_hidden_state
    prediction = unet(torch.from_numpy(latents), torch.from_numpy(timesteps), context).sample
    decoded = vae.decode(torch.from_numpy(latents)).sample
    pictures = {
        "images": images,
        "latents": latents,
        "mean": moments.mean.numpy(),
        "logvar": moments.logvar.numpy(),
        "decoded": decoded.numpy(),
        "prediction": prediction.numpy(),
    }
    found = {name: np.moveaxis(array, 1, -1) for name, array in pictures.items()}
    found["context"] = context.numpy()
    arrays = {name: np.ascontiguousarray(a, "float32") for name, a in found.items()}
    ids = {"token_ids": token_ids.astype("int32"), "timesteps": timesteps.astype("int32")}
    return {**arrays, **ids}


def main() -> None:
    names = {
        "unet": converted_names(UNet2DConditionModel, FULL_UNET, (4, 2, (0, 1, 2))),
        "vae": converted_names(AutoencoderKL, FULL_VAE, (4, 2)),
        "tiny_unet": converted_names(UNet2DConditionModel, TINY_UNET, (2, 1, (0,))),
        "tiny_vae": converted_names(AutoencoderKL, TINY_VAE, (3, 1)),
    }
    networks = []
    for network, table in names.items():
        rows = [f"{json.dumps(key)}: {json.dumps(row)}" for key, row in table.items()]
        networks.append(f"{json.dumps(network)}: {{\n" + ",\n".join(rows) + "\n}")
    text = "{\n" + ",\n".join(networks) + "\n}\n"
    (GOLDEN / "single_file_names.json").write_text(text, "utf-8")
    save_file(outputs(), GOLDEN / "single_file_outputs.safetensors")


if __name__ == "__main__":
    main()
