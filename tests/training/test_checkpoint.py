"""Checkpoints give back every bit, and a damaged one is never used and never silent."""

import errno
import hashlib
import json
import os
import shutil

import keras
import numpy as np
import pytest

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.errors import UserError
from latentddpm.training.run import checkpoint
from latentddpm.training.run.callbacks import averaged_weights
from latentddpm.training.run.contract import Contract, compare
from latentddpm.training.run.resume import Best, Saver
from latentddpm.training.run.run import Run
from latentddpm.training.step.trainer import Trainer
from latentddpm.utils.files import write_json

FILES = (checkpoint.STATE, checkpoint.RUN, checkpoint.MANIFEST)
CONTRACT = Contract("train-vae", {"training": {"seed": 3}}, {"images": 40})


def save(folder, model, step, keep=2):
    return checkpoint.save(folder, model, step, CONTRACT, keep)


def network(seed=0, width=5, use_ema=True):
    """Small, but with every kind of state: scalars, counts, a seed, moving averages."""
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Dense(width), keras.layers.BatchNormalization()]
    layers += [keras.layers.Dropout(0.2, seed=seed), keras.layers.Dense(2)]
    model = Trainer(keras.Sequential([keras.Input((3,)), *layers]))
    ema = {"use_ema": True, "ema_momentum": 0.9} if use_ema else {}
    model.compile(keras.optimizers.AdamW(0.01, **ema), loss="mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    return model


def train(model, steps=1, seed=0):
    numbers = np.random.default_rng(seed)
    for _ in range(steps):
        inputs = numbers.normal(size=(4, 3)).astype("float32")
        model.train_on_batch(inputs, inputs[:, :2])
    return model


def copies(arrays):
    return [np.array(keras.ops.convert_to_numpy(array)) for array in arrays]


def state(model):
    return copies([*model.variables, *model.optimizer.variables])


def assert_same(model, expected, what):
    for found, wanted in zip(state(model), expected, strict=True):
        assert found.dtype == wanted.dtype, f"{what}: {found.dtype}, expected {wanted.dtype}"
        np.testing.assert_array_equal(found, wanted, err_msg=what)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with checkpoints of steps 10 and 20, and the states they hold; to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    model = train(network(), 2)
    states = {}
    for step in (10, 20):
        train(model, seed=step)
        save(folder, model, step)
        states[step] = state(model)
    return folder, states


@pytest.fixture
def two(trained, tmp_path):
    """A copy of the folder, and the states."""
    folder, states = trained
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    return tmp_path, states


# --- Restoring -----------------------------------------------------------------------------


def test_everything_comes_back_exactly(two):
    folder, states = two
    model = network(seed=1)
    step = checkpoint.load_latest(folder, model)
    assert step == 20, f"resumed at step {step}, expected the newest, 20"
    assert_same(model, states[20], "weights, optimizer or moving averages changed")


def test_training_goes_on_as_if_nothing_had_happened(tmp_path):
    model = train(network(), 3)
    save(tmp_path, model, 3)
    again = network(seed=7)
    checkpoint.load_latest(tmp_path, again)
    for each in (model, again):
        train(each, 3, seed=5)
    assert_same(again, state(model), "three steps after resuming are not the same three steps")


def test_the_averages_are_among_what_is_kept(two):
    folder, _ = two
    model = network(seed=1)
    checkpoint.load_latest(folder, model)
    averages = copies(model.optimizer._model_variables_moving_average)
    weights = copies(model.trainable_variables)
    same = [np.array_equal(a, w) for a, w in zip(averages, weights, strict=True)]
    assert not any(same), "restored averages are the raw weights"
    assert all(np.any(a) for a in averages), "an average came back as zeros"


def test_nothing_to_resume_from(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="no complete checkpoint") as caught:
            checkpoint.load_latest(folder, network())
        assert str(folder) in str(caught.value), f"{caught.value}: the folder is not named"


def test_a_model_of_other_sizes_is_refused_untouched(two):
    folder, _ = two
    model = network(width=6)
    before = state(model)
    with pytest.raises(UserError, match="has shape") as caught:
        checkpoint.load_latest(folder, model)
    text = str(caught.value)
    assert "(3, 5)" in text, f"{text}: the shape in the checkpoint is not named"
    assert "(3, 6)" in text, f"{text}: the shape of the model is not named"
    assert "step-00000020" in text, f"{text}: the checkpoint is not named"
    assert "\n" not in text, f"{text}: expected one line"
    assert_same(model, before, "a refused checkpoint changed the model")


def test_a_model_without_averages_is_refused(two):
    folder, _ = two
    with pytest.raises(UserError, match="has shape"):
        checkpoint.load_latest(folder, network(use_ema=False))


# --- The best ------------------------------------------------------------------------------


def best_of(folder, model, first=0, history=(), metric="loss"):
    run = Run(AutoencoderRun(), folder)
    return Best(Saver(run, model, CONTRACT, first, folder, keep=2), metric, first, history)


def lines(**losses):
    return [{"step": int(step[1:]), "validation_loss": loss} for step, loss in losses.items()]


def test_the_checkpoint_that_validated_best_is_kept(tmp_path):
    model, states = network(), {}
    best = best_of(tmp_path, model)
    for line in lines(_10=0.5, _20=0.3, _30=0.4, _40=0.3, _50=float("nan")):
        states[line["step"]] = state(train(model, seed=line["step"]))
        best.offer(line["step"], line)
    assert names(tmp_path / "best") == ["step-00000020"], "expected the first of the lowest"
    again = network(seed=1)
    checkpoint.restore(tmp_path / "best" / "step-00000020", again)
    assert_same(again, states[20], "it is not the state that was measured")
    assert not checkpoint.latest(tmp_path), "the best one stands among those to resume from"


def test_a_resumed_run_has_to_beat_what_it_kept(tmp_path):
    model = train(network())
    best_of(tmp_path, model).offer(20, {"validation_loss": 0.3})
    best = best_of(tmp_path, model, 30, lines(_20=0.3, _30=0.4))
    best.offer(40, {"validation_loss": 0.35})
    assert names(tmp_path / "best") == ["step-00000020"], "a worse one took its place"
    best.offer(50, {"validation_loss": 0.2})
    assert names(tmp_path / "best") == ["step-00000050"], "a better one did not"


def test_what_a_killed_run_left_is_put_right(tmp_path):
    """A best of steps that are taken again goes; one that was measured, but not kept, comes."""
    model = train(network())
    best_of(tmp_path, model).offer(50, {"validation_loss": 0.1})
    best_of(tmp_path, model, 40, lines(_30=0.3))
    assert not names(tmp_path / "best"), "a step that was not taken yet is the best"
    best_of(tmp_path, model, 40, lines(_30=0.3, _40=0.2))
    assert names(tmp_path / "best") == ["step-00000040"], "what the log calls best is not kept"


def test_psnr_is_best_when_high(tmp_path):
    best = best_of(tmp_path, train(network()), metric="psnr")
    for step, value in ((10, 20.0), (20, 22.0), (30, 21.0)):
        best.offer(step, {"validation_psnr": value})
    assert names(tmp_path / "best") == ["step-00000020"], "expected the highest"


# --- Keeping -------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    model = network()
    steps = [9, 10, 99, 100, 1000]
    for step in steps:
        path = save(tmp_path, model, step, keep)
        assert path == tmp_path / f"step-{step:08d}", f"step {step} was saved as {path}"
    expected = [f"step-{step:08d}" for step in steps[-keep:]]
    assert names(tmp_path) == expected, f"keep={keep} left {names(tmp_path)}"


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_later_checkpoint_does_not_push_out_the_new_one(two, keep):
    folder, _ = two
    (folder / "step-00000020" / checkpoint.STATE).write_bytes(b"")
    model = network()
    with pytest.warns(UserWarning, match="step-00000020 is damaged"):
        checkpoint.load_latest(folder, model)
    path = save(folder, model, 15, keep)
    assert path.is_dir(), f"step 15, just saved, is gone; kept is {names(folder)}"
    assert checkpoint.verify(path) is None, "step 15, just saved, is not whole"


def test_the_same_step_can_be_saved_again(two):
    folder, _ = two
    model = network(seed=3)
    save(folder, model, 20)
    again = network(seed=4)
    assert checkpoint.load_latest(folder, again) == 20, "step 20 is not the newest any more"
    assert_same(again, state(model), "step 20 does not hold what was saved last")


# --- Damage --------------------------------------------------------------------------------


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def zero(path):
    path.write_bytes(bytes(path.stat().st_size))


def flip_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def delete(path):
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncate, empty, zero, flip_bit, delete])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(two, damage, name):
    folder, states = two
    damage(folder / "step-00000020" / name)
    model = network(seed=1)
    with pytest.warns(UserWarning, match="step-00000020 is damaged") as caught:
        step = checkpoint.load_latest(folder, model)
    assert step == 10, f"{damage.__name__} of {name}: resumed at {step}, expected 10"
    text = str(caught[0].message)
    assert name in text, f"{text}: does not name {name}"
    assert_same(model, states[10], f"{damage.__name__} of {name}: not the state of step 10")


def test_no_single_bit_of_the_manifest_can_change_unnoticed(two):
    path = two[0] / "step-00000020"
    manifest = path / checkpoint.MANIFEST
    good = manifest.read_bytes()
    meaning = json.loads(good)
    unnoticed = []
    for place in range(len(good)):
        for bit in (0, 2, 5):
            data = bytearray(good)
            data[place] ^= 1 << bit
            manifest.write_bytes(data)
            if checkpoint.verify(path) is not None:
                continue
            if json.loads(data) != meaning:
                unnoticed.append(bytes(data[max(place - 12, 0) : place + 8]))
    assert not unnoticed, f"changed manifests that verify, near {unnoticed[:5]}"


def sealed(path, **changes):
    """Change the manifest and seal it again: what another version would have written."""
    manifest = json.loads((path / checkpoint.MANIFEST).read_bytes()) | changes
    del manifest["sha256"]
    text = json.dumps(manifest, sort_keys=True).encode()
    manifest["sha256"] = hashlib.sha256(text).hexdigest()
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest), "utf-8")


def test_another_format_is_refused_and_no_damage(two):
    folder, _ = two
    path = folder / "step-00000020"
    model = network()
    before = state(model)
    for form in (2, 4):
        sealed(path, format=form)
        with pytest.raises(UserError, match=f"format {form}, this version reads 3") as caught:
            checkpoint.load_latest(folder, model)
        assert str(path) in str(caught.value), f"{caught.value}: the checkpoint is not named"
    (path / checkpoint.MANIFEST).write_text('{"format": 1, "step": 20, "files": {}}', "utf-8")
    with pytest.raises(UserError, match="format 1, this version reads 3"):
        checkpoint.load_latest(folder, model)
    assert_same(model, before, "a refused checkpoint changed the model")


def test_the_contract_comes_back(two):
    assert checkpoint.newest_contract(two[0]) == (20, CONTRACT), "another contract"


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_what_is_not_finite_is_not_kept(two, where):
    folder, _ = two
    before, model = names(folder), network(seed=1)
    variable = {"weight": model.trainable_variables, "moment": model.optimizer.variables}[where][3]
    variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(checkpoint.NotFinite, match="not finite") as caught:
        save(folder, model, 30, keep=1)
    assert "step-00000030" in str(caught.value), f"{caught.value}: the step is not named"
    assert names(folder) == before, f"a {where} of NaN: left {names(folder)}"


def test_leftovers_of_killed_writers_go(two):
    folder, _ = two
    (folder / ".tmp-step-00000030-x").mkdir()
    (folder / ".tmp-step-00000030-x" / checkpoint.STATE).write_bytes(bytes(100))
    save(folder, network(), 30)
    assert names(folder) == ["step-00000020", "step-00000030"], f"left {names(folder)}"


@pytest.mark.parametrize("text", ["[]", "3", '{"step": 20, "files": []}', '{"files": {}}'])
def test_a_manifest_of_another_form_is_damage(two, text):
    folder, _ = two
    (folder / "step-00000020" / checkpoint.MANIFEST).write_text(text)
    with pytest.warns(UserWarning, match="step-00000020 is damaged"):
        step = checkpoint.load_latest(folder, network())
    assert step == 10, f"manifest {text}: resumed at {step}, expected 10"


def test_all_damaged_is_nothing_to_resume_from(two):
    folder, _ = two
    for step in (10, 20):
        flip_bit(folder / f"step-{step:08d}" / checkpoint.STATE)
    with (
        pytest.warns(UserWarning, match="damaged") as caught,
        pytest.raises(UserError, match="no complete checkpoint"),
    ):
        checkpoint.load_latest(folder, network())
    assert len(caught) == 2, f"{len(caught)} warnings, expected one for each checkpoint"


def test_what_is_no_checkpoint_is_left_alone(two):
    folder, _ = two
    (folder / "step-by-step.txt").write_text("my notes")
    (folder / ".tmp-step-00000030-x").mkdir()  # what a killed process leaves
    model = network()
    assert checkpoint.load_latest(folder, model) == 20, "a stray file hides the checkpoints"
    save(folder, model, 30, keep=1)
    assert (folder / "step-by-step.txt").exists(), "saving removed a file of the user's"
    assert (folder / "step-00000030").is_dir(), "a stray file counted as the newest checkpoint"


# --- A full disk ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["fsync", "save_file", "replace"])
def test_a_full_disk_leaves_the_earlier_checkpoints(two, monkeypatch, where):
    folder, states = two
    before = names(folder)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoint if where == "save_file" else os, where, full)
    with pytest.raises(OSError, match="No space"):
        save(folder, network(seed=9), 30, keep=1)
    monkeypatch.undo()
    assert names(folder) == before, f"{where} failed and left {names(folder)}"
    model = network(seed=1)
    assert checkpoint.load_latest(folder, model) == 20, "the newest checkpoint is lost"
    assert_same(model, states[20], "the newest checkpoint changed")


def test_a_disk_that_writes_something_else_is_noticed(two, monkeypatch):
    folder, states = two

    def lying(path, value):
        write_json(path, value)
        if path.name == checkpoint.MANIFEST:
            flip_bit(path.with_name(checkpoint.STATE))

    monkeypatch.setattr(checkpoint, "write_json", lying)
    with pytest.raises(OSError, match="does not read back"):
        save(folder, network(), 30, keep=1)
    monkeypatch.undo()
    model = network(seed=1)
    with pytest.warns(UserWarning, match="step-00000030 is damaged"):
        step = checkpoint.load_latest(folder, model)
    assert step == 20, "an old checkpoint went before the new one had been verified"
    assert_same(model, states[20], "the earlier checkpoint changed")


# --- What a run may not change -------------------------------------------------------------


def contract(data=None, **changes):
    """Of a diffusion run with settings of training changed."""
    training = {"num_steps": 100, "warmup_steps": 10, **changes}
    config = DiffusionRun.model_validate({"training": training})
    return Contract.of(config, {"images": 40, "contents of images": "a" * 64} | (data or {}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch_size": 16}, "training.batch_size 32 → 16"),
        ({"learning_rate": 2e-4}, "training.learning_rate 0.0001 → 0.0002"),
        ({"seed": 1}, "training.seed 0 → 1"),
        ({"data": {"images": 41}}, "images 40 → 41"),
        ({"data": {"contents of images": "b" * 64}}, "contents of images aaaaaaaaaaaa → bbbbbbb"),
        ({"data": {"captions": "c" * 64}}, "captions nothing → cccccccccccc"),
    ],
)
def test_what_changes_the_mathematics_is_named_and_has_to_be_allowed(changes, words):
    refused, noted = compare(contract(), contract(**changes), 50)
    assert len(refused) == 1, f"{changes}: refused {refused}, expected one key"
    assert refused[0].startswith(words), f"{refused[0]!r}, expected {words!r}"
    assert not noted, f"{changes}: also noted {noted}"


@pytest.mark.parametrize(
    "changes",
    [
        {"log_every": 7},
        {"checkpoint_every": 7, "keep_checkpoints": 5, "validate_every": 3},
        {"accumulation_steps": 4},
        {"on_nan": "skip"},
        {"num_steps": 200},
    ],
)
def test_what_does_not_change_it_is_only_said(changes):
    refused, noted = compare(contract(), contract(**changes), 50)
    assert not refused, f"{changes}: refused {refused}"
    assert len(noted) == len(changes), f"{changes}: noted {noted}, expected each"


@pytest.mark.parametrize(
    ("place", "digest", "free"), [("b", "0" * 64, True), ("a", "1" * 64, False)]
)
def test_the_model_to_start_from_is_told_by_its_digest_not_by_its_place(place, digest, free):
    config = DiffusionRun.model_validate({"init": "a"})
    old = Contract.of(config, {"images": 40, "init": "0" * 64})
    new = Contract.of(config.model_copy(update={"init": place}), {"images": 40, "init": digest})
    said = [f"init a (000000000000) → {place} ({digest[:12]})"]
    expected = ([], said) if free else (said, [])
    assert compare(old, new, 50) == expected, f"expected {said}, refused or noted"


def test_a_longer_cosine_has_to_be_allowed_and_says_what_it_does():
    old, new = (contract(num_steps=steps, learning_rate_schedule="cosine") for steps in (100, 190))
    refused, _ = compare(old, new, 55)
    assert refused == [
        "training.num_steps 100 → 190 (at step 55 the learning rate's cosine is 50% down, of the "
        "new length 25%)"
    ], f"{refused}: expected the share of the way down, before and after"


def test_a_setting_that_came_later_had_its_default():
    old = contract()
    config = {**old.config, "training": {**old.config["training"]}}
    del config["training"]["on_nan"], config["training"]["offset_noise"]
    old = Contract(old.command, config, old.data)
    assert compare(old, contract(), 50) == ([], []), "a new setting's default counts as a change"
    refused, _ = compare(old, contract(offset_noise=0.1), 50)
    assert refused == ["training.offset_noise 0.0 → 0.1"], f"{refused}"


def test_a_run_of_the_other_trainer_is_refused():
    with pytest.raises(UserError, match="run of train-vae, not of train-diffusion"):
        compare(CONTRACT, contract(), 50)


# --- Averages ------------------------------------------------------------------------------


def test_the_averages_are_shown_and_the_weights_come_back_bit_for_bit():
    model = train(network(), 5)
    inputs = np.random.default_rng(2).normal(size=(4, 3)).astype("float32")
    before, raw = state(model), model(inputs).numpy()
    averages = copies(model.optimizer._model_variables_moving_average)
    with averaged_weights(model):
        for inside, average in zip(copies(model.trainable_variables), averages, strict=True):
            np.testing.assert_array_equal(inside, average, err_msg="not the average inside")
        assert np.abs(model(inputs).numpy() - raw).max() > 1e-4, "the same outputs inside"
    assert_same(model, before, "looking at the averages changed the training")


def test_the_averages_are_the_recurrence():
    model, decay = network(), 0.9
    train(model)
    expected = copies(model.trainable_variables)  # the first step copies
    for step in range(3):
        train(model, seed=step)
        values = copies(model.trainable_variables)
        expected = [decay * a + (1 - decay) * v for a, v in zip(expected, values, strict=True)]
    with averaged_weights(model):
        for inside, average in zip(copies(model.trainable_variables), expected, strict=True):
            np.testing.assert_allclose(
                inside, average, rtol=1e-5, atol=1e-7, err_msg="another moving average"
            )


def test_an_error_inside_brings_the_weights_back():
    model = train(network(), 3)
    before = state(model)

    def look():
        with averaged_weights(model):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look()
    assert_same(model, before, "an interrupted validation left the averages in the model")


def test_without_averages_the_weights_stay():
    model = train(network(use_ema=False))
    before = state(model)
    with averaged_weights(model):
        assert_same(model, before, "without EMA the block shows the weights themselves")
