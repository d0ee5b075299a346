"""Make tests/golden/lora: LoRA files of diffusers and PEFT, and the weights that diffusers makes.

    HF_HUB_OFFLINE=1 python tests/golden/make_lora_golden.py

Needs the `reference` extra (torch, diffusers, transformers, peft). `NAME.safetensors` is what
diffusers wrote, and `NAME.fused.safetensors` how it changed the weights of the UNet when it fused
the file, by their names. The base is `tiny_model()` of `tests/support`.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.numpy import save_file

sys.path[:0] = [str(Path(__file__).parents[1] / "support"), str(Path(__file__).parents[1])]

from tiny import tiny_model  # noqa: E402

from latentddpm import interop  # noqa: E402

OUT = Path(__file__).with_name("lora")
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
MIDDLE = r"mid_block\..*\.(to_q|to_k|to_v|to_out\.0)"
MORE = ["proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "time_emb_proj"]
CONVOLUTIONS = ["conv1", "conv_shortcut"]
CASES = {
    "rank-stabilised": {"r": 4, "lora_alpha": 8, "use_rslora": True},
    "alpha-pattern": {
        "r": 2,
        "lora_alpha": 4,
        "alpha_pattern": {"mid_block.*to_q": 16, "to_v": 1},
    },
    "rank-pattern": {"r": 4, "lora_alpha": 2, "rank_pattern": {"attn1.to_k": 1, "to_v": 8}},
    "no-header": {"r": 3, "lora_alpha": 12, "rank_pattern": {"to_k": 2}, "header": False},
}

"""Golden files: arguments of PEFT's `LoraConfig`; without `header` α is not in the file."""


def random_case(seed):
    """Arguments of `LoraConfig`, drawn; as `CASES`."""
    numbers = np.random.default_rng(seed)

    def some(names):
        count = numbers.integers(1, len(names) + 1)
        return [str(name) for name in numbers.choice(names, count, replace=False)]

    header = bool(numbers.integers(3))
    targets = some(ATTENTION + MORE + CONVOLUTIONS)
    case = {
        "r": int(numbers.integers(1, 9)),
        "lora_alpha": float(numbers.choice([0.5, 1, 4, 16])),
        "use_rslora": bool(numbers.integers(2)),
        "target_modules": targets,
        "header": header,
    }
    for pattern, values in (("rank_pattern", (1, 2, 5)), ("alpha_pattern", (1, 3, 32))):
        # Without a header, diffusers does not read all files of several ranks.
        if header and numbers.integers(2):
            # The header sorts patterns, and the first that matches counts: of ranks that
            # overlap diffusers itself reads others than it wrote.
            more = ["mid_block.*to_q", "attn2.to_v"] if pattern == "alpha_pattern" else []
            names = some([*targets, *more])
            case[pattern] = {name: int(numbers.choice(values)) for name in names}
    return case


def write(base, folder, case, seed=0):
    """A LoRA of a pipeline's UNet with random numbers, as diffusers writes it; its file."""
    case = {"target_modules": MIDDLE, **case}
    header = case.pop("header", True)
    unet = StableDiffusionPipeline.from_pretrained(base).unet
    unet.add_adapter(LoraConfig(**case))
    torch.manual_seed(seed)
    layers = get_peft_model_state_dict(unet, adapter_name="default")
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers={key: 0.1 * torch.randn(value.shape) for key, value in layers.items()},
        unet_lora_adapter_metadata=unet.peft_config["default"].to_dict() if header else None,
    )
    return Path(folder) / "pytorch_lora_weights.safetensors"


def fused(base, file=None):
    """Weights of a pipeline's UNet after diffusers fused a LoRA file, by their names."""
    pipeline = StableDiffusionPipeline.from_pretrained(base)
    if file is not None:
        pipeline.load_lora_weights(str(file.parent), weight_name=file.name)
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return {key: value.detach().numpy() for key, value in pipeline.unet.state_dict().items()}


def main():
    OUT.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        interop.save_diffusers(tiny_model(), folder / "base")
        before = fused(folder / "base")
        for name, case in CASES.items():
            file = write(folder / "base", folder / name, case)
            after = fused(folder / "base", file)
            changes = {
                key: after[key] - value
                for key, value in before.items()
                if (after[key] != value).any()
            }
            (OUT / f"{name}.safetensors").write_bytes(file.read_bytes())
            save_file(changes, OUT / f"{name}.fused.safetensors")


if __name__ == "__main__":
    main()
