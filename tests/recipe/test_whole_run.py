"""The command `train` with tiny networks: its plan, stages, resuming, and a time that is up."""

import os
import shlex
import shutil
import signal
import threading
import time

import pytest
import yaml
from command_line import call, refused, succeeds
from conftest import EMOJI
from kills import killed
from tiny import few_emoji, step_by_step

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.recipe import rules

STEPS = 3
UNET = {
    **{"unet.channels": 8, "unet.channel_multipliers": [1], "unet.attention_levels": []},
    **{"unet.num_heads": 2, "unet.norm_groups": 4, "unet.dropout": 0.0},
    **{"unet.num_res_blocks": 1},
    **{"text.hidden_dim": 8, "text.num_layers": 1, "text.num_heads": 2},
    **{"samples.images_per_prompt": 1, "samples.num_steps": 1, "data.resolution": 16},
    **{"training.batch_size": 2, "training.precision": "float32", "training.num_steps": STEPS},
    **{"training.validate_every": STEPS, "training.checkpoint_every": 1},
}
OWN = {
    **{"autoencoder.channels": 8, "autoencoder.channel_multipliers": [1, 1]},
    **{"autoencoder.norm_groups": 4, "data.resolution": 16, "training.batch_size": 2},
    **{"training.precision": "float32", "training.num_steps": 2, "training.validate_every": 2},
}


def options(**parts):
    """`--set` of each training."""
    for part, settings in parts.items():
        for key, value in settings.items():
            yield from ("--set", f"{part}.{key}={value}")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data`, twelve emoji, and `run`, a finished run on their pixels."""
    lab = tmp_path_factory.mktemp("lab")
    (lab / "data").mkdir()
    few_emoji(lab / "data", 12)
    with step_by_step():
        command = ["train", "--data", lab / "data", "--out", lab / "run", "--vae", "none"]
        done = succeeds(call(*command, *options(diffusion=UNET)))
    (lab / "said").write_text(done.stderr, "utf-8")
    assert done.stdout == f"{lab / 'run' / 'model'}\n", "stdout has the model's folder alone"
    return lab


def planned(lab, out):
    """A folder with the plan of `lab / "run"` that nothing has followed yet."""
    out.mkdir()
    for name in ("plan.yaml", "diffusion.yaml"):
        shutil.copy(lab / "run" / name, out / name)
    return out


def digests(model):
    """Of the weights; the files hold the time they were written at."""
    return {name: part["digest"] for name, part in read_model_folder(model).parts.items()}


def test_a_run_ends_in_a_model_and_says_what_comes_next(lab):
    model = read_model_folder(lab / "run")
    assert set(model.parts) == {"unet", "text_encoder"}
    assert model.path == lab / "run" / "model"
    said = (lab / "said").read_text("utf-8")
    assert "pixels, without an autoencoder: as asked" in said
    assert f"{STEPS} steps of 2" in said, "the plan comes first"
    assert f"latentddpm generate --model {lab / 'run'}" in said
    assert "rough shapes" in said, "so few steps draw little, and the plan says so"
    assert "12 readable images" in said, "the doctor looked first"


def test_info_describes_a_whole_run(lab):
    text = succeeds(call("info", lab / "run")).stdout
    assert "train, quality draft" in text
    assert f"command    train-diffusion, {STEPS} steps" in text
    assert f"model      finished, in {lab / 'run' / 'model'}" in text


def test_the_plan_repeats_the_run_by_the_other_command(lab, tmp_path):
    settings = lab / "run" / "diffusion.yaml"
    written = load_config(DiffusionRun, settings)
    assert written.training.num_steps == STEPS
    assert written.unet.channels == 8
    (line,) = yaml.safe_load((lab / "run" / "plan.yaml").read_text("utf-8"))["commands"]
    assert line.startswith("latentddpm train-diffusion ")
    command = [*shlex.split(line)[1:-1], tmp_path / "run", "--dry-run"]
    repeated = yaml.safe_load(succeeds(call(*command)).stdout)
    run = yaml.safe_load((lab / "run" / "diffusion" / "config.yaml").read_text("utf-8"))
    for name, settings in run.items():
        changed = {"jit_compile"} if name == "training" else {"channels", "bit_depth"}
        if isinstance(settings, dict) and name in ("data", "training"):
            settings = {key: value for key, value in settings.items() if key not in changed}
            repeated[name] = {k: v for k, v in repeated[name].items() if k in settings}
        assert repeated[name] == settings, f"{name}: expected what the run was trained with"


def stop_after(seen, out):
    """Send SIGTERM once `seen` is there in `out`, as a cluster does."""

    def wait():
        while not list(out.glob(seen)):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def test_a_stopped_run_goes_on_to_the_same_bytes(lab, tmp_path):
    out = planned(lab, tmp_path / "run")
    waiting = stop_after("diffusion/checkpoints/step-00000002", out)
    with step_by_step():
        stopped = call("train", "--out", out, "--resume", "--quiet")
        waiting.join()
        assert stopped.code == 143, f"expected the signal's code: {stopped}"
        assert not (out / "model").exists()
        refused(call("train", "--data", lab / "data", "--out", out), "--resume")
        assert "not finished" in succeeds(call("info", out)).stdout
        done = succeeds(call("train", "--out", out, "--resume", "--quiet"))
    assert done.stderr == "", "--quiet says nothing"
    assert digests(out / "model") == digests(lab / "run" / "model"), "expected the same bytes"


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(lab):
    often = {**UNET, "training.num_steps": 300, "training.validate_every": 100}
    command = ["train", "--data", lab / "data", "--vae", "none", *options(diffusion=often)]
    whole, out = lab / "whole", lab / "killed"
    killed(whole, 0, 0, *command)
    done = killed(out, 9, 1, *command)
    assert done["kills"] == 9, f"{done}: the run ended before it was killed so often"
    assert digests(out / "model") == digests(whole / "model"), "expected the same bytes"
    pictures = {path.name for path in (whole / "diffusion" / "samples").iterdir()}
    assert {path.name for path in (out / "diffusion" / "samples").iterdir()} == pictures


def test_a_finished_run_is_not_repeated(lab):
    before = digests(lab / "run" / "model")
    began = time.monotonic()
    done = succeeds(call("train", "--out", lab / "run", "--resume"))
    assert time.monotonic() - began < 5, "nothing is left to do"
    assert done.stdout.strip() == str(lab / "run" / "model")
    assert digests(lab / "run" / "model") == before


@pytest.mark.slow
def test_a_run_whose_time_is_up_ends_early_with_a_model(lab, tmp_path):
    out = planned(lab, tmp_path / "run")
    plan = yaml.safe_load((out / "plan.yaml").read_text("utf-8"))
    plan["goal"]["seconds"] = 1.0
    plan["times"]["unet"] = {"step": 0.0, "compiling": 0.0}
    (out / "plan.yaml").write_text(yaml.safe_dump(plan), "utf-8")
    with step_by_step():
        done = succeeds(call("train", "--out", out, "--resume"))
    assert f"is up: ends at step 1 of {STEPS}" in done.stderr
    assert "unet" in read_model_folder(out).parts
    text = succeeds(call("info", out)).stdout
    assert "in 1s" in text


@pytest.mark.slow
def test_an_autoencoder_of_its_own_comes_first(lab, tmp_path):
    own = lab.parent / "own"
    command = ["train", "--data", lab / "data", "--out", own, "--quality", "best"]
    settings = options(vae=OWN, diffusion=UNET)
    with step_by_step():
        lines = succeeds(call(*command, *settings, "--plan")).stdout.splitlines()
        assert [line.split()[1] for line in lines] == ["train-vae", "train-diffusion"]
        assert load_config(AutoencoderRun, own / "vae.yaml").training.num_steps == 2
        assert not (own / "vae").exists(), "--plan trains nothing"
        out = tmp_path / "stopped"
        shutil.copytree(own, out)
        succeeds(call("train", "--out", own, "--resume", "--quiet"))
        waiting = stop_after("vae/checkpoints/step-00000001", out)
        assert call("train", "--out", out, "--resume", "--quiet").code == 143
        waiting.join()
        succeeds(call("train", "--out", out, "--resume", "--quiet"))
    assert set(read_model_folder(own).parts) == {"vae", "unet", "text_encoder"}
    assert digests(out / "model") == digests(own / "model"), "expected the same bytes"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "least", "start", "side"),
    [
        ([], 19.0, "emoji-128", 64),
        ([], 99.0, "emoji-128", 128),
        (["--set", "diffusion.data.resolution=96"], 19.0, "emoji-128", 96),
        (["--init", "none"], 19.0, None, 128),
        (["--set", "diffusion.unet.channels=32"], 19.0, None, 128),
    ],
    ids=["quick", "too soft at 64", "as set", "anew", "of other sizes"],
)
def test_the_unet_that_ships_is_trained_on_at_a_side_that_fits(
    given, least, start, side, tmp_path, monkeypatch
):
    monkeypatch.setattr(rules, "READY_LEAST", least)
    out = tmp_path / "planned"
    done = succeeds(call("train", "--data", EMOJI, "--out", out, "--plan", *given))
    config = load_config(DiffusionRun, out / "diffusion.yaml")
    assert (config.init or None, config.data.resolution) == (start, side), done.stderr
    assert config.text.trainable is (True if start else None)
    if start:
        assert "--init none begins anew" in done.stderr, "it says how not to"


def test_wrong_input_is_one_line(lab, tmp_path):
    out, data = tmp_path / "run", EMOJI
    refused(call("train", "--out", out), "--data", "no plan")
    refused(call("train", "--data", data, "--out", out, "--time", "soon"), "--time", "1h30m")
    refused(call("train", "--data", data, "--out", out, "--quality", "god"), "good")
    wrong = call("train", "--data", data, "--out", out, "--set", "training.num_steps=3")
    refused(wrong, "--set", "diffusion.section.key=value")
    refused(call("train", "--data", data, "--out", out, "--strategy", "multi-worker"), "--plan")
    finished = ("train", "--out", lab / "run", "--resume")
    refused(call(*finished, "--quality", "best"), "--quality best", "draft")
    refused(call(*finished, "--data", data), "--data")
    refused(call("train", "--data", data, "--out", lab / "run"), "already holds a run")
    refused(call(*finished, "--plan"), "--plan wants another --out")
    other = tmp_path / "other"
    (other / "checkpoints").mkdir(parents=True)
    refused(call("train", "--data", data, "--out", other), "another command")
    (out / "x").mkdir(parents=True)
    (out / "plan.yaml").write_text("data: 3\n", "utf-8")
    refused(call("train", "--out", out, "--resume"), "plan.yaml", "damaged")
    refused(call("train", "--data", tmp_path / "none", "--out", tmp_path / "new"), "none")
