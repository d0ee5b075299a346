"""A training that is stopped, diverges or runs out of disk or memory loses nothing good.

A small real network goes through `run_steps`, with everything around it that the trainers have.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess

import click
import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from click.testing import CliRunner
from limits import file_size_limit
from safetensors.numpy import load_file
from small_run import STEPS, Run, settings

from latentddpm.cli.usage import command
from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.errors import UserError
from latentddpm.training.run import checkpoint, loop
from latentddpm.training.run.callbacks import StopEvaluation
from latentddpm.training.run.contract import FREE
from latentddpm.training.run.health import PATIENCE, Diverged, less_memory
from latentddpm.utils import signals


class Hungry(keras.layers.Layer):
    """Asks for more memory than there are addresses: 2⁶² numbers for a batch of 4, which the
    allocator refuses at once; for fewer it would wait ten seconds for others to free some.
    """

    def call(self, inputs):
        count = tf.cast(tf.shape(inputs)[0], tf.int64) * 2**32
        return inputs + tf.reduce_sum(tf.fill((count, 2**28), tf.reduce_sum(inputs)))


class NotForXLA(keras.layers.Layer):
    """Its inputs, from an operation that XLA does not have."""

    def call(self, inputs):
        return tf.ensure_shape(tf.py_function(lambda x: x, [inputs], "float32"), inputs.shape)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to."""
    return Run(tmp_path_factory.mktemp("whole"), keep_checkpoints=9).run()


def assert_same_state(one, other, step=STEPS):
    states = [
        load_file(run.checkpoints / f"step-{step:08d}" / checkpoint.STATE) for run in (one, other)
    ]
    unequal = [
        key for key, array in states[0].items() if array.tobytes() != states[1][key].tobytes()
    ]
    assert not unequal, f"step {step}: {unequal} are not those of an uninterrupted run"


def kill_at(step, number=signal.SIGTERM):
    def change(now, *_):
        if now == step:
            os.kill(os.getpid(), number)

    return change


# --- Signals -------------------------------------------------------------------------------


def test_processes_leave_a_validation_at_the_same_batch(tmp_path):
    """Any of them may have been told; each asks after every batch."""
    asked = []

    def agreed(mine):
        asked.append(mine)
        return len(asked) == 3  # another process was told

    run = Run(tmp_path)
    with pytest.raises(signals.Stopped):
        run.model.evaluate(run.examples(0, 20), verbose=0, callbacks=[StopEvaluation(agreed)])
    assert asked == [False] * 3, f"asked {asked}, expected once a batch until one says yes"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_saves_the_step_and_resuming_is_exact(name, whole, tmp_path):
    run = Run(tmp_path, kill_at(10, getattr(signal, name)))
    with signals.listening(), pytest.raises(signals.Stopped, match="--resume") as caught:
        run.run()
    newest = checkpoint.latest(run.checkpoints)
    step = int(re.search(r"after step (\d+)", str(caught.value))[1])
    assert newest.name == f"step-{step:08d}", f"{caught.value}, but the newest is {newest.name}"
    assert str(newest) in str(caught.value), f"{caught.value}: the checkpoint is not named"
    assert step < STEPS, "the signal was noticed only at the end"
    run = Run(tmp_path).run(resume=True)
    assert_same_state(run, whole)
    assert run.log("loss") == whole.log("loss"), "other losses in the log"


def test_a_validation_need_not_end_first_and_is_made_up_for(whole, tmp_path):
    seen = []

    def validate(step, batches):
        def look(inputs, targets):
            seen.append(step)
            if len(seen) == 3:
                os.kill(os.getpid(), signal.SIGTERM)
            return inputs, targets

        types = (tf.float32, tf.float32)
        looked = batches.map(lambda *batch: tf.numpy_function(look, batch, types))
        return looked.map(lambda x, y: (tf.ensure_shape(x, (4, 3)), tf.ensure_shape(y, (4, 2))))

    run = Run(tmp_path, validate=validate)
    with signals.listening(), pytest.raises(signals.Stopped, match="after step 8"):
        run.run()
    assert len(seen) < 20, f"{len(seen)} of 20 batches were validated after the signal"
    assert checkpoint.latest(run.checkpoints).name == "step-00000008", "step 8 was not saved"
    assert 8 not in run.log("validation_loss"), "half a validation was logged"
    run = Run(tmp_path).run(resume=True)
    assert run.validations == [8, 16, 24], f"validated at {run.validations}, expected 8 again"
    assert_same_state(run, whole)
    assert run.log("validation_loss") == whole.log("validation_loss"), "another validation"


def test_processes_stop_together_or_not_at_all(tmp_path, monkeypatch):
    run = Run(tmp_path)
    asked = []

    def agreed(mine):
        asked.append(mine)
        return len(asked) == 7  # another process was told

    # In place of the flag that several processes sum up after every step.
    monkeypatch.setattr(loop, "any_process", lambda strategy: agreed)
    with pytest.raises(signals.Stopped, match="after step 7"):
        run.run()
    assert asked == [False] * 7, f"asked {asked}, expected once a step"
    assert checkpoint.latest(run.checkpoints).name == "step-00000007", "step 7 was not saved"


# --- Diverging -----------------------------------------------------------------------------


def spoil(*steps):
    def change(now, inputs, targets):
        if now in steps:
            targets[0, 0] = np.nan

    return change


def test_nan_ends_the_run_and_the_checkpoint_before_stays(whole, tmp_path):
    run = Run(tmp_path, spoil(9))
    with pytest.raises(Diverged, match="not finite in step 9") as caught:
        run.run()
    assert "step-00000006" in str(caught.value), f"{caught.value}: names no checkpoint"
    assert "--on-nan skip" in str(caught.value), f"{caught.value}: names no way on"
    assert checkpoint.latest(run.checkpoints).name == "step-00000006", "not the last good step"
    assert_same_state(run, whole, 6)
    weights = run.model.get_weights()
    assert all(np.isfinite(array).all() for array in weights), "NaN reached the weights"


def test_nan_can_be_skipped_and_is_counted(tmp_path):
    run = Run(tmp_path, spoil(9, 11), on_nan="skip").run()
    counts = run.log("skipped")
    assert counts[9] == 1, f"step 9: {counts.get(9)} skipped, expected 1"
    assert counts[STEPS] == 2, f"{counts[STEPS]} skipped in all, expected 2"
    assert 8 not in counts, "counted before there was anything to count"
    optimizer = run.model.optimizer
    assert int(optimizer.iterations) == STEPS - 2, (
        f"{int(optimizer.iterations)} updates in {STEPS} steps of which 2 were skipped"
    )
    weights = run.model.get_weights()
    assert all(np.isfinite(array).all() for array in weights), "NaN reached the weights"


def test_a_skipped_step_leaves_everything_as_it_was(tmp_path):
    run = Run(tmp_path, spoil(7), on_nan="skip", checkpoint_every=1, keep_checkpoints=99).run()
    states = [
        load_file(run.checkpoints / f"step-{step:08d}" / checkpoint.STATE) for step in (6, 7, 8)
    ]
    for key, array in states[0].items():
        np.testing.assert_array_equal(states[1][key], array, f"{key} changed in a skipped step")
    changed = [key for key, array in states[1].items() if (states[2][key] != array).any()]
    assert len(changed) == len(states[1]), "the step after it did not train"


def test_skipping_ends_when_nothing_else_is_left(tmp_path):
    run = Run(tmp_path, spoil(*range(4, 99)), on_nan="skip")
    with pytest.raises(Diverged, match=f"last {PATIENCE} steps up to {PATIENCE + 3}"):
        run.run()


def test_an_exploding_loss_ends_the_run(tmp_path):
    def change(now, inputs, targets):
        if 15 <= now < 1000:
            targets *= 1e3

    run = Run(tmp_path, change)
    with pytest.raises(Diverged, match=r"exploded: .* over steps 15 to 15, usual is") as caught:
        run.run()
    assert "step-00000012" in str(caught.value), f"{caught.value}: names no checkpoint"


# --- Disk and memory -----------------------------------------------------------------------


def test_a_full_disk_ends_the_run_and_the_checkpoint_before_stays(tmp_path):
    with contextlib.ExitStack() as disk:

        def fill(now, *_):
            if now == 12:
                disk.enter_context(file_size_limit(40_000))

        run = Run(tmp_path, fill, extra=[keras.layers.Dense(64) for _ in range(2)])
        with pytest.raises(OSError, match="too large") as caught:
            run.run()
    newest = checkpoint.latest(run.checkpoints)
    assert newest is not None, "the checkpoint before is gone"
    assert f"--resume goes on from {newest}" in str(caught.value), f"{caught.value}"
    assert "\n" not in str(caught.value), f"{caught.value}: expected one line"
    left = [path.name for path in run.checkpoints.iterdir() if ".tmp-" in path.name]
    assert not left, f"half-written {left}"


def test_a_read_only_folder_ends_the_run_and_the_checkpoint_before_stays(tmp_path):
    run = Run(tmp_path / "run", checkpoint_every=4).run()
    folder = run.checkpoints
    again = Run(tmp_path / "run", num_steps=STEPS + 8, checkpoint_every=4)
    mount = subprocess.run(["mount", "--bind", folder, folder], capture_output=True)
    if mount.returncode:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere, and has no right to mount here")
        folder.chmod(0o555)
    else:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
    try:
        with pytest.raises(OSError, match=r"Read-only|Permission denied") as caught:
            again.run(resume=True)
    finally:
        if mount.returncode:
            folder.chmod(0o755)
        else:
            subprocess.run(["umount", folder], check=True)
    assert "--resume goes on from" in str(caught.value), f"{caught.value}: names no way on"
    assert checkpoint.latest(folder).name == f"step-{STEPS:08d}", "the newest checkpoint is lost"
    shutil.rmtree(folder)


def test_a_file_in_the_place_of_the_folder_is_told(tmp_path):
    run = Run(tmp_path)
    run.checkpoints.touch()
    with pytest.raises(OSError, match="checkpoints: File exists; no checkpoint was written yet"):
        run.run()


def test_a_step_that_does_not_compile_is_refused_or_goes_on_without(tmp_path):
    short = {"num_steps": 2, "validate_every": 9, "jit_compile": "on"}
    with pytest.raises(UserError, match=r"jit_compile: on, but the step does not compile .*off"):
        Run(tmp_path / "told", extra=[NotForXLA()], **short).run()
    run = Run(tmp_path / "chosen", extra=[NotForXLA()], **short).run(may_fall_back=True)
    assert list(run.log("loss")) == [1, 2], f"expected both steps: {run.log('loss')}"
    kept = yaml.safe_load((run.folder / "config.yaml").read_text("utf-8"))
    assert kept["training"]["jit_compile"] == "off", "it would be tried again"
    _, contract = checkpoint.newest_contract(run.checkpoints)
    assert contract.config["training"]["jit_compile"] == "off", "expected what the step was"


def test_out_of_memory_says_what_to_lower(tmp_path):
    run = Run(tmp_path, extra=[Hungry()])
    with pytest.raises(
        MemoryError, match=r"accumulation_steps=2 .*2 examples at a time"
    ) as caught:
        run.run()
    text = str(caught.value)
    assert "training.batch_size=2" in text, f"{text}: expected half the batch size"
    assert "\n" not in text, f"{text}: expected one line"


@pytest.mark.parametrize(
    ("training", "replicas", "words", "absent"),
    [
        ({"batch_size": 32}, 1, ("with 32 examples", "accumulation_steps=2", "batch_size=16"), ()),
        ({"batch_size": 32}, 4, ("8 examples", "each of 4 replicas", "4 examples at a time"), ()),
        ({"batch_size": 32, "accumulation_steps": 8}, 1, ("accumulation_steps=16",), ()),
        ({"batch_size": 1}, 1, ("precision=bfloat16",), ("accumulation_steps=", "batch_size=")),
        ({"batch_size": 2, "precision": "bfloat16"}, 1, ("batch_size=1",), ("precision=",)),
    ],
)
def test_what_to_lower_follows_from_the_run(training, replicas, words, absent):
    text = less_memory(settings(**training), replicas)
    assert all(word in text for word in words), f"{text!r}, expected {words}"
    assert not any(word in text for word in absent), f"{text!r}, expected none of {absent}"


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("batch_size", [1, 32])
@pytest.mark.parametrize("kind", [AutoencoderRun, DiffusionRun])
def test_what_it_advises_exists_and_may_be_changed(kind, batch_size, recompute):
    unet = {"unet": {"recompute": recompute}} if kind is DiffusionRun else {}
    config = kind.model_validate({"training": {"batch_size": batch_size}, **unet})
    advice = less_memory(config).partition("; ")[2]
    free, _, rest = advice.partition("--allow-changes")
    named = [re.findall(r"(\w+\.\w+)(?:=(\w+))?", part) for part in (free, rest)]
    settings = config.model_dump()
    for key, value in named[0] + named[1]:
        section, name = key.split(".")
        assert name in settings[section], f"{key} is no setting of {kind.__name__}: {advice}"
        now = str(settings[section][name]).lower()
        assert value != now, f"{key} is {now} already: {advice}"
    refused = [key for key, _ in named[0] if not key.startswith(FREE)]
    assert not refused, f"{refused} would be refused on --resume: {advice}"
    assert ("unet.recompute" in free) == (kind is DiffusionRun and not recompute), advice


# --- What the process says -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (signals.Stopped(signal.SIGTERM, "stopped after step 3"), 143, "stopped after step 3"),
        (signals.Stopped(signal.SIGUSR1), 138, "SIGUSR1"),
        (signals.Stopped(signal.SIGINT), 130, "SIGINT"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Diverged("not finite in step 3"), 1, "not finite in step 3"),
        (MemoryError("lower the batch size"), 1, "lower the batch size"),
        (tf.errors.ResourceExhaustedError(None, None, "OOM"), 1, "--batch-size"),
        (OSError(28, "No space left on device", "x.png"), 1, "x.png: No space left on device"),
    ],
)
def test_exit_codes(error, code, words):
    @click.command()
    @click.option("--batch-size", type=int)
    @command
    def fails(quiet, batch_size):
        raise error

    done = CliRunner().invoke(fails, [])
    assert done.exit_code == code, f"{error!r}: exit code {done.exit_code}, expected {code}"
    assert done.stderr.count("\n") == 1, f"{error!r}: expected one line, got {done.stderr!r}"
    assert words in done.stderr, f"{error!r}: {done.stderr!r}, expected {words!r}"
