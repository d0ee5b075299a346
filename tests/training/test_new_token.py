"""Textual inversion: a run that learns a word, what it leaves alone, and drawing with its file."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from safetensors import safe_open
from tiny import few_emoji, pixel_model_of_words, step_by_step

from latentddpm import interop
from latentddpm.cli import main
from latentddpm.config import DiffusionRun
from latentddpm.config_file import parse_config
from latentddpm.errors import UserError
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.plan.plan import plan_diffusion
from latentddpm.utils.pixels import read_metadata

WORD = "<cat-toy>"
TRAINING = {
    "num_steps": 4,
    "batch_size": 4,
    "learning_rate": 1e-2,
    "warmup_steps": 0,
    "ema_momentum": 0.0,
    "precision": "float32",
    "checkpoint_every": 2,
    "validate_every": 4,
}
TOKEN = {"new_token": WORD, "new_token_init": "toy cat", "new_token_vectors": 3}


def config(lab, text=TOKEN, **sections):
    own = {"training": TRAINING, "samples": {"images_per_prompt": 1, "num_steps": 1}}
    given = {"init": str(lab / "base"), "text": text, **own, **sections}
    return parse_config(DiffusionRun, given)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data` (captions), `bare` (none), a model `base`, and a `run` of `bare`."""
    lab = tmp_path_factory.mktemp("lab")
    for name in ("data", "bare"):
        few_emoji(lab / name, 6)
    (lab / "bare/metadata.jsonl").unlink()
    pixel_model_of_words().save(lab / "base")
    return lab


@pytest.fixture(scope="module")
def base(lab):
    """Not to be changed."""
    return LatentDiffusion.load(lab / "base")


@pytest.fixture(scope="module")
def trained(lab):
    with step_by_step():
        return train_diffusion(config(lab), lab / "bare", None, lab / "run", quiet=True)


def vectors(run):
    with safe_open(run / "embedding.safetensors", "np") as file:
        (name,) = file.keys()
        return name, file.get_tensor(name), file.metadata()


def table(model):
    return np.asarray(model.text_encoder.get_layer("embedding").token_embedding.embeddings)


# --- The run -------------------------------------------------------------------------------


def test_only_the_new_rows_change(lab, base, trained):
    count = base.text_encoder.vocabulary_size
    np.testing.assert_array_equal(table(trained)[:count], table(base), "rows of other words")
    for one, other in zip(trained.unet.weights, base.unet.weights, strict=True):
        np.testing.assert_array_equal(one, other, f"{other.path} changed")
    _, found, _ = vectors(lab / "run")
    np.testing.assert_array_equal(table(trained)[count:], found, "the file's are the model's")
    first = base.tokenizer.encode("toy cat")
    start = table(base)[[*first, first[0]]]
    assert (np.abs(found - start).max(axis=1) > 1e-4).all(), "a row was not trained"
    limit = 4 * TRAINING["learning_rate"]
    assert np.abs(found - start).max() < 1.1 * limit, "rows did not begin as toy, cat, toy"


def test_the_file_is_the_whole_result(lab, trained):
    name, found, header = vectors(lab / "run")
    assert (name, found.shape) == (WORD, (3, 16)), f"the file has {name!r} of {found.shape}"
    model = LatentDiffusion.load(lab / "base")
    assert header["base_digest"] == model.digest, f"header {header}"
    assert not (lab / "run/model").exists(), "a whole model was written"
    assert interop.load_embedding(model, lab / "run/embedding.safetensors") == WORD
    settings = model.settings(num_steps=2)
    prompts = f"a {WORD} here", "a here"
    expected, other = trained.generate(prompts, seed=[3, 3], settings=settings)
    again = model.generate(prompts[0], seed=3, settings=settings)[0]
    np.testing.assert_array_equal(again, expected, "the base with the file draws other images")
    assert np.any(expected != other), "the word changes nothing"
    with pytest.raises(UserError, match=WORD):
        model.save(lab / "saved")
    with pytest.raises(UserError, match="before"):
        interop.load_embedding(model, lab / "run/embedding.safetensors")


@pytest.mark.slow
def test_a_run_that_was_stopped_ends_in_the_same_bytes(lab, trained):
    shutil.copytree(lab / "run", lab / "stopped")
    (lab / "stopped/embedding.safetensors").unlink()
    shutil.rmtree(lab / "stopped/checkpoints/step-00000004")
    with step_by_step():
        train_diffusion(config(lab), lab / "bare", None, lab / "stopped", resume=True, quiet=True)
    files = [lab / name / "embedding.safetensors" for name in ("run", "stopped")]
    assert files[0].read_bytes() == files[1].read_bytes(), "other bytes after resuming"


def test_images_without_captions_get_those_of_the_paper(lab, tmp_path):
    plan = plan_diffusion(config(lab), lab / "bare", None, tmp_path / "run", quiet=True)
    captions = plan.dataset.captions[0]
    assert len(captions) == 27, f"{len(captions)} captions"
    assert captions[0] == f"a photo of a {WORD}", f"{captions[0]!r}"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"text": {"new_token_init": "cat"}}, ("text.new_token", "which word")),
        ({"text": {**TOKEN, "new_token_init": ""}}, ("text.new_token_init", "toy")),
        ({"text": {**TOKEN, "new_token": "two words"}}, ("text.new_token", "one word")),
        ({"text": {**TOKEN, "new_token_vectors": 76}}, ("new_token_vectors",)),
        ({"text": {**TOKEN, "trainable": True}}, ("text.trainable",)),
        ({"lora": {"rank": 2}}, ("lora.rank",)),
        ({"init": ""}, ("text.new_token", "--init")),
        ({}, ("no caption", WORD, "data.caption_templates")),
    ],
)
def test_what_does_not_go_together_is_refused(lab, tmp_path, sections, words):
    given = config, lab / "data", None, tmp_path / "run"
    with pytest.raises(UserError) as caught:
        plan_diffusion(given[0](lab, **sections), *given[1:], quiet=True)
    text = str(caught.value)
    assert "\n" not in text, f"expected one line, got {text}"
    assert all(word in text for word in words), f"{text!r}: expected {words}"


# --- The command ---------------------------------------------------------------------------


def generate(*arguments):
    found = CliRunner().invoke(main, ["generate", "--steps", "1", *map(str, arguments)])
    return found.exit_code, found.output + (found.stderr if found.stderr_bytes else "")


@pytest.mark.slow
def test_generate_takes_the_word_and_makes_the_picture_again(lab, trained, tmp_path):
    shutil.copy(lab / "run/embedding.safetensors", tmp_path / "toy.safetensors")
    common = ("--model", lab / "base", "--seed", 1)
    code, text = generate(
        *common, "--prompt", "a <toy> here", "--embedding", f"<toy>={tmp_path}/toy.safetensors",
        "--out", tmp_path / "a.png",
    )  # fmt: skip
    assert code == 0, text
    assert "literally" not in text, f"{text!r}: the word is no other tool's syntax"
    (trace,) = read_metadata(tmp_path / "a.png")["embeddings"]
    assert (trace["file"], trace["word"]) == ("toy.safetensors", "<toy>"), f"metadata {trace}"
    code, text = generate("--from", tmp_path / "a.png", "--out", tmp_path / "b.png")
    assert code == 0, text
    assert "every pixel" in text, f"{text!r}: expected the same picture"
    code, text = generate(*common, "--prompt", "a <toy> here", "--out", tmp_path / "c.png")
    pictures = [np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "ac"]
    assert np.any(pictures[0] != pictures[1]), "the file changes nothing"
    (tmp_path / "toy.safetensors").unlink()
    code, text = generate("--from", tmp_path / "a.png", "--out", tmp_path / "d.png")
    assert "--embedding <toy>=FILE" in text, f"{text!r}: expected the way out"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--embedding", "nowhere.safetensors"), ("nowhere.safetensors", "no such file")),
        (("--engine", "onnx", "--embedding", "RUN"), ("--embedding", "--engine keras")),
        (("--embedding", "RUN", "--embedding", "RUN"), (WORD, "WORD=FILE")),
        (("--embedding", "two words=RUN"), ("one word",)),
    ],
)
def test_what_cannot_be_is_said_before_keras(lab, trained, options, words):
    options = [one.replace("RUN", str(lab / "run")) for one in options]
    code, text = generate("--model", lab / "base", "--prompt", "x", *options)
    assert code != 0, "expected a refusal"
    assert all(word in text for word in words), f"{text!r}: expected {words}"
