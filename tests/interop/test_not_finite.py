"""Weights that are NaN or infinite are named, by file and tensor, where they are read."""

import json
import shutil
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest
from compvis import PREFIXES, whole
from conftest import TESTS
from safetensors.numpy import load_file, save_file
from tiny import quick_model
from vgg import WIDTHS

from latentddpm.errors import UserError
from latentddpm.interop.clip import load_clip_folder
from latentddpm.interop.compvis.single_file import load_single_file
from latentddpm.interop.diffusers.folder import load_diffusers
from latentddpm.interop.tensors import TensorFiles
from latentddpm.interop.vgg import load_perceptual
from latentddpm.models.archive import WEIGHTS, load_archive, save_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.training.run import checkpoint
from latentddpm.training.run.contract import Contract
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
from latentddpm.utils.stored_weights import check_finite

GOLDEN = TESTS / "golden"


def poison(array, value=np.nan):
    """The array with one number that is not finite."""
    array = np.array(array)
    array.reshape(-1)[array.size // 2] = value
    return array


def refused(function, *words):
    """One line that says what is not finite, and where."""
    with pytest.raises(UserError) as caught:
        function()
    message = str(caught.value)
    for word in (*map(str, words), "not finite", "1 of "):
        assert word in message, f"expected {word!r} in {message!r}"
    assert "\n" not in message, f"expected one line: {message!r}"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "int32"])
def test_every_type_of_number_is_looked_at(dtype):
    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    check_finite(np.ones((2, 3)).astype(kind), "file", "tensor")
    check_finite(np.zeros((0,)).astype(kind), "file", "tensor")
    if dtype == "int32":
        return
    for value in (np.nan, np.inf, -np.inf):
        refused(
            lambda v=value: check_finite(poison(np.ones(5), v).astype(kind), "f", "t"), "f", "t"
        )


@pytest.mark.parametrize("part", PREFIXES)
def test_a_single_file(tmp_path, part):
    tensors = whole()
    key = next(key for key in tensors if key.startswith(PREFIXES[part]))
    save_file(tensors | {key: poison(tensors[key])}, tmp_path / "sd.safetensors")
    refused(lambda: load_single_file(tmp_path / "sd.safetensors"), "sd.safetensors", key)


@pytest.mark.parametrize("part", ["vae", "unet", "text_encoder"])
def test_a_diffusers_folder(tmp_path, part):
    folder = shutil.copytree(GOLDEN / "diffusers" / "pipeline", tmp_path / "sd")
    (file,) = (folder / part).glob("*.safetensors")
    tensors = load_file(file)
    key = sorted(tensors)[0]
    save_file(tensors | {key: poison(tensors[key], np.inf)}, file, {"format": "pt"})
    refused(lambda: load_diffusers(folder), file, key)


def test_a_clip_folder(tmp_path):
    folder = shutil.copytree(GOLDEN / "clip_gelu", tmp_path / "clip")
    (file,) = folder.glob("text_encoder/*.safetensors")
    tensors = load_file(file)
    key = next(key for key in tensors if key.endswith("fc1.bias"))
    save_file(tensors | {key: poison(tensors[key])}, file, {"format": "pt"})
    refused(lambda: load_clip_folder(folder), file, key)


def test_bfloat16_of_others(tmp_path):
    header = {"a": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}
    text = json.dumps(header).encode()
    data = np.array([0x3F80, 0x7FC0], "uint16").tobytes()  # 1 and NaN
    (tmp_path / "x.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    refused(lambda: TensorFiles([tmp_path / "x.safetensors"]).read("a"), "x.safetensors", "'a'")


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_an_archive(tmp_path, storage):
    """As another program may have written it: ours writes no such weights."""
    model = quick_model(text=False).autoencoder
    save_archive(model, tmp_path / "vae.keras", storage)
    with zipfile.ZipFile(tmp_path / "vae.keras") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (tmp_path / "w.h5").write_bytes(members[WEIGHTS])
    with h5py.File(tmp_path / "w.h5", "r+") as file:
        datasets = []
        file.visititems(lambda _, one: datasets.append(one) if hasattr(one, "dtype") else None)
        dataset = next(one for one in datasets if one.ndim == 4)
        dataset[...] = poison(dataset[...])
    members[WEIGHTS] = (tmp_path / "w.h5").read_bytes()
    with zipfile.ZipFile(tmp_path / "vae.keras", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    refused(lambda: load_archive(tmp_path / "vae.keras", Autoencoder), "vae.keras", "kernel")


@pytest.mark.parametrize("wrong", ["kernel", "bias"])
def test_a_vgg_in_hdf5(tmp_path, wrong):
    """Of empty data sets, which take no place: all of one is NaN."""
    path, width = tmp_path / "vgg.h5", 3
    with h5py.File(path, "w") as file:
        for number, out in enumerate(WIDTHS):
            for name, shape in (("kernel", (3, 3, width, out)), ("bias", (out,))):
                value = np.nan if (number, name) == (12, wrong) else 0
                file.create_dataset(f"conv_{number}/{name}", shape, "f4", fillvalue=value)
            width = out
    with pytest.raises(UserError, match=rf"vgg.h5: '/conv_12/{wrong}' holds .* not finite"):
        load_perceptual(path)


def test_the_checkpoint_of_a_run(tmp_path):
    """Written by a version that did not look: digests are right, a number is not."""
    trainer = AutoencoderTrainer(quick_model(text=False).autoencoder)
    trainer.compile("sgd")
    trainer.optimizer.build(trainer.trainable_variables)
    path = checkpoint.save(tmp_path, trainer, 1, Contract("train-vae", {}, {}))
    state = load_file(path / checkpoint.STATE)
    save_file(state | {"model/0": poison(state["model/0"])}, path / checkpoint.STATE)
    before = trainer.get_weights()
    refused(lambda: checkpoint.restore(path, trainer), path / checkpoint.STATE, "model/0")
    for one, other in zip(trainer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other, err_msg="half restored")
