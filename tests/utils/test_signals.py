"""Signals end a run at a safe place, with what is needed to go on."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import EMOJI
from tiny import tiny_autoencoder

from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.training.run import checkpoint
from latentddpm.utils import signals
from latentddpm.utils.files import read_json_lines

SCRIPT = """
import signal, sys, time
from latentddpm.utils import signals
with signals.listening(), signals.deferred():
    print("ready", flush=True)
    while True:
        time.sleep(0.01)
        if signals.pending() and "{obey}" == "yes":
            signals.check("saved")
"""


def run_until_ready(obey, ignored=None):
    """The script in a process of its own, which was started to ignore a signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(obey=obey)],
        preexec_fn=ignored and (lambda: signal.signal(ignored, signal.SIG_IGN)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n", "the script did not start"
    return process


def told(number=signal.SIGTERM, *, ignored=None, check="", **options):
    """A deferred block to which a signal comes; says that it came to its end."""
    with signals.deferred(**options):
        if ignored:
            os.kill(os.getpid(), ignored)
        assert signals.pending() is None, "a signal before there was one"
        os.kill(os.getpid(), number)
        assert signals.pending() == number, f"signal {number} was not noted"
        if check:
            signals.check(check)
        print("end of the block")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_a_signal_is_noted_and_obeyed_at_a_safe_place(name, capsys):
    number = getattr(signal, name)
    with signals.listening(), pytest.raises(signals.Stopped, match="saved") as caught:
        told(number, check="saved")
    assert caught.value.exit_code == 128 + number, f"{name}: {caught.value.exit_code}"
    assert not capsys.readouterr().out, "did not stop at the safe place"
    assert signals.pending() is None, "the signal outlived its block"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL, "a handler was left behind"


def test_threads_defer_nothing():
    """Two that overlap would leave each other's state behind."""
    first, second = signals.deferred(), signals.deferred()

    def overlap():
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        second.__exit__(None, None, None)

    thread = threading.Thread(target=overlap)
    thread.start()
    thread.join()
    with signals.listening(), pytest.raises(signals.Stopped, match="SIGTERM"):
        os.kill(os.getpid(), signal.SIGTERM)


def test_where_nothing_can_be_lost_it_ends_at_once():
    def endless():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
        pytest.fail("went on after SIGTERM")

    with signals.listening(), pytest.raises(signals.Stopped, match="SIGTERM"):
        endless()


@pytest.mark.parametrize(("check", "checking"), [("", True), ("together", False)])
def test_one_that_was_not_obeyed_is_raised_behind_the_block(check, checking, capsys):
    """Also where processes have to agree, and none may stop alone."""
    with signals.listening(), pytest.raises(signals.Stopped):
        told(check=check, checking=checking)
    assert capsys.readouterr().out, "the block was cut short"


def test_nothing_is_taken_over_outside():
    before = signal.getsignal(signal.SIGINT)
    signals.check()
    with signals.deferred():
        signals.check()
        assert signal.getsignal(signal.SIGINT) == before, "Ctrl-C was taken over"
    assert before is signal.default_int_handler, f"{before}: not given back"


def test_a_second_ctrl_c_ends_at_once():
    with run_until_ready("no") as process:
        process.send_signal(signal.SIGINT)
        line = process.stderr.readline() + process.stderr.readline()
        assert "SIGINT: saving" in line, f"{line!r}: expected to be told what happens"
        assert process.poll() is None, "the first one ended it"
        process.send_signal(signal.SIGINT)
        assert process.wait(300) == -signal.SIGINT, f"ended with {process.returncode}"


def test_what_was_ignored_from_the_start_stays_ignored():
    """As under `nohup … &`: Ctrl-C for another process does not stop this one, SIGTERM does."""
    with run_until_ready("yes", ignored=signal.SIGINT) as process:
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None, "SIGINT ended it"
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=600)
    assert "Stopped: saved" in errors, f"{errors!r}: expected to stop at the safe place"
    assert "SIGINT" not in errors, f"{errors!r}: SIGINT was noted"
    assert "Ctrl-C" not in errors, f"{errors!r}: Ctrl-C does nothing here"


def test_sigterm_after_an_ignored_ctrl_c_in_this_process():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with signals.listening(), pytest.raises(signals.Stopped, match="saved") as caught:
            told(signal.SIGTERM, ignored=signal.SIGINT, check="saved")
        assert caught.value.exit_code == 143, f"exit code {caught.value.exit_code}"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "Ctrl-C is no longer ignored"
    finally:
        signal.signal(signal.SIGINT, before)


def test_many_sigterms_are_as_good_as_one():
    with run_until_ready("yes") as process:
        for _ in range(3):
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=600)
    assert errors.count("saving, then") <= 1, f"{errors!r}: told more than once"
    assert "Stopped: saved" in errors, f"{errors!r}: expected to stop at the safe place"


def test_an_encoding_notes_how_far_it_came_and_goes_on(emoji_folder, tmp_path):
    catalog = open_catalog(emoji_folder, tmp_path / "catalog", quiet=True)
    autoencoder = tiny_autoencoder(num_res_blocks=0)
    encode, encoded = autoencoder.encode_on_batch, []

    def counted(images):
        encoded.append(len(images))
        if len(encoded) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return encode(images)

    autoencoder.encode_on_batch = counted

    def prepare(cache):
        return prepare_latents(
            catalog,
            cache,
            vae_digest="0" * 64,
            load_autoencoder=lambda: autoencoder,
            resolution=32,
            batch_size=8,
            quiet=True,
        )

    with signals.listening(), pytest.raises(signals.Stopped, match="16 of 40 images"):
        prepare(tmp_path / "cache")
    assert len(encoded) == 2, f"{len(encoded)} batches, expected to stop after the second"
    assert not (tmp_path / "cache" / "moments.npy").exists(), "half a cache under its final name"
    moments = prepare(tmp_path / "cache").moments
    assert len(encoded) == 5, f"{len(encoded)} batches of 8 for 40 images, some were done twice"
    whole = prepare(tmp_path / "whole").moments
    np.testing.assert_array_equal(moments, whole, "not the moments of an encoding in one go")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGUSR1", 138)])
def test_the_command_saves_the_step_it_is_in_and_says_so(name, code, tmp_path):
    config = {
        "data": {"resolution": 32},
        "autoencoder": {"channels": 8, "channel_multipliers": [1, 2], "norm_groups": 4},
        "training": {
            "num_steps": 100_000,
            "batch_size": 2,
            "log_every": 1,
            "precision": "float32",
        },
    }
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(config), "utf-8")
    run = tmp_path / "run"
    arguments = ("train-vae", "--data", EMOJI, "--config", tmp_path / "vae.yaml", "--out", run)
    command = Path(sys.executable).with_name("latentddpm")
    with subprocess.Popen(
        [command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + 600
        while not (run / "log.jsonl").is_file() and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(getattr(signal, name))
        output, errors = process.communicate(timeout=600)
    assert process.returncode == code, f"{name}: {process.returncode}, not {code}: {errors}"
    assert not output, f"{name}: {output!r} on stdout"
    newest = checkpoint.latest(run / "checkpoints")
    assert newest is not None, f"{name}: no valid checkpoint: {errors}"
    assert str(newest) in errors.splitlines()[-1], f"{name}: {errors} does not name {newest}"
    step = read_json_lines(run / "log.jsonl")[-1]["step"]
    assert newest.name == f"step-{step:08d}", f"{name}: {newest.name}, the last step was {step}"
