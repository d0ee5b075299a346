"""Messages on weights of others, and on models in the place of other things."""

import shutil
from pathlib import Path

import compvis
from conftest import TESTS
from remedy_models import put_model
from safetensors.numpy import save_file
from tiny import tiny_lora

from remedies.remedy import Remedy

PIPELINE = TESTS / "golden" / "diffusers" / "pipeline"


def model(folder: Path) -> None:
    put_model(folder / "m")


def checkpoint(folder: Path) -> None:
    save_file(compvis.tensors("vae"), folder / "vae.safetensors")


def diffusers(folder: Path) -> None:
    shutil.copytree(PIPELINE, folder / "sd")


def two_variants(folder: Path) -> None:
    diffusers(folder)
    for plain in [*(folder / "sd").glob("*/*.safetensors")]:
        for variant in ("fp16", "bf16"):
            shutil.copy(plain, plain.with_suffix(f".{variant}.safetensors"))
        plain.unlink()


def model_and_lora(folder: Path) -> None:
    model(folder)
    tiny_lora(folder / "x.safetensors")


def run_of_vae(folder: Path) -> None:
    put_model(folder / "run" / "model", "vae")


REMEDIES = [
    Remedy(
        "a single file in a model's place",
        checkpoint,
        "export --model vae.safetensors --out o",
        ("an autoencoder", "latentddpm convert --from vae.safetensors --out runs/vae"),
        (
            "convert --from vae.safetensors --out runs/vae",
            "export --model runs/vae --out o",
        ),
    ),
    Remedy(
        "a diffusers folder in a model's place",
        diffusers,
        "generate --model sd --prompt red",
        ("a diffusers folder", "latentddpm convert --from sd --out runs/sd"),
        ("convert --from sd --out runs/sd", "info runs/sd"),
    ),
    Remedy(
        "two variants and no plain file",
        two_variants,
        "convert --from sd --out o",
        ("variants bf16, fp16", "--variant"),
        ("convert --from sd --variant fp16 --out o",),
    ),
    Remedy(
        "a variant of a single file",
        checkpoint,
        "convert --from vae.safetensors --variant fp16 --out o",
        ("--variant", "a single file"),
        ("convert --from vae.safetensors --out o",),
    ),
    Remedy(
        "a LoRA in a model's place",
        model_and_lora,
        "merge --model x.safetensors --lora x.safetensors --out o",
        ("a LoRA", "--lora x.safetensors"),
        ("info x.safetensors",),
    ),
    Remedy(
        "a ready model to convert",
        lambda folder: None,
        "convert --from emoji-128 --out o",
        ("a ready model already", "--model emoji-128"),
        ("info emoji-128",),
    ),
    Remedy(
        "an export that exists already",
        run_of_vae,
        "export --model run --out run",
        ("exists already", "name a new folder"),
        ("export --model run --out other",),
    ),
]
