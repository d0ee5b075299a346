"""Side by side with diffusers: LoRA files with drawn ranks, alphas and patterns; `reference`."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny import tiny_model

from latentddpm import interop
from latentddpm.interop.lora_merge import merge_lora

for package in ("torch", "diffusers", "transformers", "peft"):
    pytest.importorskip(package)
sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
golden = importlib.import_module("make_lora_golden")

pytestmark = [
    pytest.mark.reference,
    # torch's and transformers' own business.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|diffusers|transformers|peft)"),
    pytest.mark.filterwarnings("ignore:.*did not match any targeted module:RuntimeWarning"),
]


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def base(model, tmp_path_factory):
    """The folder of the model for diffusers."""
    folder = tmp_path_factory.mktemp("base") / "base"
    interop.save_diffusers(model, folder)
    return folder


@pytest.mark.parametrize("seed", range(20))
def test_merged_weights_are_those_that_diffusers_fuses(model, base, tmp_path, seed):
    case = golden.random_case(seed)
    file = golden.write(base, tmp_path / "lora", case, seed)
    expected = golden.fused(base, file)
    before = model.unet.get_weights()
    merge_lora(model, file)
    interop.save_diffusers(model, tmp_path / "ours")
    model.unet.set_weights(before)
    found = load_file(tmp_path / "ours" / "unet" / "diffusion_pytorch_model.safetensors")
    plain = load_file(base / "unet" / "diffusion_pytorch_model.safetensors")
    moved = max(np.abs(expected[key] - array).max() for key, array in plain.items())
    assert moved > 1e-3, f"{case}: changes nothing"
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, atol=1e-5, err_msg=f"{key}, {case}")
