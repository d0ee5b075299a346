"""Conditions in diffusers' configurations and in weight maps; what is compared with diffusers
itself is in `test_conditions_live.py`."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny import tiny_model

from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError
from latentddpm.interop.convert import convert_from, convert_to
from latentddpm.interop.diffusers.conditions import read_conditions
from latentddpm.interop.diffusers.folder import save_diffusers
from latentddpm.interop.diffusers.networks import rows_of
from latentddpm.interop.diffusers.read_config import unet_arguments
from latentddpm.interop.diffusers.write_config import unet_config
from latentddpm.interop.lora import add_lora, save_lora
from latentddpm.interop.lora_merge import merge_lora
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import rebuild
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder

SIZES = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (),
    "num_heads": 2,
    "norm_groups": 4,
}
DIGIT = {"name": "digit", "kind": "class", "words": ["0", "1", "2"]}
AGE = {"name": "age", "kind": "number", "mean": [40.0], "std": [10.0]}
LINES = {"name": "lines", "kind": "picture", "through": "pixels", "channels": 3}


def made(*entries, **more):
    """A UNet with conditions, and these."""
    conditions = Conditions.from_json(entries)
    return UNet(**SIZES, **more, conditions=conditions.specs()), conditions


@pytest.mark.parametrize("own", [True, False])
def test_names_words_and_null_come_back_where_we_wrote_them(own):
    unet, conditions = made(LINES, DIGIT, context_dim=6)
    config = unet_config(unet, (8, 8), conditions if own else None)
    assert (config["in_channels"], config["num_class_embeds"]) == (7, 4)
    again = read_conditions(config, "config.json")
    if own:
        assert again == conditions
        assert unet_arguments(config, "config.json")["conditions"] == unet.conditions
    else:
        assert [one.kind for one in again] == ["low_resolution", "class"]
        assert not any(one.null for one in again)
        assert again["noise_level"].words == ("0", "1", "2", "3")


def test_a_model_without_conditions_writes_no_key_of_our_own():
    config = unet_config(UNet(**SIZES), (8, 8), Conditions())
    assert [key for key in config if key.startswith(("_", "class", "num"))] == ["_class_name"]
    assert unet_arguments(config, "config.json")["conditions"] is None


def test_a_learned_variance_beside_a_map_comes_back():
    unet, conditions = made(LINES, learned_variance=True)
    config = unet_config(unet, (8, 8), conditions)
    assert (config["in_channels"], config["out_channels"]) == (7, 8)
    arguments = unet_arguments(config, "config.json")
    assert (arguments["latent_channels"], arguments["learned_variance"]) == (4, True)


@pytest.mark.parametrize(
    ("entries", "context_dim", "message"),
    [
        ([DIGIT, AGE], 6, "conditions digit, age: diffusers' UNets have one class embedding"),
        ([AGE], None, "'age': enters by projection, which UNet2DModel has not"),
    ],
)
def test_what_diffusers_has_none_like_is_refused(entries, context_dim, message):
    unet, conditions = made(*entries, context_dim=context_dim)
    with pytest.raises(UserError, match=message):
        unet_config(unet, (8, 8), conditions)


def test_timesteps_with_their_sines_first_are_refused():
    level = [{"name": "level", "enters": "timestep", "size": 1}]
    with pytest.raises(UserError, match="original_ddpm beside a condition that enters by times"):
        unet_config(UNet(**SIZES, original_ddpm=True, conditions=level), None)
    config = unet_config(UNet(**SIZES, original_ddpm=True), None)
    with pytest.raises(UserError, match="class_embed_type: timestep is not supported"):
        unet_arguments({**config, "class_embed_type": "timestep"}, "config.json")


def test_raw_latents_of_an_autoencoder_that_shifts_them_are_refused():
    config = {**unet_config(UNet(**SIZES), None), "in_channels": 8}
    vae = {"scaling_factor": 0.5, "shift_factor": 0.0}
    (condition,) = read_conditions(config, "config.json", vae)
    assert condition.scale == 2.0
    with pytest.raises(UserError, match="in_channels: 8, of which 4 are raw latents"):
        read_conditions(config, "config.json", {**vae, "shift_factor": 0.1})


def test_keys_that_contradict_ours_are_refused():
    unet, conditions = made(DIGIT)
    config = {**unet_config(unet, None, conditions), "num_class_embeds": 9}
    with pytest.raises(UserError, match="num_class_embeds: 9, but _latentddpm makes it 4"):
        unet_arguments(config, "config.json")


def test_every_condition_has_its_rows_in_the_weight_map():
    level = {"name": "level", "enters": "timestep", "size": 1}
    style = {"name": "style", "enters": "identity", "size": 32}
    _, conditions = made(LINES, DIGIT, AGE)
    unet = UNet(**SIZES, conditions=[*conditions.specs(), level, style])
    paths = [row.path for row in rows_of(unet)]
    assert sorted(paths) == sorted(weight.path for weight in unet.weights)
    keys = [row.key for row in rows_of(unet)]
    assert len(set(keys)) == len(keys)


def test_a_unet_alone_keeps_its_conditions_both_ways(tmp_path):
    unet, conditions = made(LINES, DIGIT, context_dim=6)
    save_diffusers(LatentDiffusion(None, unet, None, conditions=conditions), tmp_path / "theirs")
    convert_from(tmp_path / "theirs" / "unet", tmp_path / "ours")
    assert read_model_folder(tmp_path / "ours").conditions == conditions
    convert_to("diffusers", tmp_path / "ours", tmp_path / "again")
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        first, second = (tmp_path / one / "unet" / file for one in ("theirs", "again"))
        assert first.read_bytes() == second.read_bytes(), f"{file} became another"


def test_super_resolution_of_latent_diffusion_is_named(tmp_path):
    index = {"_class_name": "LDMSuperResolutionPipeline"}
    (tmp_path / "model_index.json").write_text(json.dumps(index), "utf-8")
    with pytest.raises(UserError, match=r"a VQ-VAE \(vqvae\); its UNet alone is read: name"):
        convert_from(tmp_path, tmp_path / "out")


# --- LoRA ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_lora_of_a_conditioned_unet_merges_to_what_it_was_beside(tmp_path):
    _, conditions = made(LINES, DIGIT, AGE)
    sizes = {"attention_levels": (0,), "conditions": conditions.specs()}
    model = tiny_model(**sizes)
    model.conditions = conditions
    beside = rebuild(model.unet)
    add_lora(beside, 2, 4.0, ("query", "out", "ff_in", "conv1"))
    numbers = np.random.default_rng(0)
    for variable in beside.trainable_variables:
        variable.assign(numbers.normal(0, 0.1, variable.shape))
    save_lora(beside, tmp_path / "lora.safetensors", {"rank": 2})
    inputs = {
        name: numbers.normal(size=[size or 4 for size in tensor.shape]).astype("float32")
        for name, tensor in model.unet.input.items()
    }
    before = np.asarray(model.unet(inputs))
    merge_lora(model, tmp_path / "lora.safetensors")
    np.testing.assert_allclose(model.unet(inputs), beside(inputs), atol=2e-5)
    assert np.abs(before - np.asarray(model.unet(inputs))).max() > 1e-3


def test_a_lora_changes_the_first_convolution_with_all_its_channels(tmp_path):
    _, conditions = made(LINES, DIGIT, AGE)
    model = tiny_model(conditions=conditions.specs())
    kernel = model.unet.get_layer("conv_in").conv.kernel
    numbers = np.random.default_rng(0)
    down, up = (numbers.normal(size=s).astype("float32") for s in ((2, 7, 3, 3), (16, 2, 1, 1)))
    tensors = {"lora_unet_conv_in.lora_down.weight": down, "lora_unet_conv_in.lora_up.weight": up}
    save_file(tensors, tmp_path / "lora.safetensors")
    before = np.asarray(kernel)
    merge_lora(model, tmp_path / "lora.safetensors")
    change = np.einsum("or,rihw->hwio", up[:, :, 0, 0], down)
    np.testing.assert_allclose(np.asarray(kernel) - before, change, atol=1e-5)
