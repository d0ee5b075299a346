"""What a path is: files and folders of the field, told by name, first bytes and tensors' names."""

import json
import shlex
import shutil
from pathlib import Path

import compvis
import numpy as np
import pytest
from conftest import TESTS
from safetensors.numpy import save_file

from latentddpm.errors import UserError
from latentddpm.pipeline.model_folder import check_convertible, check_lora, find_model
from latentddpm.pipeline.recognise import recognise
from latentddpm.pipeline.weight_files import LAYOUTS, READ, layout_of, read_header, variants

GOLDEN = TESTS / "golden"
ZERO = np.zeros(1, "float32")
ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"


def shapes_of(tensors):
    return {key: {"dtype": "F32", "shape": list(array.shape)} for key, array in tensors.items()}


# --- Layouts -------------------------------------------------------------------------------

FILES = {
    "SD 1.x": (compvis.whole(), "a Stable Diffusion 1.x checkpoint"),
    "UNet alone": (compvis.tensors("unet"), "a Stable Diffusion 1.x checkpoint"),
    "VAE alone": (compvis.tensors("vae"), "an autoencoder of Stable"),
    "averages": ({"model_ema.diffusion_modelout2bias": ZERO}, "averaged weights"),
    "inpainting": (compvis.tensors("unet", in_channels=9), "a Stable Diffusion 1.x checkpoint"),
    "instruct": (compvis.tensors("unet", in_channels=8), "a Stable Diffusion 1.x checkpoint"),
    "depth": (compvis.tensors("unet", in_channels=5), "a depth-guided UNet"),
    "SD 2.x UNet": (compvis.tensors("unet", linear=True, context=1024), "the UNet of Stable Diff"),
    "SD 2.x": ({"cond_stage_model.model.ln_final.bias": ZERO}, "Stable Diffusion 2.x"),
    "SDXL": ({"conditioner.embedders.0.a": ZERO}, "Stable Diffusion XL"),
    "SD 3": ({"model.diffusion_model.joint_blocks.0.a": ZERO}, "Stable Diffusion 3"),
    "Flux": ({"double_blocks.0.img_attn.proj.bias": ZERO}, "Flux"),
    "ControlNet": ({"controlnet_cond_embedding.conv_in.bias": ZERO}, "a ControlNet"),
    "IP-Adapter": ({"image_proj.norm.bias": ZERO}, "an IP-Adapter"),
    "motion": ({"down_blocks.0.motion_modules.0.a": ZERO}, "a motion module"),
    "embedding": ({"emb_params": ZERO}, "a textual inversion"),
    "diffusers UNet": ({"down_blocks.0.resnets.0.norm1.bias": ZERO}, "in diffusers' names"),
    "diffusers VAE": ({"encoder.down_blocks.0.resnets.0.norm1.bias": ZERO}, "in diffusers' names"),
    "CLIP": ({"text_model.final_layer_norm.bias": ZERO}, "a text encoder alone"),
    "T5": ({"encoder.block.0.layer.0.SelfAttention.q.weight": ZERO}, "a text encoder T5"),
    "VGG": ({"features.0.weight": ZERO}, "a VGG16"),
    "a training": ({"model/0": ZERO, "optimizer/0": ZERO}, "the state of a training"),
    "LoRA of kohya": ({"lora_unet_mid_block.lora_up.weight": ZERO}, "a LoRA"),
    "LoRA of PEFT": ({f"base_model.model.{ATTENTION}.to_q.lora_A.weight": ZERO}, "a LoRA"),
    "LoRA of diffusers": ({f"unet.{ATTENTION}.to_q.lora.down.weight": ZERO}, "a LoRA"),
    "LoRA processors": ({f"unet.{ATTENTION}.processor.to_q_lora.up.weight": ZERO}, "a LoRA"),
    "LoRA of SDXL": ({"lora_te2_text_model_x.lora_up.weight": ZERO}, "a LoRA of Stable Diffusion"),
    "LoHa": ({"lora_unet_mid_block.hada_w1_a": ZERO}, "DoRA, LoHa"),
    "DoRA": ({f"unet.{ATTENTION}.to_q.lora_magnitude_vector": ZERO}, "DoRA, LoHa"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_layout_is_told_by_the_names_of_its_tensors(name):
    tensors, expected = FILES[name]
    layout = layout_of(shapes_of(tensors))
    assert layout is not None, f"{name}: expected {expected!r}, it is not known"
    assert expected in layout.what, f"{name}: expected {expected!r}, got {layout.what!r}"


def test_what_is_not_known_has_no_layout():
    assert layout_of(shapes_of({"something.else": ZERO})) is None, "expected no layout"
    assert layout_of({}) is None, "expected no layout of nothing"


def test_every_layout_without_a_command_says_what_to_do():
    silent = [layout.what for layout in LAYOUTS if not layout.command and not layout.advice]
    assert not silent, f"expected advice for {silent}"


# --- Files that are something else ---------------------------------------------------------

CONTENTS = {
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\nsize 9\n",
    "a web page": b"\n<!DOCTYPE html><html><body>Log in</body></html>",
    "text, which begins 'Invalid username": b"Invalid username or password.",
    'text, which begins \'{"error"': b'{"error":"Repository not found"}',
    "empty": b"",
    "all zeros": bytes(200),
    "GGUF": b"GGUF\x03\x00\x00\x00" + bytes(60),
    "a ZIP archive, as torch.save": b"PK\x03\x04" + bytes(60),
    "a pickle": b"\x80\x02}q\x00" + bytes(60),
    "HDF5": b"\x89HDF\r\n\x1a\n" + bytes(60),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "a compressed archive": b"\x1f\x8b\x08" + bytes(60),
}


def test_a_pipeline_that_is_not_read_says_why(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
    with pytest.raises(
        UserError, match=r"LDMPipeline.*not supported: its autoencoder is a VQ-VAE"
    ):
        check_convertible(tmp_path)


@pytest.mark.parametrize("words", CONTENTS)
def test_another_file_under_this_name_is_named_with_what_to_do(tmp_path, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(CONTENTS[words])
    for read in (read_header, find_model, check_convertible, check_lora):
        with pytest.raises(UserError) as caught:
            read(path)
        message = str(caught.value)
        for part in (str(path), f"not a valid safetensors file: it is {words}", "; "):
            assert part in message, f"{read.__name__}: expected {part!r} in {message!r}"
        assert "\n" not in message, f"expected one line: {message!r}"


def test_half_a_download_says_how_much_there_is(tmp_path):
    save_file(compvis.tensors("unet"), tmp_path / "whole.safetensors")
    whole = (tmp_path / "whole.safetensors").read_bytes()
    path = tmp_path / "half.safetensors"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=f"cut off, at {len(whole) // 2:,} of {len(whole):,} byte"):
        find_model(path)
    path.write_bytes(whole[:300])
    with pytest.raises(UserError, match="cut off in its header"):
        find_model(path)
    part = tmp_path / "model.safetensors.incomplete"
    part.write_bytes(whole[:300])
    with pytest.raises(UserError, match="a download that is not finished"):
        find_model(part)


# --- Where a model folder is expected ------------------------------------------------------


def checkpoint_file(folder):
    save_file(compvis.tensors("vae"), folder / "sd.safetensors")
    return folder / "sd.safetensors"


def diffusers_folder(folder):
    return shutil.copytree(GOLDEN / "diffusers" / "pipeline", folder / "sd15")


def one_network(folder):
    return shutil.copytree(GOLDEN / "diffusers" / "vae-sharded", folder / "vae")


def folder_with_spaces(folder):
    return shutil.copytree(GOLDEN / "diffusers" / "pipeline", folder / "my model")


def hub_cache(folder):
    shutil.copytree(
        GOLDEN / "diffusers" / "pipeline", folder / "models--x--y" / "snapshots" / "0123abc"
    )
    return folder / "models--x--y"


def folder_of_one_file(folder):
    checkpoint_file(folder)
    return folder


def variants_alone(folder):
    copied = diffusers_folder(folder)
    for part in ("vae", "unet", "text_encoder"):
        (plain,) = (copied / part).glob("*.safetensors")
        for variant in ("fp16", "bf16"):
            shutil.copy(plain, plain.with_suffix(f".{variant}.safetensors"))
        plain.unlink()
    return copied


CONVERTIBLE = (
    *(checkpoint_file, diffusers_folder, one_network, folder_with_spaces, hub_cache),
    *(folder_of_one_file, variants_alone),
)


@pytest.mark.parametrize("make", CONVERTIBLE)
def test_a_checkpoint_says_the_line_that_makes_a_model_folder(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path)
    with pytest.raises(UserError) as caught:
        find_model(path)
    line = str(caught.value).partition("latentddpm convert ")[2]
    assert line, f"expected the line that converts it: {caught.value}"
    words = shlex.split(line)
    options = dict(zip(words[::2], words[1::2], strict=True))
    check_convertible(Path(options["--from"]), options.get("--variant"))
    assert not Path(options["--out"]).exists(), f"expected a new folder, got {options['--out']}"
    assert ("--variant" in options) == (make is variants_alone), f"a variant: {line}"


def test_a_name_that_is_taken_is_not_proposed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "sd").mkdir(parents=True)
    with pytest.raises(UserError, match=r"--out runs/sd-model$"):
        find_model(checkpoint_file(tmp_path))


def other_pipeline(folder):
    copied = diffusers_folder(folder)
    (copied / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    return copied


def pickled(folder):
    copied = diffusers_folder(folder)
    (copied / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (copied / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"PK")
    return copied


def other_config(**content):
    def make(folder):
        (folder / "config.json").write_text(json.dumps(content))
        return folder

    return make


def file(name, content=b"x"):
    def make(folder):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        return folder / name

    return make


def holder(*names):
    def make(folder):
        for name in names:
            file(name)(folder)
        return folder

    return make


OTHERS = {
    "SDXL's pipeline": (other_pipeline, "StableDiffusionXLPipeline", "not supported"),
    "a pipeline of pickles": (pickled, "with a pickle, diffusion", "safe_serialization=True"),
    "a transformer": (other_config(_class_name="FluxTransformer2DModel"), "Flux", "not supported"),
    "CLIP": (other_config(model_type="clip"), "a CLIP folder", "text.source=clip"),
    "a language model": (other_config(model_type="llama"), "llama", "no command"),
    "a pickle": (file("model.ckpt"), "a pickle", "safe_serialization=True"),
    "GGUF": (file("model.gguf"), "GGUF", ".safetensors version"),
    "an archive": (file("vae.keras"), "a .keras archive", "pipeline.json"),
    "a picture": (file("cat.jpg"), "a picture", "--init-image"),
    "a configuration": (file("x.yaml"), "a configuration", "--config"),
    "a shard": (file("x.tar"), "a shard", "--data"),
    "ONNX": (file("unet.onnx"), "ONNX", "the model"),
    "a run that was stopped": (holder("config.yaml"), "a run that is not finished", "--resume"),
    "a run while encoding": (holder(".lock", "latents/partial.json"), "a run that", "--resume"),
    "a run with a LoRA": (holder("log.jsonl", "lora.safetensors"), "a LoRA", "--lora"),
    "a checkpoint": (holder("state.safetensors", "manifest.json"), "a checkpoint", "--resume"),
    "latents": (holder("index.json"), "a latents cache", "--latents"),
    "a catalog": (holder("catalog.json"), "a catalog", "--catalog"),
    "an export": (file("pipeline.json", b'{"format": "onnx"}'), "an export", "it was made from"),
    "a SavedModel": (holder("saved_model.pb"), "an export", "it was made from"),
    "PEFT": (holder("adapter_model.safetensors"), "a folder with a LoRA", "--lora"),
    "runs": (holder("one/log.jsonl", "two/log.jsonl"), "a folder of runs", "one, two"),
    "pictures": (holder("a/1.png"), "a folder of pictures", "--data"),
    "shards": (holder("a-0.tar"), "a folder of shards", "--data"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_path_is_named_with_the_command_that_takes_it(tmp_path, name):
    make, what, advice = OTHERS[name]
    path = make(tmp_path)
    thing = recognise(path.parent if path.name == "pipeline.json" else path)
    assert thing is not None, f"{name}: expected {what!r}, it is not known"
    assert what in thing.what, f"{name}: expected {what!r}, got {thing.what!r}"
    assert advice in thing.advice, f"{name}: expected {advice!r}, got {thing.advice!r}"
    assert not thing.convertible, f"{name}: convert does not take it"


def test_convert_says_that_a_model_is_one_already(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="a ready model already; use it with --model emoji-128"):
        check_convertible(Path("emoji-128"))
    with pytest.raises(UserError, match="is a model folder; use it with --model"):
        check_convertible(TESTS.parent / "weights" / "emoji-128")
    with pytest.raises(UserError, match="no such file or folder"):
        check_convertible(Path("nowhere.safetensors"))
    with pytest.raises(UserError, match="chooses files of a folder"):
        check_convertible(checkpoint_file(tmp_path), "fp16")


# --- Variants ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model.safetensors"], {None: "model.safetensors"}),
        (["model.fp16.safetensors", "model.bf16.safetensors"], {"fp16", "bf16"}),
        (["model.safetensors", "model.non_ema.safetensors"], {None, "non_ema"}),
        (["model.safetensors.index.json", "model-00001-of-00002.safetensors"], {None}),
        (["model.safetensors.index.fp16.json", "model.fp16-00001-of-00002.safetensors"], {"fp16"}),
        (["model.fp16.safetensors.index.json", "model-00001-of-00002.fp16.safetensors"], {"fp16"}),
        (["model.fp16.safetensors", "model.safetensors.index.fp16.json"], {"fp16"}),
        (["model.bin", "other.safetensors", "model_ema.safetensors"], set()),
    ],
)
def test_variants_are_told_by_the_names_of_their_files(tmp_path, names, expected):
    for name in names:
        file(name)(tmp_path)
    found = variants(tmp_path, "model")
    assert set(found) == set(expected), f"expected {set(expected)}, got {found}"


def test_the_layouts_that_are_read_are_the_documented_ones():
    assert {layout.what for layout in LAYOUTS if layout.command == READ} == {
        "a Stable Diffusion 1.x checkpoint",
        "averaged weights of Stable Diffusion 1.x",
        "a UNet of Stable Diffusion 1.x",
        "an autoencoder of Stable Diffusion 1.x",
    }
