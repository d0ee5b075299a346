"""Variants of the weight files in a diffusers folder: each part gets the one asked for."""

import json
import shutil

import numpy as np
import pytest
from conftest import TESTS
from safetensors.numpy import load_file, save_file

from latentddpm.errors import UserError
from latentddpm.interop import clip
from latentddpm.interop.convert import convert_from
from latentddpm.interop.diffusers.folder import read_folder
from latentddpm.interop.diffusers.networks import validate
from latentddpm.interop.tensors import TensorFiles
from latentddpm.pipeline.model_folder import read_model_folder

PARTS = {"vae": "diffusion_pytorch_model", "unet": "diffusion_pytorch_model"}
PARTS["text_encoder"] = "model"
VARIANTS = {"fp16": 2, "bf16": 3}
"""Variant → factor of all its weights, by which it is known again."""


def add_variants(folder, parts=PARTS, plain=False):
    for part in parts:
        file = folder / part / f"{PARTS[part]}.safetensors"
        tensors = load_file(file)
        for variant, factor in VARIANTS.items():
            changed = {key: factor * array for key, array in tensors.items()}
            save_file(changed, file.with_name(f"{PARTS[part]}.{variant}.safetensors"))
        if not plain:
            file.unlink()
    return folder


@pytest.fixture
def pipeline(tmp_path):
    return shutil.copytree(TESTS / "golden" / "diffusers" / "pipeline", tmp_path / "pipeline")


@pytest.fixture
def plain():
    folder = TESTS / "golden" / "diffusers" / "pipeline"
    return {part: load_file(folder / part / f"{stem}.safetensors") for part, stem in PARTS.items()}


def check(checkpoint, plain, factors):
    """Each part has its plain weights, times its factor."""
    for part in ("vae", "unet"):
        tensors = validate(getattr(checkpoint, part)).tensors
        key = next(iter(plain[part]))
        expected = factors[part] * plain[part][key]
        np.testing.assert_allclose(tensors.read(key), expected, err_msg=f"{part}: {key}")
    encoder, _ = checkpoint.text()
    key = next(key for key in plain["text_encoder"] if key.endswith("final_layer_norm.weight"))
    expected = factors["text_encoder"] * plain["text_encoder"][key]
    gamma = np.asarray(encoder.get_layer("layer_norm").gamma)
    np.testing.assert_allclose(gamma, expected, err_msg=f"text_encoder: {key}")


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_part_gets_the_variant(pipeline, plain, variant):
    checkpoint = read_folder(add_variants(pipeline), variant)
    check(checkpoint, plain, dict.fromkeys(PARTS, VARIANTS[variant]))


def test_parts_without_the_variant_are_read_plain_with_a_note(pipeline, plain):
    add_variants(pipeline, ["unet"], plain=True)
    checkpoint = read_folder(pipeline, "fp16")
    with pytest.warns(UserWarning, match="has no variant 'fp16'; read is ") as notes:
        check(checkpoint, plain, {"vae": 1, "unet": 2, "text_encoder": 1})
    named = {part for part in PARTS for note in notes if f"/{part}:" in str(note.message)}
    assert named == {"vae", "text_encoder"}, f"expected these two to be named, got {named}"


def test_a_variant_that_no_part_has_is_refused(pipeline):
    with pytest.raises(UserError, match="no weights of the variant 'fp16'; its files have none"):
        read_folder(pipeline, "fp16")
    add_variants(pipeline, ["unet"], plain=True)
    with pytest.raises(UserError, match=r"'fp61' \(did you mean 'fp16'\?\); it has bf16, fp16"):
        read_folder(pipeline, "fp61")


def test_several_variants_and_no_plain_file_have_to_be_chosen_from(pipeline):
    add_variants(pipeline, ["text_encoder"])
    with pytest.raises(UserError, match="variants bf16, fp16: choose one with --variant"):
        read_folder(pipeline).text()


@pytest.mark.parametrize(
    "style", ["model.safetensors.index.fp16.json", "model.fp16.safetensors.index.json"]
)
def test_shards_of_a_variant(pipeline, style):
    folder = pipeline / "text_encoder"
    tensors = load_file(folder / "model.safetensors")
    keys = sorted(tensors)
    (folder / "model.safetensors").unlink()
    listed = {}
    for number, part in enumerate((keys[::2], keys[1::2]), start=1):
        name = f"model.fp16-{number:05d}-of-00002.safetensors"
        save_file({key: tensors[key] for key in part}, folder / name, {"format": "pt"})
        listed |= dict.fromkeys(part, name)
    (folder / style).write_text(json.dumps({"weight_map": listed}))
    assert set(TensorFiles.folder(folder, "model", "fp16").keys()) == set(keys)
    clip.read_text_encoder(folder, pipeline / "tokenizer", "fp16")
    (folder / style).unlink()
    with pytest.raises(
        UserError, match=r"00001-of-00002.safetensors is a shard without its index"
    ):
        TensorFiles.folder(folder, "model")


# --- Parts that are missing ----------------------------------------------------------------


@pytest.mark.parametrize("part", ["vae", "unet"])
def test_a_pipeline_without_a_network_is_not_converted(pipeline, tmp_path, part):
    """Neither as an autoencoder nor as a UNet alone."""
    for change in ("index", "folder"):
        path = pipeline / "model_index.json"
        if change == "index":
            index = json.loads(path.read_text())
            path.write_text(json.dumps(index | {part: [None, None]}))
        else:
            path.unlink()
            shutil.rmtree(pipeline / part)
        with pytest.raises(UserError, match=rf"has no \w+ \({part}/\), and no model without it"):
            convert_from(pipeline, tmp_path / "out")
        assert not (tmp_path / "out").exists(), "expected nothing written"


@pytest.mark.parametrize(("part", "note"), [("vae", "an autoencoder alone"), ("unet", "a UNet")])
def test_one_network_is_converted_with_a_note(pipeline, tmp_path, capsys, part, note):
    convert_from(pipeline / part, tmp_path / "out", quiet=False)
    assert f"{part}: holds {note}" in capsys.readouterr().err, "expected a note"
    assert set(read_model_folder(tmp_path / "out").parts) == {part}, f"expected {part} alone"


def test_averaged_weights_that_diffusers_keeps(pipeline):
    """`EMAModel` writes its own numbers into the configuration."""
    config = json.loads((pipeline / "unet" / "config.json").read_text())
    average = {"decay": 0.9999, "min_decay": 0.0, "optimization_step": 5, "power": 0.75}
    average |= {"update_after_step": 0, "use_ema_warmup": True, "inv_gamma": 1.0}
    (pipeline / "unet" / "config.json").write_text(json.dumps(config | average))
    validate(read_folder(pipeline / "unet").unet)
