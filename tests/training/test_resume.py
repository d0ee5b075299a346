"""Whether a folder is that of the run that is to go on, and no other process trains in it."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys

import keras
import pytest
from safetensors.numpy import load_file
from small_run import Run, settings
from tiny import (
    QUICK_UNET,
    SIZE,
    UNET,
    few_emoji,
    few_signals,
    step_by_step,
    tiny_autoencoder,
)

from latentddpm.clip.text_encoder import build_text_encoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.config import DiffusionRun
from latentddpm.config_file import dump_config, parse_config
from latentddpm.data.latents import pixels
from latentddpm.errors import UserError
from latentddpm.info import describe
from latentddpm.interop.clip import write_text_encoder
from latentddpm.models.archive import weights_digest
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.diffusion import train_diffusion, train_planned
from latentddpm.training.plan.plan import plan_diffusion
from latentddpm.training.run.contract import SHOWN, Contract
from latentddpm.training.run.resume import check_resume, check_run
from latentddpm.training.run.run import CONFIG
from latentddpm.training.run.run import Run as TrainingRun
from latentddpm.utils.locks import require_lock

FACTS = {"images": 40}


def judge(folder, config, **options):
    """`check_resume` to go on in a folder, once `check_run` has nothing against it."""
    check_run(folder, resume=True)
    return check_resume(TrainingRun(config, folder, resume=True, **options), FACTS)


def begun(folder, config):
    """A run that was killed before its first checkpoint."""
    folder.mkdir()
    (folder / CONFIG).write_text(dump_config(config), "utf-8")
    (folder / "log.jsonl").touch()
    return folder


# --- Before the first checkpoint: a script that is started again always says --resume ---------


@pytest.mark.parametrize("kind", ["missing", "empty", "caches", "begun"])
def test_where_nothing_was_saved_it_starts_and_says_so(kind, tmp_path, capsys):
    folder, config = tmp_path / "run", settings()
    if kind == "begun":
        begun(folder, config)
    elif kind != "missing":
        (folder / "catalog" if kind == "caches" else folder).mkdir(parents=True)
    assert judge(folder, config) == Contract.of(config, FACTS), "another contract"
    said = f"{folder}: no checkpoint yet, starting from the beginning\n"
    assert capsys.readouterr().err == said, f"{kind}: expected {said!r}"
    assert folder.exists() == (kind != "missing"), "looking made a folder"


def test_it_trains_from_there(tmp_path):
    run = Run(tmp_path, num_steps=2).run(resume=True)
    assert list(run.log("loss")) == [1, 2], f"steps {list(run.log('loss'))}, expected both"


def test_the_folder_of_another_configuration_is_refused(tmp_path, capsys):
    folder = begun(tmp_path / "run", settings())
    config = settings(batch_size=8, log_every=2)
    with pytest.raises(UserError, match="not the run that was started there") as caught:
        judge(folder, config)
    said = str(caught.value)
    assert "training.batch_size 4 → 8. Take that back" in said, f"{said}: names no key"
    assert str(folder) in said, f"{said}: does not name the folder"
    judge(folder, config, allow_changes=True)
    said = capsys.readouterr().err
    assert "training.batch_size 4 → 8" in said, f"{said!r}: expected what is different"


def test_the_folder_of_the_other_trainer_is_refused(tmp_path):
    folder = begun(tmp_path / "run", DiffusionRun())
    with pytest.raises(UserError, match="run of train-diffusion, not of train-vae"):
        judge(folder, settings(), allow_changes=True)


@pytest.mark.parametrize("name", ["model", "lora.safetensors"])
def test_a_finished_run_without_checkpoints_is_not_trained_over(name, tmp_path):
    (tmp_path / name).mkdir()
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}: finished, with no checkpoint")):
        check_run(tmp_path, resume=True)


# --- A text encoder that was read and does not train -------------------------------------------

STEPS = 2


def write_clip(folder, seed=0):
    keras.utils.set_random_seed(seed)
    encoder = build_text_encoder(hidden_dim=16, num_layers=1, num_heads=2, context_length=16)
    parts = folder / "text_encoder", folder / "tokenizer"
    write_text_encoder(encoder, CLIPTokenizer(16), *parts)


@pytest.fixture(scope="module")
def clip_run(tmp_path_factory, bfloat16):
    """A folder with `clip` and a `run` of two steps on it, what goes on with it, its model.

    It learns by flow matching, so that this goes on as it would have, too.
    """
    lab = tmp_path_factory.mktemp("lab")
    few_emoji(lab / "data")
    autoencoder = tiny_autoencoder(channel_multipliers=(1, 2), num_res_blocks=0)
    LatentDiffusion(autoencoder, None, None, image_size=SIZE).save(lab / "vae")
    write_clip(lab / "clip")
    unet = {**UNET, "channel_multipliers": (1,), "attention_levels": ()}
    del unet["zero_init"]
    training = {
        "num_steps": STEPS,
        "batch_size": 4,
        "warmup_steps": 0,
        "checkpoint_every": 1,
        "precision": "bfloat16",
        "timestep_sampling": "logit_normal",
    }
    config = {
        "data": {"resolution": SIZE[0], "validation_fraction": 0},
        "unet": unet,
        "text": {"source": "clip", "path": str(lab / "clip")},
        "schedule": {"kind": "flow", "prediction_type": "velocity", "shift": 2.0},
        "training": training,
        "samples": {
            "prompts": ["red apple"],
            "images_per_prompt": 1,
            "num_steps": 1,
            "sampler": "euler",
        },
    }
    sources = parse_config(DiffusionRun, config), lab / "data", lab / "vae"

    def train(out, resume=False):
        options = {"latents": lab / "latents", "quiet": True, "resume": resume}
        with step_by_step():
            return train_diffusion(*sources, out, **options)

    return lab, train, train(lab / "run")


def state_of(run, step=STEPS):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


@pytest.mark.slow
def test_a_text_encoder_that_does_not_train_is_read_again(clip_run, tmp_path):
    """It stays out of checkpoints, and the run goes on with it to the same bytes."""
    lab, train, model = clip_run
    run = lab / "run"
    held = sum(array.size for array in state_of(run).values())
    trains = model.unet.count_params()
    assert held == 4 * trains + 1, f"{held} numbers for {trains} that train"
    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("model", f"step-{STEPS:08d}*"))
    train(again, resume=True)
    one, other = state_of(run), state_of(again)
    unequal = [key for key, array in one.items() if array.tobytes() != other[key].tobytes()]
    assert not unequal, f"after resuming {unequal[:5]} differ"
    parts = (read_model_folder(folder).parts["text_encoder"] for folder in (run, again))
    one, other = (part["digest"] for part in parts)
    assert one == other, "another text encoder in the finished model"


def test_another_text_encoder_in_the_same_place_is_refused(clip_run, tmp_path):
    lab, train, model = clip_run
    shutil.copytree(lab / "run", tmp_path / "again")
    write_clip(lab / "clip", seed=1)
    with pytest.raises(UserError, match="not the run that stopped at step 2") as caught:
        train(tmp_path / "again", resume=True)
    write_clip(lab / "clip")
    known = weights_digest(model.text_encoder)[:SHOWN]
    assert f"text encoder {known} → " in str(caught.value), f"{caught.value}: not named"


# --- Pixels --------------------------------------------------------------------------------


PIXELS = {"resolution": 8, "flip": True, "background": "random"}
SIGNALS = {"resolution": 8, "spatial_dims": 1}


def pixel_run(lab, out, data=PIXELS, **options):
    """Plan of two steps on the pixels of ten emoji, mirrored, over random colours."""
    config = {
        "data": {**data, "validation_fraction": 0},
        "unet": {"channels": 8, **QUICK_UNET, "num_res_blocks": 1, "norm_groups": 4},
        "text": {"source": "none"},
        "training": {
            "num_steps": STEPS,
            "batch_size": 4,
            "warmup_steps": 0,
            "checkpoint_every": 1,
            "precision": "float32",
        },
        "samples": {"images_per_prompt": 1, "num_steps": 1},
    }
    return plan_diffusion(config, lab / "data", "none", out, quiet=True, **options)


@pytest.mark.parametrize("data", [PIXELS, SIGNALS], ids=["pixels", "signals"])
@step_by_step()
def test_a_run_on_pixels_goes_on_to_the_same_bytes(tmp_path, monkeypatch, data):
    """Whether pixels, or samples of signals, are kept or decoded at each use."""
    if data is PIXELS:
        few_emoji(tmp_path / "data")
    else:
        few_signals(tmp_path / "data", 8, 9, 10, 11)
    whole, again = tmp_path / "whole", tmp_path / "again"
    train_planned(pixel_run(tmp_path, whole, data))
    left = {path.name for path in whole.iterdir()}
    assert "catalog" in left, f"{left}: expected the catalog"
    assert "latents" not in left, f"{left}: expected no latents"
    shutil.copytree(whole, again, ignore=shutil.ignore_patterns("model", f"step-{STEPS:08d}*"))
    monkeypatch.setattr(pixels, "SHARE_OF_MEMORY", 0)
    train_planned(pixel_run(tmp_path, again, data, resume=True))
    one, other = state_of(whole), state_of(again)
    unequal = [key for key, array in one.items() if array.tobytes() != other[key].tobytes()]
    assert not unequal, f"after resuming {unequal[:5]} differ"
    assert "pixels     trained on them" in describe(again), "expected it to say what it trained on"


@step_by_step()
def test_an_image_that_breaks_while_it_trains_is_named(tmp_path):
    few_emoji(tmp_path / "data")
    plan = pixel_run(tmp_path, tmp_path / "run")
    for path in (tmp_path / "data").rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match=r"\.png: No such file.*; mend or remove it \(no"):
        train_planned(plan)


# --- Two processes -----------------------------------------------------------------------------

CLAIM = """
import sys
from pathlib import Path
from latentddpm.utils.locks import require_lock
with require_lock(Path(sys.argv[1]), "trains"):
    print("inside", flush=True)
    sys.stdin.read()
"""


def other_process(folder):
    """One that is in a run folder until its stdin ends."""
    return subprocess.Popen(
        [sys.executable, "-c", CLAIM, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_that_another_process_trains_in_is_refused(resume, tmp_path):
    run = Run(tmp_path, num_steps=2)
    with other_process(tmp_path) as other:
        assert other.stdout.readline() == "inside\n", f"{other.communicate()}"
        with pytest.raises(UserError, match="another process trains here") as caught:
            run.run(resume=resume)
        assert str(tmp_path) in str(caught.value), f"{caught.value}: does not name the folder"
        assert not (tmp_path / CONFIG).exists(), "the second one wrote into the run"
        other.kill()
    run.run(resume=resume)  # what was killed leaves no lock behind


def test_who_trains_keeps_others_out(tmp_path):
    answers = []

    def try_it(step, *_):
        if step == 2:
            answers.append(other_process(tmp_path).communicate())

    Run(tmp_path, try_it, num_steps=3).run()
    out, errors = answers[0]
    assert not out, "another process got in"
    assert "another process trains here" in errors, f"{errors[-300:]!r}"


def test_where_nothing_can_be_locked_it_goes_on_with_a_warning(tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    said = f"{tmp_path}: cannot be locked .No locks available.; see that no other process trains"
    entered = False
    with pytest.warns(UserWarning, match=said), require_lock(tmp_path, "trains"):
        entered = True
    assert entered, "expected to go on"
