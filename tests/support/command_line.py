"""The command line as tests call it, and the small runs that they share."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from latentddpm.cli import main

COMMAND = Path(sys.executable).with_name("latentddpm")
TRAINING = {
    "num_steps": 8,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "warmup_steps": 0,
    "ema_momentum": 0.5,
    "precision": "float32",
    "log_every": 1,
    "validate_every": 8,
    "checkpoint_every": 4,
}
DATA = {"resolution": 32, "flip": True, "validation_fraction": 0.2}
VAE_CONFIG = {
    "data": DATA,
    "autoencoder": {
        "channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "norm_groups": 4,
    },
    "training": TRAINING,
}
LDM_CONFIG = {
    "data": DATA,
    "unet": {
        "channels": 16,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "attention_levels": [1],
        "num_heads": 2,
        "norm_groups": 4,
    },
    "text": {
        "source": "scratch",
        "context_length": 16,
        "hidden_dim": 16,
        "num_layers": 1,
        "num_heads": 2,
    },
    "training": TRAINING,
    "samples": {"prompts": ["red apple"], "images_per_prompt": 2, "num_steps": 2},
}


# Runs command lines one after the other; prints for each the exit code, stderr, and whether a
# module has been imported by then.
EARLY = """
import contextlib, io, json, sys, latentddpm.cli
module, *lines = json.loads(sys.argv[1])
for line in lines:
    errors, code = io.StringIO(), None
    with contextlib.redirect_stderr(errors):
        try: latentddpm.cli.main(line)
        except SystemExit as end: code = end.code
    print(json.dumps([code, errors.getvalue(), module in sys.modules]))
"""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


def call(*arguments):
    """The command in this process."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def start(*arguments, **options):
    """The installed command in a process of its own, without the settings of our tests."""
    ours = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")
    process = subprocess.run(
        [str(COMMAND), *map(str, arguments)],
        env={key: value for key, value in os.environ.items() if key not in ours},
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )
    return Done(process.returncode, process.stdout, process.stderr)


def refused_before(module, lines, cwd):
    """Command lines, in a new process, are refused in one line before `module` is imported."""
    lines = [[str(argument) for argument in line] for line in lines]
    process = subprocess.run(
        [sys.executable, "-c", EARLY, json.dumps([module, *lines])],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    found = [json.loads(line) for line in process.stdout.splitlines()]
    assert len(found) == len(lines), f"expected {len(lines)} answers: {process.stderr}"
    for line, (code, errors, imported) in zip(lines, found, strict=True):
        assert (code, imported) == (2, False), (
            f"{line}: expected exit code 2 before {module}, got {code}, imported: {imported}"
        )
        assert errors.count("\n") == 1, f"{line}: expected one line, got {errors!r}"


def succeeds(done):
    assert done.code == 0, f"expected exit code 0, got {done.code}: {done.stderr}"
    return done


def refused(done, *words, code=2):
    """One line on stderr that holds `words`, nothing on stdout, and the exit code.

    Lines that end in "…" say what is being done: which of them appear is a matter of time.
    """
    assert done.code == code, f"expected exit code {code}, got {done.code}: {done.stderr}"
    lines = [line for line in done.stderr.splitlines() if not line.endswith("…")]
    assert len(lines) == 1, f"expected one line on stderr, got {lines}"
    assert lines[0].startswith("latentddpm: "), f"expected the program's name first: {lines[0]}"
    assert not done.stdout, f"expected nothing on stdout, got {done.stdout!r}"
    missing = [word for word in words if str(word) not in lines[0]]
    assert not missing, f"expected {missing} to be named in {lines[0]!r}"


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)
