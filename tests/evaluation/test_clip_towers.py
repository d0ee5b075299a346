"""Both towers of CLIP against transformers: frozen answers, and side by side where it is."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentddpm.clip.tokenizer import PromptTooLong
from latentddpm.errors import UserError
from latentddpm.evaluation.clip_towers import load_clip_towers
from latentddpm.evaluation.metrics.clip_score import clip_score, clip_scores

GOLDEN = Path(__file__).parents[1] / "golden" / "clip_towers"
PROMPTS = json.loads((GOLDEN / "prompts.json").read_text("utf-8"))


@pytest.fixture
def folder(tmp_path):
    """A writable copy of the tiny CLIP that transformers wrote."""
    return Path(shutil.copytree(GOLDEN / "model", tmp_path / "clip"))


def change(folder, edit, file="config.json"):
    config = json.loads((folder / file).read_text())
    edit(config)
    (folder / file).write_text(json.dumps(config))


@pytest.fixture(scope="module")
def towers():
    return load_clip_towers(GOLDEN / "model")


def test_embeddings_are_those_of_transformers(towers):
    golden = load_file(GOLDEN / "outputs.safetensors")
    for name in ("square", "wide"):
        actual = towers.embed_images(golden[f"{name}_pixels"])
        np.testing.assert_allclose(actual, golden[name], rtol=0, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(np.linalg.norm(actual, axis=1), 1, rtol=1e-5)
    with pytest.warns(PromptTooLong):
        actual = towers.embed_texts(PROMPTS)
    np.testing.assert_allclose(actual, golden["texts"], rtol=0, atol=1e-5)
    many = np.repeat(golden["square_pixels"], 20, axis=0)
    batched = towers.embed_images(many)[::20]
    np.testing.assert_allclose(batched, golden["square"], rtol=0, atol=1e-5, err_msg="batches")


def test_clip_score_is_the_cosine_of_its_pair(towers):
    """From transformers' embeddings; never below 0; captions that repeat count each time."""
    golden = load_file(GOLDEN / "outputs.safetensors")
    pixels = golden["wide_pixels"][[0, 1, 0, 1]]
    captions = [PROMPTS[k] for k in (4, 0, 0, 4)]
    cosines = np.sum(golden["wide"][[0, 1, 0, 1]] * golden["texts"][[4, 0, 0, 4]], axis=1)
    assert cosines.min() < 0 < cosines.max(), "a test of both signs"
    actual = clip_score(towers, pixels, captions)
    np.testing.assert_allclose(actual, 100 * np.maximum(cosines, 0), rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="4 images and 1 captions"):
        clip_score(towers, pixels, ["a cat"])

    class Kept:
        def read(self, numbers):
            return pixels[numbers]

    many = clip_scores(towers, Kept(), [captions[0], "", captions[2], captions[3]], "", quiet=True)
    np.testing.assert_allclose(many, [actual[0], np.nan, actual[2], actual[3]], atol=1e-3)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: c.update(model_type="clip_text_model"), "model_type is 'clip_text_model'"),
        (lambda c: c.pop("vision_config"), "with a vision_config"),
        (lambda c: c.update(projection_dim=9), r"makes it \(9, 16\)"),
        (lambda c: c["vision_config"].update(num_channels=1), "1 channels"),
        (lambda c: c["vision_config"].update(patch_size=64), "64 of 24 pixels"),
        (lambda c: c["vision_config"].update(image_size=32), r"makes it \(17, 16\)"),
        (lambda c: c["vision_config"].update(num_hidden_layers=9), "no tensor 'vision_model.enc"),
        (lambda c: c["vision_config"].update(hidden_act="relu"), "vision_config: hidden_act"),
        (lambda c: c["vision_config"].update(num_attention_heads=3), "vision_config: hidden_dim"),
    ],
)
def test_what_is_no_clip_is_refused_before_weights_are_read(folder, edit, message):
    change(folder, edit)
    with pytest.raises(UserError, match=message) as caught:
        load_clip_towers(folder)
    assert "config.json" in str(caught.value), "the file is named"
    assert "\n" not in str(caught.value), "an error is one line"


def test_other_files_are_refused(folder):
    edited = {"image_mean": [0.5, 0.5, 0.5]}
    (folder / "preprocessor_config.json").write_text(json.dumps(edited))
    with pytest.raises(UserError, match=r"preprocessor_config.json: image_mean is \[0.5, 0.5"):
        load_clip_towers(folder)
    (folder / "preprocessor_config.json").unlink()
    weights = load_file(folder / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"no tensor 'visual_projection.weight'"):
        load_clip_towers(folder)
    with pytest.raises(UserError, match=r"config.json: not found; expected the Hugging Face"):
        load_clip_towers(folder / "nowhere")


# --- transformers itself -------------------------------------------------------------------


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_embeddings_beside_transformers(tmp_path, activation, kind):
    """Other sizes, a CLIP whose side the patches do not fill, half precision."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    text = json.loads((GOLDEN / "model" / "config.json").read_text())["text_config"]
    vision = {
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 3,
        "image_size": 29,
        "patch_size": 7,
        "hidden_act": activation,
    }
    config = transformers.CLIPConfig(
        text_config=text | {"hidden_act": activation}, vision_config=vision, projection_dim=11
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = model.to(getattr(torch, kind))
    model.save_pretrained(tmp_path)
    for file in (GOLDEN / "model").glob("*token*"):
        shutil.copy(file, tmp_path)
    for name in ("vocab.json", "merges.txt"):
        if (GOLDEN / "model" / name).is_file():
            shutil.copy(GOLDEN / "model" / name, tmp_path)
    towers, model = load_clip_towers(tmp_path), model.float()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 29, 29, 3), dtype="uint8")
    texts = ["a cat", "", "2 dogs"]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = torch.from_numpy(towers.standardise(pixels).transpose(0, 3, 1, 2))
        images = model.vision_model(seen).pooler_output @ model.visual_projection.weight.T
        ids = torch.from_numpy(towers.tokenizer(texts)).long()
        words = model.text_model(ids).pooler_output @ model.text_projection.weight.T
    for ours, theirs in (
        (towers.embed_images(pixels), images),
        (towers.embed_texts(texts), words),
    ):
        theirs = (theirs / theirs.norm(dim=1, keepdim=True)).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
