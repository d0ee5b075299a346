"""What is not supported is refused by name, before a weight is read; hostile files as well."""

import json
import pickle
import shutil
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny import tiny_autoencoder

from latentddpm import interop
from latentddpm.clip.text_encoder import build_text_encoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.errors import UserError
from latentddpm.interop import clip
from latentddpm.interop.diffusers.folder import INDEX, STEM, read_folder
from latentddpm.interop.diffusers.networks import validate
from latentddpm.interop.diffusers.write_config import autoencoder_config, unet_config
from latentddpm.interop.tensors import RenamedTensors, TensorFiles
from latentddpm.models.denoisers.unet import UNet

GOLDEN = Path(__file__).parents[1] / "golden" / "diffusers"
WEIGHTS = f"{STEM}.safetensors"


def load(folder):
    """The one network of a folder, judged but not built."""
    checkpoint = read_folder(folder)
    return validate(checkpoint.vae or checkpoint.unet)


def refuse(folder, *words):
    """The folder is refused in one line that has all the words."""
    with pytest.raises(UserError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message, f"more than one line: {message!r}"
    for word in words:
        assert word in message, f"expected {word!r} in the message: {message}"


@pytest.fixture
def copied(tmp_path):
    """`copied("unet-one-head", key=value, …)`: a golden folder with a changed config.json."""

    def copy(name, weights=True, **changes):
        folder = shutil.copytree(GOLDEN / name, tmp_path / name, dirs_exist_ok=True)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        if not weights:
            for file in folder.glob("*.safetensors*"):
                file.unlink()
        return folder

    return copy


# --- Configurations ----------------------------------------------------------------------------

VAE, PLAIN, TEXT = "vae-sharded", "unet-one-head", "unet-heads-int"


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        (VAE, "act_fn", "relu"),
        (VAE, "shift_factor", "0.1"),
        (VAE, "latents_mean", [0.0, 0.0, 0.0, 0.0]),  # without latents_std
        (VAE, "use_quant_conv", False),  # and use_post_quant_conv true
        (VAE, "use_quant_conv", 0),
        (VAE, "mid_block_add_attention", False),
        (VAE, "scaling_factor", 0),
        (VAE, "scaling_factor", "large"),
        (VAE, "scaling_factor", float("inf")),
        (VAE, "out_channels", 1),
        (VAE, "norm_num_groups", 3),
        (VAE, "norm_num_groups", None),
        (VAE, "down_block_types", ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]),
        (VAE, "up_block_types", ["UpDecoderBlock2D"]),
        (VAE, "block_out_channels", [8, 12]),
        (VAE, "block_out_channels", [8, -16]),
        (VAE, "block_out_channels", [8, "16"]),
        (VAE, "block_out_channels", []),
        (VAE, "block_out_channels", 8),
        (VAE, "layers_per_block", 1.5),
        (VAE, "layers_per_block", True),
        (VAE, "latent_channels", 0),
        (PLAIN, "act_fn", "mish"),
        (PLAIN, "center_input_sample", True),
        (PLAIN, "time_embedding_type", "fourier"),
        (PLAIN, "freq_shift", 1),
        (PLAIN, "flip_sin_to_cos", False),
        (PLAIN, "mid_block_type", None),
        (PLAIN, "mid_block_scale_factor", 1.4),
        (PLAIN, "downsample_padding", 0),
        (PLAIN, "downsample_type", "resnet"),
        (PLAIN, "resnet_time_scale_shift", "scale_shift"),  # and no norm in the middle
        (TEXT, "resnet_time_scale_shift", "spatial"),
        (PLAIN, "class_embed_type", "projection"),
        (PLAIN, "class_embed_type", "simple_projection"),
        (PLAIN, "num_class_embeds", 0),
        (PLAIN, "num_class_embeds", 10**12),
        (PLAIN, "add_attention", False),
        (PLAIN, "attn_norm_num_groups", 2),
        (PLAIN, "time_embedding_dim", 7),
        (PLAIN, "attention_head_dim", 3),
        (PLAIN, "attention_head_dim", [4, 4]),
        (PLAIN, "norm_eps", 0),
        (PLAIN, "norm_eps", "1e-5"),
        (PLAIN, "dropout", 1.0),
        (PLAIN, "down_block_types", ["DownBlock2D", "ResnetDownsampleBlock2D"]),
        (PLAIN, "down_block_types", ["AttnDownBlock2D", "DownBlock2D"]),
        (PLAIN, "down_block_types", [["DownBlock2D"], 3]),
        (PLAIN, "a_key_of_the_future", "on"),
        (TEXT, "addition_embed_type", "text_time"),
        (TEXT, "transformer_layers_per_block", [1, 2]),
        (TEXT, "only_cross_attention", [False, True]),
        (TEXT, "dual_cross_attention", True),
        (TEXT, "upcast_attention", True),
        (TEXT, "encoder_hid_dim", 4096),
        (TEXT, "time_cond_proj_dim", 256),
        (TEXT, "class_embeddings_concat", True),
        (TEXT, "conv_in_kernel", 1),
        (TEXT, "cross_attention_norm", "layer_norm"),
        (TEXT, "cross_attention_dim", [6, 8]),
        (TEXT, "cross_attention_dim", None),
        (TEXT, "layers_per_block", [1, 2]),
        (TEXT, "attention_head_dim", [2]),
        (TEXT, "attention_head_dim", 5),
        (TEXT, "mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        (TEXT, "in_channels", 3),
        (TEXT, "class_embed_type", "simple_projection"),
        (TEXT, "class_embed_type", ["timestep"]),
        (TEXT, "_latentddpm", [1]),
        (TEXT, "_latentddpm", {"conditions": [{"name": "digit"}]}),
        (TEXT, "_latentddpm", {"conditions": [{"name": "a", "kind": "class", "words": 3}]}),
        (TEXT, "_latentddpm", {"conditions": [{"name": "a", "kind": "picture", "channels": "3"}]}),
        (TEXT, "use_linear_projection", "yes"),
        (TEXT, "_class_name", "FluxTransformer2DModel"),
        (TEXT, "_class_name", None),
        (TEXT, "_class_name", ["UNet2DModel"]),
    ],
)
def test_a_key_is_refused_by_its_name_without_weights(copied, name, key, value):
    folder = copied(name, weights=False, **{key: value})
    named = "out_channels" if key == "in_channels" else key
    refuse(folder, str(folder / "config.json"), named)


def test_what_switches_nothing_on_is_let_in(copied):
    load(copied(PLAIN, a_key_of_the_future=None, another=False, num_train_timesteps=1000))
    load(
        copied(
            TEXT, only_cross_attention=[False, False], attention_head_dim=[2, 2], act_fn="swish"
        )
    )


@pytest.mark.parametrize(
    "text", ["{", "[1, 2]", '{"a": ' * 5000, '{"in_channels": ' + "9" * 6000 + "}"]
)
def test_a_configuration_that_is_no_object(copied, text):
    folder = copied(PLAIN)
    (folder / "config.json").write_text(text)
    refuse(folder, str(folder / "config.json"))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("vae", {"channel_multipliers": (2, 4)}, "channel_multipliers begin with 2"),
        ("vae", {"norm_epsilon": 1e-5}, "norm_epsilon 1e-05"),
        ("unet", {"channel_multipliers": (2, 2)}, "channel_multipliers begin with 2"),
        ("unet", {"num_heads": 2, "attention_levels": (0, 1)}, r"heads are \[4, 8\] wide"),
    ],
)
def test_what_diffusers_cannot_express_is_refused(name, changes, message):
    sizes = {"channels": 8, "norm_groups": 4, "channel_multipliers": (1, 2), "num_res_blocks": 1}
    if name == "vae":
        model, describe = tiny_autoencoder(**changes), autoencoder_config
    else:
        model, describe = UNet(**{"attention_levels": (), **sizes, **changes}), unet_config
    with pytest.raises(UserError, match=message):
        describe(model, None)


# --- Pipelines ---------------------------------------------------------------------------------


@pytest.fixture
def pipeline(tmp_path):
    return shutil.copytree(GOLDEN / "pipeline", tmp_path / "pipeline")


def change(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "StableDiffusionXLPipeline"}, ["StableDiffusionXLPipeline"]),
        ({"_class_name": None}, ["_class_name"]),
        ({"text_encoder_2": ["transformers", "CLIPTextModel"]}, ["text_encoder_2"]),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, ["image_encoder"]),
        ({"vae": ["diffusers", "AutoencoderTiny"]}, ["vae", "AutoencoderTiny"]),
        ({"vae": []}, ["vae"]),
        ({"scheduler": ["diffusers", "EDMEulerScheduler"]}, ["EDMEulerScheduler"]),
    ],
)
def test_another_pipeline_is_refused_by_name(pipeline, changes, words):
    for file in pipeline.rglob("*.safetensors"):
        file.unlink()
    change(pipeline / INDEX, **changes)
    with pytest.raises(UserError) as caught:
        interop.load_diffusers(pipeline)
    for word in (INDEX, *words):
        assert word in str(caught.value), f"expected {word!r} in: {caught.value}"


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("unet", {"cross_attention_dim": 12}, ["to_k", "makes it (16, 12)"]),
        ("unet", {"in_channels": 5, "out_channels": 5}, ["in_channels is 5", "latents have 4"]),
        ("unet", {"_class_name": "UNet2DModel"}, ["UNet2DModel"]),
        ("unet", {"sample_size": "large"}, ["sample_size"]),
        ("scheduler", {"beta_schedule": "sigmoid"}, ["beta_schedule", "sigmoid"]),
        ("scheduler", {"trained_betas": [0.1]}, ["trained_betas"]),
        ("scheduler", {"prediction_type": "flow_prediction"}, ["prediction_type"]),
        ("scheduler", {"num_train_timesteps": 10**12}, ["num_train_timesteps"]),
        ("scheduler", {"num_train_timesteps": 10.5}, ["num_train_timesteps"]),
        ("scheduler", {"beta_start": "0.1"}, ["beta_start"]),
        ("scheduler", {"beta_start": -1}, ["beta_start"]),
        ("scheduler", {"_class_name": "EDMEulerScheduler"}, ["EDMEulerScheduler"]),
        ("scheduler", {"timestep_spacing": "other"}, ["timestep_spacing"]),
        ("scheduler", {"steps_offset": -1}, ["steps_offset"]),
    ],
)
def test_parts_that_do_not_fit_are_refused(pipeline, part, changes, words):
    change(next((pipeline / part).glob("*config.json")), **changes)
    with pytest.raises(UserError) as caught:
        interop.load_diffusers(pipeline)
    for word in words:
        assert word in str(caught.value), f"expected {word!r} in: {caught.value}"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vae": ["diffusers", "AutoencoderKL"]}, ["part of a DDPMPipeline", "'vae'"]),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, ["unet", "UNet2DModel"]),
        ({"unet": [None, None]}, ["names no unet"]),
        ({"scheduler": [None, None]}, ["no scheduler/scheduler_config.json"]),
    ],
)
def test_a_pipeline_of_pixels_has_a_unet_and_a_scheduler(tmp_path, changes, words):
    shutil.copytree(GOLDEN / PLAIN, tmp_path / "unet")
    shutil.copytree(GOLDEN / "pipeline" / "scheduler", tmp_path / "scheduler")
    index = {"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    (tmp_path / INDEX).write_text(json.dumps({**index, **changes}))
    with pytest.raises(UserError) as caught:
        interop.load_diffusers(tmp_path)
    for word in words:
        assert word in str(caught.value), f"expected {word!r} in: {caught.value}"


@pytest.mark.parametrize("part", ["vae", "unet", "scheduler", "text_encoder", "tokenizer"])
def test_a_missing_part_is_named(pipeline, part):
    shutil.rmtree(pipeline / part)
    with pytest.raises(UserError, match=f"{part}: missing, but named in model_index.json"):
        interop.load_diffusers(pipeline)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("vae", "has no autoencoder"),
        ("scheduler", r"has a UNet but no scheduler/scheduler_config.json"),
        (
            "text_encoder",
            "has no text encoder with a tokenizer, and its UNet is a UNet2DCondition",
        ),
        ("tokenizer", "has no text encoder with a tokenizer, and its UNet is a UNet2DCondition"),
    ],
)
def test_parts_without_an_index_have_to_be_complete_too(pipeline, part, message):
    (pipeline / INDEX).unlink()
    shutil.rmtree(pipeline / part)
    with pytest.raises(UserError, match=message):
        interop.load_diffusers(pipeline)


def test_a_text_encoder_of_another_width(pipeline):
    for folder in ("text_encoder", "tokenizer"):
        shutil.rmtree(pipeline / folder)
    encoder = build_text_encoder(hidden_dim=8, num_layers=1, num_heads=2, context_length=9)
    clip.write_text_encoder(
        encoder, CLIPTokenizer(9), pipeline / "text_encoder", pipeline / "tokenizer"
    )
    with pytest.raises(UserError, match="cross_attention_dim is 16, but the text encoder is 8"):
        interop.load_diffusers(pipeline)


def test_a_folder_of_something_else(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        interop.load_diffusers(tmp_path / "nowhere")
    with pytest.raises(UserError, match="expected a diffusers folder"):
        interop.load_diffusers(tmp_path)


# --- Weights -----------------------------------------------------------------------------------


def rewrite(folder, change):
    """`change(tensors)` of the weights of a folder."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


KEY = "mid_block.resnets.0.conv1.weight"


def test_a_missing_tensor_is_named(copied):
    folder = copied(PLAIN)
    rewrite(folder, lambda tensors: tensors.pop(KEY))
    refuse(folder, WEIGHTS, f"no tensor {KEY!r}", "config.json")


def test_a_tensor_too_many_is_named(copied):
    folder = copied(PLAIN)
    rewrite(folder, lambda tensors: tensors.update(stranger=np.zeros(3, "float32")))
    refuse(folder, WEIGHTS, "no such tensor: 'stranger'")


def test_another_shape_is_named(copied):
    folder = copied(PLAIN)
    rewrite(folder, lambda tensors: tensors.update({KEY: tensors[KEY][:, :4].copy()}))
    refuse(folder, WEIGHTS, KEY, "(8, 4, 3, 3)", "(8, 8, 3, 3)")


def test_another_type_is_named(copied):
    folder = copied(PLAIN)
    rewrite(folder, lambda tensors: tensors.update({KEY: tensors[KEY].astype("int32")}))
    refuse(folder, WEIGHTS, KEY, "I32")


@pytest.mark.parametrize(
    "changes",
    [
        {"block_out_channels": [2**30, 2**31], "norm_num_groups": 2},
        {"block_out_channels": [8] * 4000, "down_block_types": ["DownBlock2D"] * 4000}
        | {"up_block_types": ["UpBlock2D"] * 4000},
        {"layers_per_block": 10**12},
    ],
    ids=["wide", "many levels", "deep"],
)
def test_a_gigantic_configuration_takes_no_memory_and_no_time(copied, changes):
    folder = copied(PLAIN, **changes)
    start = time.process_time()
    refuse(folder, WEIGHTS, "config.json")
    taken = time.process_time() - start
    assert taken < 20, f"refused after {taken:.1f} s of the processor, so something was built"


def header(entries, data=b""):
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


HOSTILE = {
    "empty": b"",
    "a pickle by another name": pickle.dumps({"conv_in.weight": [1.0] * 10}),
    "a header longer than the file": struct.pack("<Q", 2**62) + b"{}",
    "no JSON": struct.pack("<Q", 4) + b"oops",
    "overlapping offsets": header({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
    "a hole": header({"a": entry([2], 0, 8), "b": entry([2], 12, 20)}, bytes(20)),
    "a huge shape": header({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)),
    "a shape larger than its bytes": header({"a": entry([2**40], 0, 8)}, bytes(8)),
    "a negative shape": header({"a": entry([-1], 0, 8)}, bytes(8)),
    "an unknown type": header({"a": entry([2], 0, 8, "COMPLEX")}, bytes(8)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_refused(copied, kind):
    folder = copied(PLAIN)
    (folder / WEIGHTS).write_bytes(HOSTILE[kind])
    refuse(folder, str(folder / WEIGHTS), "not a valid safetensors file")


def test_a_truncated_file_is_refused(copied):
    folder = copied(PLAIN)
    data = (folder / WEIGHTS).read_bytes()
    for length in (4, 200, len(data) - 1):
        (folder / WEIGHTS).write_bytes(data[:length])
        refuse(folder, str(folder / WEIGHTS))


@pytest.mark.parametrize(
    "name", [f"{STEM}.bin", "diffusion_pytorch_model.ckpt", "pytorch_model.bin"]
)
def test_a_pickle_is_never_opened(copied, name):
    folder = copied(PLAIN, weights=False)
    (folder / name).write_bytes(b"not even looked at")
    refuse(folder, name, "a pickle can run code", "safe_serialization=True")


def test_no_weights_at_all(copied):
    refuse(copied(PLAIN, weights=False), WEIGHTS, "not found")


def test_two_variants_have_to_be_told_apart(copied):
    folder = copied(PLAIN)
    (folder / WEIGHTS).rename(folder / f"{STEM}.fp16.safetensors")
    load(folder)  # the only one there is
    shutil.copy(folder / f"{STEM}.fp16.safetensors", folder / f"{STEM}.ema.safetensors")
    refuse(folder, WEIGHTS, "ema, fp16")


# --- Shards ------------------------------------------------------------------------------------


@pytest.fixture
def shards(copied):
    folder = copied(VAE)
    return folder, folder / f"{WEIGHTS}.index.json"


@pytest.mark.parametrize(
    "name", ["../other.safetensors", "/etc/passwd", "a/b.safetensors", "..", "", "a\\b", 7, None]
)
def test_an_index_that_climbs_out_is_refused(shards, name):
    folder, index = shards
    listed = json.loads(index.read_text())
    listed["weight_map"]["quant_conv.bias"] = name
    index.write_text(json.dumps(listed))
    refuse(folder, str(index), "quant_conv.bias")


def test_an_index_of_pickles_is_refused(shards):
    folder, index = shards
    listed = json.loads(index.read_text())
    listed["weight_map"]["quant_conv.bias"] = "part.bin"
    index.write_text(json.dumps(listed))
    refuse(folder, "part.bin", "a pickle can run code")


def test_a_missing_shard_is_named(shards):
    folder, index = shards
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.unlink()
    refuse(folder, str(shard), f"missing, but named in {index.name}")


@pytest.mark.parametrize("weight_map", [None, {}, [], "x"])
def test_an_index_without_a_map_is_refused(shards, weight_map):
    folder, index = shards
    index.write_text(json.dumps({"weight_map": weight_map}))
    refuse(folder, str(index), "weight_map")


def test_an_index_that_names_the_wrong_shard_is_refused(shards):
    folder, index = shards
    listed = json.loads(index.read_text())
    files = sorted(set(listed["weight_map"].values()))
    key = next(key for key, file in listed["weight_map"].items() if file == files[0])
    listed["weight_map"][key] = files[1]
    index.write_text(json.dumps(listed))
    refuse(folder, str(index), key)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    for name in ("a", "b"):
        save_file({"twice": np.zeros(2, "float32")}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"b.safetensors: 'twice' is in a.safetensors as well"):
        TensorFiles([tmp_path / "a.safetensors", tmp_path / "b.safetensors"])


# --- Other names -------------------------------------------------------------------------------


def test_renamed_tensors(tmp_path):
    kernel = np.arange(6, dtype="float32").reshape(2, 3, 1, 1)
    save_file({"theirs": kernel, "left out": kernel}, tmp_path / "a.safetensors")
    source = TensorFiles([tmp_path / "a.safetensors"])
    tensors = RenamedTensors(source, {"ours": "theirs"}, {"ours": (2, 3)})
    assert list(tensors.keys()) == ["ours"], f"keys {list(tensors.keys())}, expected ['ours']"
    assert tensors.shape("ours") == (2, 3), f"shape {tensors.shape('ours')}, expected (2, 3)"
    assert tensors.dtype("ours") == "F32", f"type {tensors.dtype('ours')}, expected F32"
    np.testing.assert_array_equal(tensors.read("ours"), kernel[:, :, 0, 0], err_msg="values")
    with pytest.raises(UserError, match="no tensor 'theirs'"):
        tensors.read("theirs")
    with pytest.raises(UserError, match=r"'theirs' is \(2, 3, 1, 1\), expected \(3, 2\)"):
        RenamedTensors(source, {"ours": "theirs"}, {"ours": (3, 2)})
