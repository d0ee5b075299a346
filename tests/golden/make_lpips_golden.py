"""The heads of LPIPS as safetensors, and what the `lpips` package answers, frozen.

pip install --no-deps lpips==0.1.4              (beside the `reference` extra)
python tests/golden/make_lpips_golden.py

latentddpm/interop/lpips_heads/vgg.safetensors   head_0 … head_4, from the package's vgg.pth
tests/golden/lpips.json                     distances on a random VGG16, per block and summed

Nothing of ImageNet is in either; the random weights are drawn again by the test
(`tests/support/vgg.py`). Of torchvision the package takes only the list of VGG16's layers; where
torchvision does not fit the installed torch, that list is written here.
"""

import json
import sys
import types
from pathlib import Path

import torch
from safetensors.numpy import save_file

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from vgg import PLACES, SIZES, WIDTHS, random_pairs, random_vgg16  # noqa: E402

HEADS = ROOT / "latentddpm" / "interop" / "lpips_heads" / "vgg.safetensors"
GOLDEN = ROOT / "tests" / "golden" / "lpips.json"


def vgg16(pretrained):
    """torchvision's `vgg16`, untrained, as far as `lpips` looks at it."""
    layers, width = [], 3
    for place, out in zip(PLACES, WIDTHS, strict=True):
        if len(layers) < place:
            layers.append(torch.nn.MaxPool2d(2, 2))
        layers += [torch.nn.Conv2d(width, out, 3, padding=1), torch.nn.ReLU(inplace=True)]
        width = out
    return types.SimpleNamespace(features=torch.nn.Sequential(*layers))


def main():
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        models = types.ModuleType("torchvision.models")
        models.vgg16 = vgg16
        parent = types.ModuleType("torchvision")
        parent.models = models
        sys.modules.update({"torchvision": parent, "torchvision.models": models})
    import lpips

    model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    heads = {f"head_{i}": model.lins[i].model[1].weight[0, :, 0, 0] for i in range(5)}
    HEADS.parent.mkdir(exist_ok=True)
    save_file({key: head.detach().numpy().copy() for key, head in heads.items()}, HEADS)

    convolutions = [m for m in model.net.modules() if isinstance(m, torch.nn.Conv2d)]
    weights = random_vgg16()
    with torch.no_grad():
        for layer, place in zip(convolutions, PLACES, strict=True):
            layer.weight.copy_(torch.from_numpy(weights[f"features.{place}.weight"]))
            layer.bias.copy_(torch.from_numpy(weights[f"features.{place}.bias"]))
        answers = []
        for size in SIZES:
            pair = [torch.from_numpy(part.transpose(0, 3, 1, 2)) for part in random_pairs(size)]
            total, blocks = model(*pair, retPerLayer=True)
            flat = [block.flatten().tolist() for block in blocks]
            answers.append({"size": size, "distance": total.flatten().tolist(), "blocks": flat})
    GOLDEN.write_text(json.dumps(answers, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
