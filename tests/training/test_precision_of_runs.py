"""`precision: auto` and `jit_compile: auto` in a run: settled, said, kept when it resumes."""

import json

import pytest
import yaml
from command_line import call, succeeds
from safetensors.numpy import load_file
from tiny import few_emoji, step_by_step

from latentddpm.config import AutoencoderRun, DiffusionRun
from latentddpm.distribution import precision
from latentddpm.training.precision import settle_jit, settle_precision

FAST, SLOW = 1.9, 0.2
SETTINGS = {
    "data": {"resolution": 16, "validation_fraction": 0},
    "autoencoder": {
        "channels": 4,
        "channel_multipliers": [1],
        "num_res_blocks": 1,
        "norm_groups": 2,
    },
    "training": {
        "num_steps": 2,
        "batch_size": 2,
        "warmup_steps": 0,
        "ema_momentum": 0,
        "checkpoint_every": 1,
        "keep_checkpoints": 9,
    },
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Function speed → from then on this is a machine on which bfloat16 has that speed."""

    def become(speed):
        cache = tmp_path / f"machine-{speed}"
        (cache / "latentddpm").mkdir(parents=True, exist_ok=True)
        known = json.dumps({precision._key(): speed})
        (cache / "latentddpm" / precision.CACHE).write_text(known, "utf-8")
        monkeypatch.setenv("XDG_CACHE_HOME", str(cache))

    return become


@pytest.fixture
def lab(tmp_path):
    few_emoji(tmp_path / "data", 4)
    (tmp_path / "vae.yaml").write_text(yaml.safe_dump(SETTINGS), "utf-8")
    return tmp_path


def train(lab, out, *options):
    with step_by_step():
        return call(
            *("train-vae", "--data", lab / "data", "--config", lab / "vae.yaml"),
            *("--out", lab / out, *options),
        )


def config_of(run):
    return yaml.safe_load((run / "config.yaml").read_text("utf-8"))["training"]["precision"]


def state(run, step=2):
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "state.safetensors")


@pytest.mark.parametrize(
    ("speed", "expected", "words"),
    [
        (FAST, "bfloat16", "1.90× as fast as float32 on this"),
        (SLOW, "float32", "bfloat16 is 0.20× as fast on this"),
        (0, "float32", "no bfloat16 on this"),
    ],
)
@pytest.mark.parametrize("kind", [AutoencoderRun, DiffusionRun])
def test_a_new_run_takes_what_is_fastest(kind, speed, expected, words, machine):
    machine(speed)
    config, note = settle_precision(kind())
    assert config.training.precision == expected, f"{config.training.precision}: {note}"
    assert note.startswith(f"precision  {expected}: {words}"), f"{note!r}"
    assert kind().training.precision == "auto", "the default is another one"


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_a_precision_that_is_named_is_taken_without_a_word(name, machine):
    machine(FAST)
    config = AutoencoderRun.model_validate({"training": {"precision": name}})
    assert settle_precision(config) == (config, "")


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16")
def test_a_run_goes_on_in_its_own_precision_on_another_machine(lab, machine):
    """And as if it had not changed: every byte of the run that stayed."""
    machine(FAST)
    whole = succeeds(train(lab, "whole"))
    assert "precision  bfloat16: 1.90× as fast" in whole.stderr, whole.stderr
    assert "device     CPU, bfloat16, adamw" in whole.stderr, whole.stderr
    assert config_of(lab / "whole") == "bfloat16", "config.yaml holds another precision"

    succeeds(train(lab, "moved", "--set", "training.num_steps=1"))
    machine(SLOW)
    resumed = succeeds(train(lab, "moved", "--resume"))
    assert "precision  bfloat16: the run began with it" in resumed.stderr, resumed.stderr
    assert config_of(lab / "moved") == "bfloat16", "the run changed its precision"
    one, other = state(lab / "whole"), state(lab / "moved")
    unequal = [name for name in one if one[name].tobytes() != other[name].tobytes()]
    assert not unequal, f"the run that moved has another {unequal}"

    new = succeeds(train(lab, "new"))
    assert "precision  float32: bfloat16 is 0.20× as fast" in new.stderr, new.stderr
    assert config_of(lab / "new") == "float32", "a new run there took another precision"
    other = train(lab, "new", "--resume", "--precision", "bfloat16")
    assert other.code == 2, f"expected another precision to be refused: {other.stderr}"
    assert 'training.precision "float32" → "bfloat16"' in other.stderr, other.stderr


def test_a_run_without_a_checkpoint_goes_on_in_that_of_its_configuration(tmp_path, machine):
    machine(SLOW)
    begun = AutoencoderRun.model_validate({"training": {"precision": "float16"}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(begun.model_dump(mode="json")), "utf-8")
    config, note = settle_precision(AutoencoderRun(), tmp_path)
    assert config.training.precision == "float16", f"{note!r}"


@pytest.mark.parametrize(
    "text", [None, "", "not: [yaml", "training: {precision: auto}", "training: {precision: 8}"]
)
def test_a_folder_that_says_nothing_begins_anew(text, tmp_path, machine):
    machine(SLOW)
    if text is not None:
        (tmp_path / "config.yaml").write_text(text, "utf-8")
    config, note = settle_precision(AutoencoderRun(), tmp_path)
    assert config.training.precision == "float32", f"{note!r}"


def test_a_processor_does_not_compile_unless_told():
    config, chosen = settle_jit(DiffusionRun())
    assert (config.training.jit_compile, chosen) == ("off", False), "auto: off without a GPU"
    told = DiffusionRun.model_validate({"training": {"jit_compile": "on"}})
    assert settle_jit(told) == (told, False), "expected what the configuration says"


@pytest.mark.parametrize(("held", "expected"), [(True, "on"), (False, "off"), ("auto", "auto")])
def test_older_configurations_say_true_or_false(held, expected):
    config = AutoencoderRun.model_validate({"training": {"jit_compile": held}})
    assert config.training.jit_compile == expected


@pytest.mark.slow
def test_a_run_keeps_its_compilation_and_says_where_it_changes(lab):
    short = "--precision", "float32", "--set", "training.num_steps=1"
    succeeds(train(lab, "run", *short))
    file = next((lab / "run").glob("checkpoints/*/run.json"))
    assert json.loads(file.read_text("utf-8"))["config"]["training"]["jit_compile"] == "off"
    longer = *short[:2], "--set", "training.num_steps=2", "--resume"
    told = succeeds(train(lab, "run", *longer, "--jit", "on"))
    assert 'training.jit_compile "off" → "on"' in told.stderr, told.stderr
    assert "adamw, XLA" in told.stderr.replace("EMA 0, ", ""), told.stderr
    wrong = train(lab, "other", "--jit", "maybe")
    assert wrong.code == 2, "expected a refusal"
    assert "training.jit_compile" in wrong.stderr, wrong.stderr


def test_dry_run_shows_what_the_run_would_take(lab, machine):
    machine(FAST)
    done = succeeds(train(lab, "run", "--dry-run"))
    assert "precision: bfloat16" in done.stdout, done.stdout
    assert "precision  bfloat16: " in done.stderr, done.stderr
    assert not (lab / "run").exists(), "a dry run wrote something"
