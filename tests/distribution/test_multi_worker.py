"""Two processes on 127.0.0.1 train as one; one that is lost ends the other; a restart goes on."""

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import yaml
from command_line import LDM_CONFIG
from conftest import EMOJI, TESTS, environment
from PIL import Image
from safetensors.numpy import load_file
from tiny import tiny_autoencoder, tiny_model
from worker import cases

from latentddpm.data.shares import share
from latentddpm.distribution.processes import ProcessGroup
from latentddpm.distribution.strategy import check_tf_config, is_lost, make_strategy
from latentddpm.errors import UserError
from latentddpm.models.archive import load_archive
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.run import checkpoint
from latentddpm.utils.files import read_json_lines
from latentddpm.utils.pixels import read_metadata

COMMAND = Path(sys.executable).with_name("latentddpm")
CONFIG = {
    "data": {"resolution": 32, "validation_fraction": 0.2},
    "autoencoder": {
        "channels": 8,
        "channel_multipliers": [1, 2],
        "num_res_blocks": 1,
        "norm_groups": 4,
    },
    "training": {
        "precision": "float32",
        "num_steps": 100_000,
        "batch_size": 3,
        "warmup_steps": 0,
        "log_every": 1,
        "validate_every": 100_000,
        "checkpoint_every": 10,
    },
}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start(*arguments, workers=2):
    """One process a worker, each told of all by TF_CONFIG."""
    variables = {**environment(), "CUDA_VISIBLE_DEVICES": ""}
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    for index in range(workers):
        if workers > 1:
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            variables["TF_CONFIG"] = json.dumps(config)
        processes.append(
            subprocess.Popen(
                arguments,
                env=variables.copy(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def answers(processes, timeout=600):
    outputs = [process.communicate(timeout=timeout) for process in processes]
    codes = [process.returncode for process in processes]
    errors = "\n".join(text[-3000:] for _, text in outputs)
    assert not any(codes), f"expected every worker to finish, got {codes}\n{errors}"
    return [json.loads(output.splitlines()[-1]) for output, _ in outputs]


def test_two_processes_train_as_one():
    """`fit` of a whole dataset, and of each process's own positions; evaluation too."""
    two = start(sys.executable, TESTS / "support" / "worker.py")
    with tf.device("CPU:0"):
        one = cases(tf.distribute.get_strategy())
    for index, found in enumerate(answers(two)):
        assert found.pop("agreed") == [False, True], "expected one yes to be the answer of all"
        for case, (weights, logs) in found.items():
            expected_weights, expected_logs = one[case]
            for mine, other in zip(weights, expected_weights, strict=True):
                np.testing.assert_allclose(
                    mine, other, atol=1e-6, err_msg=f"{case}, worker {index}: other weights"
                )
            for name, value in expected_logs.items():
                assert logs[name] == pytest.approx(value, rel=1e-5), f"{case}: {name}"


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@pytest.mark.parametrize(("batch_size", "count"), [(4, 12), (4, 14), (2, 9), (7, 3)])
def test_the_shares_of_all_processes_are_the_batches_of_one(workers, batch_size, count):
    steps = -(-count // batch_size)
    found = [[] for _ in range(steps)]
    for index in range(workers):
        positions, own = share(5, 5 + count, batch_size, ProcessGroup(index, workers))
        batches = [batch.tolist() for batch in positions.batch(own).as_numpy_iterator()]
        if len(batches) < steps:  # a process with nothing in the batches, or in the last of them
            batches = [*batches, *[[]] * (steps - len(batches))]
        for step, batch in enumerate(batches):
            found[step] += batch
    expected = list(range(5, 5 + count))
    assert sorted(place for batch in found for place in batch) == expected, (
        "expected every position once"
    )
    if count % batch_size == 0 or workers <= batch_size:
        batches = [expected[i : i + batch_size] for i in range(0, count, batch_size)]
        assert [sorted(batch) for batch in found] == batches, "expected the same batches"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nonsense", "expected {"),
        ('{"cluster": {}}', "expected {"),
        (
            '{"cluster": {"ps": ["a:1"]}, "task": {"type": "ps", "index": 0}}',
            "cluster has 'ps'",
        ),
        (
            '{"cluster": {"worker": ["a"]}, "task": {"type": "worker", "index": 0}}',
            "address 'a', expected HOST:PORT",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
            "task.type 'chief', expected worker",
        ),
        (
            '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
            "task.index 1, expected 0 … 0",
        ),
    ],
)
def test_a_wrong_tf_config_is_named(text, said):
    with pytest.raises(UserError, match=re.escape(said)):
        check_tf_config(text)


def test_a_lonely_worker_is_told_how_to_start(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    with pytest.raises(UserError, match="expected TF_CONFIG in the environment"):
        make_strategy("multi-worker")
    with pytest.raises(UserError, match="did you mean 'mirrored'"):
        make_strategy("miror")


@pytest.mark.parametrize(
    ("kind", "message", "lost"),
    [
        ("UnavailableError", "failed to connect to all addresses", True),
        ("InternalError", "Collective ops is aborted by: worker 1 ended", True),
        ("FailedPreconditionError", "RecvBuf expects a different device incarnation: 1", True),
        ("InternalError", "Failed to launch CUDA kernel", False),
        ("FailedPreconditionError", "Could not find variable dense/kernel.", False),
        ("InvalidArgumentError", "Incompatible shapes: [2] vs. [3]", False),
    ],
)
def test_an_error_of_our_own_is_no_lost_worker(kind, message, lost):
    error = getattr(tf.errors, kind)(None, None, message)
    assert is_lost(error) == lost, f"{kind}: {message}: expected {lost}"


def train_two(folder):
    """A long run of `train-vae` in two processes, with its command, folder and a checkpoint."""
    (folder / "vae.yaml").write_text(yaml.safe_dump(CONFIG))
    out = folder / "run"
    command = (COMMAND, "train-vae", "--data", EMOJI, "--config", folder / "vae.yaml")
    command = (*command, "--out", out, "--quiet", "--strategy", "multi-worker", "--resume")
    chief, other = start(*command)
    deadline = time.monotonic() + 600
    while not list(out.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline, "expected a checkpoint within ten minutes"
        assert chief.poll() is None, f"the chief ended: {chief.communicate()[1][-3000:]}"
        time.sleep(0.2)
    return command, out, chief, other


def goes_on(command, out, last):
    """The run, started again, takes five steps more and ends with every step logged once."""
    for process in start(*command, "--set", f"training.num_steps={last + 5}"):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, f"expected the restart to finish: {errors[-3000:]}"
    steps = [line["step"] for line in read_json_lines(out / "log.jsonl") if "loss" in line]
    assert steps == list(range(1, last + 6)), f"expected every step once, got {steps[-20:]}"
    assert (out / "model" / "vae.keras").is_file(), "expected the chief to leave the model"


@pytest.mark.slow
def test_a_lost_worker_ends_the_other_and_a_restart_goes_on(tmp_path):
    command, out, chief, other = train_two(tmp_path)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    _, errors = chief.communicate(timeout=600)
    assert chief.returncode == 1, f"expected exit code 1, got {chief.returncode}"
    assert "lost another one" in errors.splitlines()[-1], f"expected a clear line: {errors[-500:]}"
    goes_on(command, out, read_json_lines(out / "log.jsonl")[-1]["step"])


@pytest.mark.slow
def test_a_signal_to_one_worker_saves_and_ends_both_and_a_restart_goes_on(tmp_path):
    command, out, chief, other = train_two(tmp_path)
    other.send_signal(signal.SIGTERM)
    for process, code, name in ((chief, 138, "chief"), (other, 143, "worker that was told")):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == code, f"{name}: {process.returncode}, not {code}: {errors}"
        last = errors.splitlines()[-1]
        assert "stopped by a signal after step" in last, f"{name}: expected a clear line: {last}"
    newest = checkpoint.latest(out / "checkpoints")
    step = int(newest.name.removeprefix("step-"))
    assert str(newest) in last, f"{last}: expected to be told of {newest}"
    logged = read_json_lines(out / "log.jsonl")[-1]["step"]
    assert step == logged, f"saved step {step}, expected the last one that was trained, {logged}"
    goes_on(command, out, step)


LDM = {
    **LDM_CONFIG,
    "data": CONFIG["data"],
    "training": {
        "precision": "float32",
        "num_steps": 6,
        "batch_size": 5,
        "warmup_steps": 0,
        "learning_rate": 1e-3,
        "ema_momentum": 0.5,
        "log_every": 1,
        "validate_every": 6,
    },
    "samples": {"prompts": ["red apple"], "images_per_prompt": 1, "num_steps": 2},
}


@pytest.mark.slow
def test_encode_and_train_diffusion_in_two_processes_are_those_of_one(tmp_path):
    """Moments bit for bit; losses, validation and weights to the rounding of sums."""
    vae = tiny_autoencoder()
    LatentDiffusion(vae, None, None, image_size=(32, 32)).save(tmp_path / "vae")
    (tmp_path / "ldm.yaml").write_text(yaml.safe_dump(LDM))
    places = ("--data", EMOJI, "--vae", tmp_path / "vae", "--quiet")
    for workers in (1, 2):
        latents, out = tmp_path / f"latents-{workers}", tmp_path / f"ldm-{workers}"
        train = ("--config", tmp_path / "ldm.yaml", "--latents", latents)
        for command in (("encode", "--out", latents), ("train-diffusion", *train, "--out", out)):
            for process in start(COMMAND, *command, *places, workers=workers):
                _, errors = process.communicate(timeout=600)
                assert process.returncode == 0, f"{workers} processes: {errors[-3000:]}"
    one, two = (np.load(tmp_path / f"latents-{n}" / "moments.npy") for n in (1, 2))
    np.testing.assert_array_equal(two, one, err_msg="other moments")
    logs = [read_json_lines(tmp_path / f"ldm-{n}" / "log.jsonl") for n in (1, 2)]
    assert len(logs[0]) == len(logs[1]) == 7, f"expected six steps and a validation: {logs}"
    for line, other in zip(*logs, strict=True):
        for name, value in line.items():
            if name != "examples_per_second" and value is not None:
                assert other[name] == pytest.approx(value, rel=1e-5), f"{line['step']}: {name}"
    one, two = (
        load_archive(tmp_path / f"ldm-{n}" / "model" / "unet.keras", UNet).weights for n in (1, 2)
    )
    for mine, other in zip(two, one, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-5, err_msg=other.path)


ADVERSARIAL = {
    **CONFIG,
    "data": {"resolution": 16, "validation_fraction": 0},
    "adversarial": {"weight": 0.5, "start_step": 1},
    "discriminator": {"channels": 8, "num_layers": 1, "norm_groups": 4, "spectral_norm": True},
    "training": {**LDM["training"], "num_steps": 2},
}


@pytest.mark.slow
def test_a_discriminator_in_two_processes_is_that_of_one(tmp_path):
    """A step without it and one with it: the log, the gradients, the weights of both networks.

    Moments tell gradients: AdamW turns the rounding of one that is almost zero into whole steps.
    """
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(ADVERSARIAL))
    command = (COMMAND, "train-vae", "--data", EMOJI, "--config", tmp_path / "vae.yaml", "--quiet")
    outs = tmp_path / "one", tmp_path / "two"
    alone, both = (start(*command, "--out", out, workers=n) for n, out in enumerate(outs, 1))
    for process in (*alone, *both):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 0, f"expected every process to finish: {errors[-3000:]}"
    for line, other in zip(*[read_json_lines(out / "log.jsonl") for out in outs], strict=True):
        for name, value in line.items():
            if name != "examples_per_second" and value is not None:
                assert other[name] == pytest.approx(value, rel=1e-5), f"{line['step']}: {name}"
    assert line["adaptive_weight"] > 0, f"no step against the discriminator: {line}"
    one, two = (load_file(out / "checkpoints/step-00000002" / checkpoint.STATE) for out in outs)
    for name, value in one.items():
        error = np.abs(two[name] - value)
        if "optimizer" in name:
            size = np.linalg.norm(value)
            assert np.linalg.norm(error) <= 1e-5 * size, f"{name}: off by {error.max()}"
        else:
            assert error.max() < 3e-5, f"{name}: off by {error.max()}"


# --- Images --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("untrained") / "model"
    tiny_model().save(folder)
    return folder


def drawing(model, out, *more):
    command = (COMMAND, "generate", "--model", model, "--prompt", "apple", "--out", out)
    return (*command, "--seed", "0", "--strategy", "auto", *more)


@pytest.mark.slow
def test_two_processes_draw_the_images_of_one(model, tmp_path):
    """Three images, of which the chief's share is one; then one, and none for the chief."""
    for count, shares in ((3, (1, 2)), (1, (0, 1))):
        alone, together = tmp_path / f"alone-{count}", tmp_path / f"together-{count}"
        more = ("--num-images", str(count), "--quiet")
        workers = start(*drawing(model, together, *more))
        processes = [*workers, *start(*drawing(model, alone, *more), workers=1)]
        outputs = [process.communicate(timeout=600) for process in processes]
        for process, (_, errors) in zip(processes, outputs, strict=True):
            assert process.returncode == 0, f"expected every process to finish: {errors[-3000:]}"
        lines = tuple(len(output.splitlines()) for output, _ in outputs[:2])
        assert lines == shares, f"expected {shares} images of the two workers, got {lines}"
        names = sorted(path.name for path in together.iterdir())
        assert names == sorted(path.name for path in alone.iterdir()), f"other files: {names}"
        for name in names:
            one, other = (
                np.asarray(Image.open(at / name)).astype(int) for at in (alone, together)
            )
            levels = np.abs(one - other).max()
            assert levels <= 1, f"{name}: {levels} of 255 off the one of a single process"
            assert read_metadata(alone / name) == read_metadata(together / name), name


@pytest.mark.slow
def test_a_worker_lost_while_drawing_is_noticed(model, tmp_path):
    chief, other = start(*drawing(model, tmp_path / "out", "--num-images", "2", "--steps", "200"))
    seen = ""
    while "step/s" not in seen:
        assert chief.poll() is None, f"the chief ended: {seen}"
        seen += chief.stderr.read(1)
    other.send_signal(signal.SIGKILL)
    other.communicate()
    _, errors = chief.communicate(timeout=600)
    assert chief.returncode == 1, f"expected exit code 1, got {chief.returncode}: {errors[-500:]}"
    line = errors.splitlines()[-1]
    assert "lost another one" in line, f"expected a clear line: {errors[-500:]}"
    assert "--resume" not in line, f"`generate` has no such option: {line}"
    assert (tmp_path / "out" / "apple-0.png").is_file(), "expected the chief's share to be kept"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "words"), [((), "--seed"), (("--seed", "0", "--grid"), "--grid")]
)
def test_what_processes_have_to_agree_on(model, tmp_path, more, words):
    command = (COMMAND, "generate", "--model", model, "--out", tmp_path, *more)
    for process in start(*command):
        _, errors = process.communicate(timeout=600)
        assert process.returncode == 2, f"expected exit code 2, got {process.returncode}"
        assert words in errors.splitlines()[-1], f"expected a line with {words}: {errors[-500:]}"
