"""Models of checkpoints: those that the run would have ended with, and what is none."""

import json
import shutil

import numpy as np
import pytest
from command_line import call, refused, succeeds
from tiny import SIZE, UNET, few_emoji, step_by_step, tiny_autoencoder

from latentddpm.config import DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.errors import UserError
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.checkpoint_model import checkpoint_model
from latentddpm.training.diffusion import train_diffusion


def settings(steps):
    unet = {**UNET, "channel_multipliers": (1,), "attention_levels": ()}
    del unet["zero_init"]
    training = {
        "num_steps": steps,
        "batch_size": 4,
        "learning_rate": 0.05,
        "warmup_steps": 0,
        "learning_rate_schedule": "constant",
        "ema_momentum": 0.5,
        "checkpoint_every": 1,
        "keep_checkpoints": 3,
        "precision": "float32",
    }
    config = {
        "data": {"resolution": SIZE[0], "validation_fraction": 0},
        "unet": unet,
        "text": {"source": "scratch", "hidden_dim": 16, "num_layers": 1, "num_heads": 2},
        "training": training,
        "samples": {"prompts": ["red apple"], "images_per_prompt": 1, "num_steps": 1},
    }
    return parse_config(DiffusionRun, config)


def train(lab, name, steps):
    with step_by_step():
        train_diffusion(
            *(settings(steps), lab / "data", lab / "vae", lab / name),
            latents=lab / "latents",
            quiet=True,
        )


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `long`, a run of three steps."""
    lab = tmp_path_factory.mktemp("lab")
    few_emoji(lab / "data")
    autoencoder = tiny_autoencoder(channel_multipliers=(1, 2))
    LatentDiffusion(autoencoder, None, None, image_size=SIZE).save(lab / "vae")
    train(lab, "long", 3)
    return lab


def digests(folder):
    return {name: part["digest"] for name, part in read_model_folder(folder).parts.items()}


def step(run, number):
    return run / "checkpoints" / f"step-{number:08d}"


@pytest.mark.slow
@pytest.mark.parametrize(("number", "same"), [(3, "long"), (2, "short")])
def test_the_model_of_a_checkpoint_is_that_of_a_run_that_ended_there(number, same, lab, tmp_path):
    """With the EMA's weights, of the UNet and of the text encoder that learned with it."""
    if not (lab / "short").exists():
        train(lab, "short", 2)
    found = digests(checkpoint_model(step(lab / "long", number)).save(tmp_path / "model").path)
    assert found == digests(lab / same / "model")
    assert digests(lab / "long" / "model") != digests(lab / "short" / "model")


@pytest.mark.slow
def test_a_checkpoint_becomes_a_model_that_guides_its_own_run(lab, tmp_path):
    weaker = tmp_path / "weaker"
    line = ("convert", "--from", step(lab / "long", 1), "--out", weaker, "--quiet")
    assert succeeds(call(*line)).stdout.strip() == str(weaker)
    model = LatentDiffusion.load(lab / "long" / "model")
    given = {"seed": 3, "num_steps": 2, "output": "latents"}
    plain = model.generate("red apple", **given)
    found = model.generate("red apple", autoguidance=LatentDiffusion.load(weaker), **given)
    assert np.abs(found - plain).max() > 1e-3, "expected the weaker model to count"


def test_a_checkpoint_in_place_of_a_model_is_told_how_it_becomes_one(lab, tmp_path):
    path = step(lab / "long", 1)
    words = ("is a checkpoint of a training", f"latentddpm convert --from {path} --out runs/")
    model = lab / "long" / "model"
    refused(call("generate", "--model", path, "--out", tmp_path / "a.png"), *words)
    line = (
        "generate",
        "--model",
        model,
        "--autoguidance",
        f"{path}:3",
        "--out",
        tmp_path / "a.png",
    )
    refused(call(*line), *words)
    assert words[1] in succeeds(call("info", path)).stdout


def test_what_no_model_can_be_made_of_is_refused(lab, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(lab / "long", run)
    path, out = step(run, 2), tmp_path / "model"
    line = ("convert", "--from", path, "--out", out)
    refused(call(*line, "--variant", "fp16"), "is a checkpoint of a training")
    (run / "model").rename(run / "elsewhere")
    refused(
        call(*line), f"{path}: its networks are described in {run / 'model'}", "finish the run"
    )
    (run / "elsewhere").rename(run / "model")
    contract = json.loads((path / "run.json").read_text("utf-8"))
    (path / "run.json").write_text(json.dumps({**contract, "command": "train-vae"}), "utf-8")
    refused(call(*line), f"{path}: run.json: ")
    assert not out.exists()
    with pytest.raises(UserError, match=r"manifest\.json"):
        checkpoint_model(tmp_path)
