"""Commands on models and weights: judged before Keras is imported; `info` on everything."""

import json
import shlex
import shutil
import subprocess
import sys

import compvis
import numpy as np
import pytest
from command_line import VAE_CONFIG, call, refused, refused_before, succeeds
from conftest import TESTS, environment
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from tiny import few_emoji, quick_model, tiny_lora

from latentddpm.data.pack import pack
from latentddpm.generation.loras import read_loras
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.recognise import ADAPTERS

GOLDEN = TESTS / "golden"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, an autoencoder alone, and files of others."""
    folder = tmp_path_factory.mktemp("place")
    model = quick_model()
    model.save(folder / "m")
    LatentDiffusion(model.autoencoder, None, None, image_size=(32, 32)).save(folder / "vae/model")
    tiny_lora(folder / "lora.safetensors")
    save_file(compvis.whole(), folder / "sd.safetensors")
    save_file({"conditioner.embedders.0.a": np.zeros(1, "float32")}, folder / "xl.safetensors")
    save_file({"conv_in.weight": np.zeros(1, "float32")}, folder / "others.safetensors")
    (folder / "sd.ckpt").write_bytes(b"PK")
    (folder / "lfs.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    shutil.copytree(GOLDEN / "diffusers" / "pipeline", folder / "sd15")
    return folder


def test_what_is_wrong_with_a_path_is_said_before_keras_is_imported(place):
    lines = [
        "generate --model sd.safetensors --prompt a",
        "generate --model sd15 --prompt a",
        "generate --model m --lora sd.safetensors --prompt a",
        "generate --model m --lora lfs.safetensors --prompt a",
        "generate --model m --lora others.safetensors --prompt a",
        "evaluate --model sd.safetensors --data m",
        "export --model sd.safetensors --out o",
        "export --model m --out m",
        "export --model m --format onxx --out o",
        "export --model m --storage float61 --out o",
        "merge --model sd15 --lora lora.safetensors --out o",
        "merge --model m --lora xl.safetensors --out m",
        "merge --model vae --lora lora.safetensors --out o",
        "convert --from emoji-128 --out o",
        "convert --from m --out o",
        "convert --from lora.safetensors --out o",
        "convert --from xl.safetensors --out o",
        "convert --from sd.ckpt --out o",
        "convert --from lfs.safetensors --out o",
        "convert --from nowhere --out o",
        "convert --from sd.safetensors --out m",
        "convert --from sd.safetensors --variant fp16 --out o",
        "convert --to diffuser --model m --out o",
        "convert --to diffusers --model sd15 --out o",
        "info nowhere",
        "info lfs.safetensors",
    ]
    refused_before("keras", map(shlex.split, lines), place)
    assert not (place / "o").exists(), "expected nothing written"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model sd.safetensors", ("convert --from sd.safetensors --out runs/sd",)),
        ("--model sd15", ("convert --from sd15 --out runs/sd15",)),
        ("--model lora.safetensors", ("a LoRA", "--lora lora.safetensors")),
        ("--model xl.safetensors", ("Stable Diffusion XL", "not supported")),
        ("--model sd.ckpt", ("a pickle", "safe_serialization=True")),
        ("--model m/unet.keras", ("a .keras archive", "name its folder")),
        ("--model m --lora sd.safetensors", ("sd.safetensors", "no LoRA", "convert --from")),
    ],
)
def test_generate_names_what_it_was_given(place, monkeypatch, words, said):
    monkeypatch.chdir(place)
    refused(call("generate", *words.split(), "--prompt", "a"), *said)


@pytest.mark.parametrize("name", ["lora.safetensors", *ADAPTERS])
def test_a_folder_with_a_lora_is_taken_for_its_file(tmp_path, name):
    tiny_lora(tmp_path / name)
    (lora,) = read_loras([f"{tmp_path}:0.5"])
    assert (lora.path, lora.scale) == (tmp_path / name, 0.5), f"expected {name}, got {lora}"


# --- info ----------------------------------------------------------------------------------


def info(path):
    return succeeds(call("info", path)).stdout


def test_info_describes_weights_of_others(place, monkeypatch):
    monkeypatch.chdir(place)
    for path, words in {
        "lora.safetensors": (
            "a LoRA",
            "rank       2",
            "kohya's scripts",
            "--lora lora.safetensors",
        ),
        "sd.safetensors": ("Stable Diffusion 1.x", "UNet", "VAE", "text", "convert --from"),
        "xl.safetensors": ("Stable Diffusion XL", "not supported"),
        "sd15": ("StableDiffusionPipeline", "text_encoder", "convert --from sd15 --out runs/sd15"),
        "sd15/vae": ("AutoencoderKL", "convert --from"),
        "m/unet.keras": ("latentddpm>UNet", "channels: 16", "name its folder, m"),
        "vae": ("image size 32×32", "train-diffusion --vae"),
        "emoji-128": ("emoji-128", "128×128"),
        "sd.ckpt": ("a pickle", "safe_serialization"),
        ".": ("folder", "2 runs or models"),
    }.items():
        text = info(path)
        missing = [word for word in words if word not in text]
        assert not missing, f"info {path}: expected {missing} in {text}"


def test_info_describes_runs_at_every_stage(tmp_path):
    run = tmp_path / "runs" / "one"
    (run / "latents").mkdir(parents=True)
    (run / ".lock").touch()
    assert "stopped before its first log line" in info(run), "while encoding"
    (run / "config.yaml").write_text(json.dumps({"autoencoder": {}, "training": {"num_steps": 9}}))
    text = info(run)
    for words in ("train-vae, 9 steps", "not finished", "--resume"):
        assert words in text, f"expected {words!r} of a run without a log: {text}"
    (run / "log.jsonl").touch()
    assert "stopped before its first log line" in info(run), "with an empty log"
    (run / "model").mkdir()
    assert "shorter than training.log_every" in info(run), "of a finished run without a loss"
    (run / "model").rmdir()
    (run / "log.jsonl").write_text('{"step": 3, "loss": 0.5}\n')
    (run / "checkpoints" / "step-00000003").mkdir(parents=True)
    text = info(run)
    for words in ("step       3, loss 0.5", "checkpoint step 3", "not finished"):
        assert words in text, f"expected {words!r} of a run with a step: {text}"
    text = info(tmp_path / "runs")
    assert "one" in text, f"expected the run to be listed: {text}"
    assert "not finished, step 3" in text, f"expected its state: {text}"


def test_info_describes_data(tmp_path):
    few_emoji(tmp_path / "photos", 4)
    text = info(tmp_path / "photos")
    for words in ("images     4", "tables: metadata.jsonl", "doctor"):
        assert words in text, f"expected {words!r} of pictures: {text}"
    assert "a table of captions" in info(tmp_path / "photos" / "metadata.jsonl")
    pack(tmp_path / "photos", tmp_path / "shards", kind="tar", quiet=True)
    assert "images     4" in info(tmp_path / "shards"), "expected the shards to be read"


def test_info_describes_pictures(tmp_path):
    picture = Image.new("RGB", (7, 5))
    picture.save(tmp_path / "a.jpg")
    assert "JPEG 7×5" in info(tmp_path / "a.jpg"), "expected its format and size"
    notes = PngImagePlugin.PngInfo()
    notes.add_text("parameters", "red apple, Steps: 20")
    picture.save(tmp_path / "a.png", pnginfo=notes)
    assert "AUTOMATIC1111" in info(tmp_path / "a.png"), "expected the program to be named"
    (tmp_path / "b.png").write_bytes(b"no picture")
    refused(call("info", tmp_path / "b.png"), "b.png", "not a picture")


def test_info_describes_configurations(tmp_path):
    (tmp_path / "vae.yaml").write_text(json.dumps(VAE_CONFIG))
    text = info(tmp_path / "vae.yaml")
    assert "latentddpm train-vae --data DIR --config" in text, f"expected the command: {text}"
    assert "train-diffusion" not in text, f"it is of the other command: {text}"
    (tmp_path / "odd.yaml").write_text("nothing: 1")
    assert "nothing" in info(tmp_path / "odd.yaml"), "expected the unknown key to be named"


def test_what_no_command_takes_is_refused(tmp_path):
    (tmp_path / "notes.md").write_text("words")
    refused(call("info", tmp_path / "notes.md"), "a file of 5 bytes", "no command takes")
    refused(call("info", tmp_path / "emoji-182"), "no such file or folder")


# --- Python --------------------------------------------------------------------------------


def test_a_model_says_what_it_is(place):
    model = LatentDiffusion.load(place / "m")
    text = repr(model)
    expected = ("32×32 pixels", model.digest, "autoencoder", "unet", "context of 16")
    expected += (f"{model.unet.count_params():,} parameters", "scaled_linear", "num_steps 3")
    missing = [word for word in expected if word not in text]
    assert not missing, f"expected {missing} in {text}"
    alone = repr(LatentDiffusion(model.autoencoder, None, None))
    assert "unet" not in alone, f"there is no UNet: {alone}"


def test_export_can_be_called_after_a_bare_import():
    """As the page writes it, without an import of the submodule."""
    code = "import latentddpm; print(latentddpm.export.export_model.__name__)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "export_model\n", f"expected the function: {done.stderr[-500:]}"
