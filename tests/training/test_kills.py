"""Killed again and again, at random moments and while a checkpoint is written: the same bytes."""

import shutil

import pytest
import yaml
from command_line import DATA, LDM_CONFIG, VAE_CONFIG
from conftest import EMOJI
from kills import killed
from safetensors.numpy import load_file
from tiny import few_signals

from latentddpm.training.run import checkpoint
from latentddpm.utils.files import file_digest

KILLS = 27  # for each kind of run
STEPS = 1200
ADVERSARIAL = {  # the discriminator joins in on the way, and brings power iterations along
    **VAE_CONFIG,
    "autoencoder": {**VAE_CONFIG["autoencoder"], "channel_multipliers": [1, 2]},
    "adversarial": {"weight": 0.5, "start_step": 300},
    "discriminator": {"channels": 8, "num_layers": 1, "norm_groups": 4, "spectral_norm": True},
}
PIXELS = {**LDM_CONFIG, "data": {**DATA, "resolution": 16, "background": "random"}}
FLOW = {
    **LDM_CONFIG,
    "schedule": {"kind": "flow", "prediction_type": "velocity", "shift": 3.0},
    "training": {**LDM_CONFIG["training"], "timestep_sampling": "logit_normal"},
}
SIGNALS = {
    **LDM_CONFIG,
    "data": {"resolution": 16, "spatial_dims": 1, "validation_fraction": 0.2},
    "text": {"source": "none"},
    "samples": {"images_per_prompt": 2, "num_steps": 2},
}
KINDS = {
    "vae": ("train-vae", VAE_CONFIG),
    "adversarial": ("train-vae", ADVERSARIAL),
    "diffusion": ("train-diffusion", LDM_CONFIG),
    "pixels": ("train-diffusion", PIXELS),
    "signals": ("train-diffusion", SIGNALS),
    "flow": ("train-diffusion", FLOW),
}
OFTEN = {"num_steps": STEPS, "checkpoint_every": 1, "validate_every": 200, "log_every": 50}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data` and `tones`, for all runs."""
    lab = tmp_path_factory.mktemp("lab")
    shutil.copytree(EMOJI, lab / "data", ignore=shutil.ignore_patterns("*.md"))
    few_signals(lab / "tones", *range(16, 32))
    return lab


def command(lab, kind):
    """What trains a kind of run, without --out; what it stands on is made."""
    name, config = KINDS[kind]
    config = {**config, "training": {**config["training"], **OFTEN}}
    path = lab / f"{kind}.yaml"
    path.write_text(yaml.safe_dump(config), "utf-8")
    data = lab / ("tones" if kind == "signals" else "data")
    given = [name, "--data", data, "--config", path]
    if kind in ("pixels", "signals"):
        given += ["--vae", "none"]
    elif name == "train-diffusion":
        given += ["--vae", never_killed(lab, "vae"), "--latents", lab / "latents"]
    return given


def never_killed(lab, kind):
    """The folder of a run of that kind in one piece."""
    out = lab / kind
    if not out.exists():
        killed(out, 0, 0, *command(lab, kind))
    return out


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_killed_again_and_again_ends_with_the_same_bytes(kind, lab):
    whole, out = never_killed(lab, kind), lab / f"killed-{kind}"
    done = killed(out, KILLS, 1, *command(lab, kind))
    print(f"{kind}: {done}")
    assert done["kills"] == KILLS, f"{done}: the run ended before it was killed {KILLS} times"
    assert done["while_writing"], f"{done}: none of them while a checkpoint was written"
    for step in (STEPS - 1, STEPS):
        one, other = (
            load_file(run / "checkpoints" / f"step-{step:08d}" / checkpoint.STATE)
            for run in (whole, out)
        )
        unequal = [key for key, array in one.items() if array.tobytes() != other[key].tobytes()]
        assert not unequal, f"step {step}: {unequal[:5]} differ"
    for path in sorted((whole / "samples").iterdir()):
        twin = out / "samples" / path.name
        assert twin.exists(), f"the validation of {path.name} was never made up for"
        assert file_digest(twin) == file_digest(path), f"{path.name} is another picture"
    left = list((out / "checkpoints").glob(".tmp-*"))
    assert not left, f"left behind: {left}"
