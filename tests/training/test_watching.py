"""What a run says of itself: losses by quartile of the timesteps, the log, the bar."""

import fcntl
import json
import math
import os
import pty
import struct
import sys
import termios
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.ops import convert_to_numpy
from tiny import UNET
from train_small import data, small

from latentddpm.config import DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError
from latentddpm.models.denoisers.unet import UNet
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.run.callbacks import EverySteps
from latentddpm.training.run.loop import open_log
from latentddpm.training.run.progress import Progress, run_summary
from latentddpm.training.run.run import Run
from latentddpm.training.run.runlog import RunLog
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.utils import console
from latentddpm.utils.console import say
from latentddpm.utils.files import read_json_lines

T = 1000
EDGES = [0, 249, 250, 499, 500, 749, 750, 999]


# --- Quartiles -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(0)
    return UNet(**UNET)


def eager_trainer(unet):
    trainer = DenoisingTrainer(unet, NoiseSchedule(num_train_timesteps=T))
    trainer.compile("sgd", run_eagerly=True)
    return trainer


def examples(timesteps, seed=0):
    draw = np.random.default_rng(seed)
    shape = (len(timesteps), 4, 4, 4)
    latents, target = (draw.standard_normal(shape).astype("float32") for _ in range(2))
    return {"noisy_latents": latents, "timesteps": np.array(timesteps, "int32")}, target


def test_a_quartile_has_the_mean_of_its_own_examples(unet):
    """Against NumPy, over two batches: a mean of means would weigh their examples unlike."""
    trainer = eager_trainer(unet)
    timesteps = [*EDGES, 0, 1, 2, 600]
    x, y = examples(timesteps)
    weight = np.linspace(0.5, 2, len(y), dtype="float32")[:, None, None]
    batches = tf.data.Dataset.from_tensor_slices((x, y, weight)).batch(len(EDGES))
    logs = trainer.evaluate(batches, verbose=0, return_dict=True)
    squares = np.square(convert_to_numpy(unet(x)).astype("float64") - y) * weight[..., None]
    errors = squares.mean(axis=(1, 2, 3))
    for quarter in range(4):
        inside = [e for e, t in zip(errors, timesteps, strict=True) if t * 4 // T == quarter]
        found = logs[f"loss_q{quarter + 1}"]
        assert found == pytest.approx(np.mean(inside), rel=1e-5), f"quartile {quarter + 1}"
    assert logs["loss"] == pytest.approx(errors.mean(), rel=1e-5), (
        "expected the loss to be what the quartiles come to together"
    )


def test_an_empty_quartile_is_nan_and_another_ones_nan_stays_where_it_is(unet):
    trainer = eager_trainer(unet)
    x, y = examples([10, 20, 300])
    y[2] = np.inf
    logs = trainer.test_on_batch(x, y, return_dict=True)
    finite = {name for name, value in logs.items() if np.isfinite(value)}
    assert finite == {"loss_q1"}, f"expected a finite loss of the first quartile alone: {logs}"


def test_a_unet_alone_is_a_plain_keras_model(unet):
    unet.compile("sgd", loss="mse", run_eagerly=True)
    logs = unet.test_on_batch(*examples([10]), return_dict=True)
    assert set(logs) == {"loss"}, f"expected Keras's one loss, got {set(logs)}"


# --- The log -------------------------------------------------------------------------------


def strict(text):
    """JSON as the standard has it, without Python's NaN and Infinity."""

    def refuse(word):
        raise AssertionError(f"expected JSON, found {word} in {text!r}")

    return json.loads(text, parse_constant=refuse)


def test_the_log_is_json_whatever_the_numbers(tmp_path):
    log = RunLog(tmp_path)
    log.write(1, {"loss": 0.12345678, "loss_q4": math.nan, "gradient_norm": math.inf})
    with open(log.path, "a", encoding="utf-8") as stream:
        stream.write('{"step": 2, "loss": NaN}\n')  # of an earlier version
    RunLog(tmp_path, first=2)
    first, second = map(strict, log.path.read_text("utf-8").splitlines())
    expected = {"step": 1, "loss": 0.123457, "loss_q4": None, "gradient_norm": None}
    assert first == expected, f"expected six digits, and null for what is not finite: {first}"
    assert second == {"step": 2, "loss": None}, f"expected old lines mended, got {second}"


# --- The terminal --------------------------------------------------------------------------


class Terminal:
    """80 columns, as `sys.stderr`; what stands on it in the end."""

    def __init__(self):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.stream = open(slave, "w", encoding="utf-8")  # noqa: SIM115

    def lines(self):
        self.stream.flush()
        text = os.read(self.master, 1 << 20).decode()
        self.stream.close()
        os.close(self.master)
        return [self.seen(line) for line in text.split("\n")]

    def seen(self, line):
        """What is left of a line that was written over after each carriage return."""
        columns = []
        for piece in line.split("\r"):
            assert len(piece) <= 80, f"expected 80 columns, a line would wrap: {piece!r}"
            columns[: len(piece)] = piece
        return "".join(columns).rstrip()


def train(folder, actions, monkeypatch):
    """24 steps that are logged every 4; `actions` are called every 4 as well. The terminal."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal.stream)
    model = small()
    log = RunLog(folder)
    callbacks = [Progress(log, 0, 24, 6, 4, quiet=False), EverySteps(actions, 0, 24, 4)]
    batches = tf.data.Dataset.from_tensors(data(6)).repeat(24)
    model.fit(batches, verbose=0, callbacks=callbacks, shuffle=False)
    return terminal.lines(), read_json_lines(log.path)


def test_the_bar_fits_and_lines_stay_whole_above_it(tmp_path, monkeypatch):
    lines, _ = train(tmp_path, lambda step: say(f"a note at step {step}"), monkeypatch)
    lines = [line for line in lines if not line.endswith("…")]  # of a slow first step
    expected = [f"a note at step {step}" for step in range(4, 25, 4)]
    assert lines[:6] == expected, f"expected the notes, each in a line of its own: {lines}"
    assert lines[6].startswith("100%|"), f"expected the bar below them: {lines}"
    for part in ("24/24", "<00:00", "images/s", "loss ", "lr 1.0e-02"):
        assert part in lines[6], f"expected {part!r} in the bar: {lines[6]}"
    assert lines[7:] == [""], f"expected nothing below the bar: {lines}"


def test_the_rate_leaves_out_what_is_done_between_steps(tmp_path, monkeypatch):
    began = time.perf_counter()
    _, lines = train(tmp_path, lambda step: time.sleep(0.05), monkeypatch)
    most = time.perf_counter() - began - 6 * 0.05
    counted = sum(6 * 4 / line["examples_per_second"] for line in lines[1:])
    assert counted < most, f"{counted:.2f} s for the steps of a run of {most:.2f} s and sleep"
    # The first of 24 steps compiles: the first line is about three.
    assert lines[0]["examples_per_second"] > 0, f"expected a rate of the later steps: {lines[0]}"


@pytest.mark.parametrize(("total", "said"), [(10**9, True), (8, False)])
def test_a_long_run_is_called_so_once(tmp_path, capsys, total, said):
    model = small()
    progress = Progress(RunLog(tmp_path), 0, total, 6, 4, quiet=False, advice="take fewer")
    batches = tf.data.Dataset.from_tensors(data(6)).repeat(8)
    model.fit(batches, verbose=0, callbacks=[progress], shuffle=False)
    found = [line for line in capsys.readouterr().err.splitlines() if "a long run" in line]
    assert len(found) == said, f"{total} steps: {found}"
    for words in ("steps at", "images/s take", "; take fewer") if said else ():
        assert words in found[0], f"{found[0]!r}: expected {words!r}"


def test_a_slow_first_step_is_explained_and_nothing_is_said_after_a_failure(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.05)
    progress = Progress(RunLog(tmp_path), 0, 8, 6, 4, quiet=False)
    progress.on_train_begin()
    time.sleep(0.3)
    progress.close()
    assert "compiling the first step …" in capsys.readouterr().err, "expected what is being done"
    monkeypatch.setattr(console, "PATIENCE_SECONDS", 0.2)
    progress = Progress(RunLog(tmp_path), 0, 8, 6, 4, quiet=False)
    progress.on_train_begin()
    progress.close()
    time.sleep(0.4)
    assert "compiling" not in capsys.readouterr().err, "expected nothing once it has ended"


def test_a_run_introduces_itself(unet):
    training = {"num_steps": 50, "accumulation_steps": 2, "precision": "float32"}
    config = parse_config(DiffusionRun, {"training": training})
    parts = {"UNet": unet, "text encoder": None, "autoencoder": small()}
    run = Run(config, Path("runs/x"))
    lines = run_summary(run, eager_trainer(unet), parts, (400, 7)).splitlines()
    count = f"{unet.count_params() / 1e3:.3g} k"
    assert lines == [
        f"parameters UNet {count}, autoencoder 0.058 k (frozen)",
        "steps      50 of 32 images in 2 micro-batches, 4 epochs of 400 (and 7 validation images)",
        f"device     {lines[2].split()[1]} float32, adamw, EMA 0.9999",
        "run        runs/x (log.jsonl, tensorboard, samples, checkpoints)",
    ], f"got {lines}"


# --- Weights & Biases ----------------------------------------------------------------------


def test_without_wandb_a_run_that_wants_it_is_refused_before_anything_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = parse_config(DiffusionRun, {"training": {"wandb": "emoji"}})
    with pytest.raises(UserError, match="pip install wandb"):
        train_diffusion(config, tmp_path, None, tmp_path / "run")
    assert not (tmp_path / "run").exists(), "expected nothing to be made"


def wandb_history(path):
    """The id, the project and the rows of an offline run, kept in LevelDB's format of logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record, rows = path.read_bytes(), 7, b"", []
    while place < len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, part = struct.unpack("<HB", data[place + 4 : place + 7])
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # whole, or the last piece
            parsed, record = Record.FromString(record), b""
            if parsed.HasField("run"):
                run = parsed.run
            if parsed.HasField("history"):
                items = parsed.history.item
                rows.append({i.key or i.nested_key[0]: json.loads(i.value_json) for i in items})
    return (run.run_id, run.project), rows


@pytest.mark.slow  # starts W&B's own program twice
def test_wandb_holds_the_history_offline_and_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    config = parse_config(DiffusionRun, {"training": {"wandb": "emoji"}})
    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with open_log(Run(config, tmp_path, quiet=True), first) as log:
            for step in steps:
                log.write(step, {"loss": 1.0 / step, "loss_q1": math.nan})
                log.write(step, {"validation_loss": float(step)})
            log.picture(steps[-1], "samples", np.zeros((4, 4, 3), "uint8"))
    paths = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    (run, rows), (same, more) = map(wandb_history, paths)
    assert run == same == ((tmp_path / "wandb" / "id").read_text("utf-8"), "emoji"), (
        f"expected one run of W&B in two pieces, got {run} and {same}"
    )
    found = [(row["_step"], row["loss"], row["validation_loss"]) for row in rows]
    assert found == [(1, 1.0, 1.0), (2, 0.5, 2.0), (3, 1 / 3, 3.0)], f"history {found}"
    assert "samples" in rows[-1], f"expected the picture in the last row: {rows[-1]}"
    assert "loss_q1" not in rows[0], f"expected nothing that is not finite: {rows[0]}"
    assert [row["_step"] for row in more] == [3, 4], f"expected steps 3 and 4 next: {more}"
