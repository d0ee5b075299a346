"""Archives come back bit for bit; a hostile one is one line that names it, and runs nothing."""

import io
import json
import zipfile

import h5py
import keras
import numpy as np
import pytest

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.errors import UserError
from latentddpm.models.archive import (
    load_archive,
    read_config,
    save_archive,
    weight_paths,
    weights_digest,
)
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.classic import ClassicUNet
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.discriminator import PatchDiscriminator
from latentddpm.models.perceptual import PerceptualDistance
from latentddpm.utils.files import MAX_CONFIG_BYTES
from latentddpm.utils.stored_weights import read_weights

SIZES = {
    "channels": 8,
    "channel_multipliers": [1],
    "num_res_blocks": 1,
    "attention_levels": [],
    "num_heads": 1,
    "latent_channels": 2,
    "norm_groups": 4,
}


@pytest.fixture(scope="module")
def unet():
    keras.utils.set_random_seed(0)
    return UNet(**SIZES, zero_init=False)


@pytest.fixture(scope="module")
def members(unet, tmp_path_factory):
    """What a good archive holds, by member name."""
    path = tmp_path_factory.mktemp("good") / "unet.keras"
    save_archive(unet, path)
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture
def marker(tmp_path):
    """A folder that the code smuggled in by these tests would make."""
    return tmp_path / "executed"


def make_lambda(marker):
    code = eval(f"lambda x: (__import__('os').mkdir({str(marker)!r}), x)[1]")
    return keras.layers.Lambda(code)


@pytest.fixture
def lambda_layer(marker):
    """A serialized `Lambda` whose Python code makes `marker`."""
    return keras.saving.serialize_keras_object(make_lambda(marker))


def pack(path, members, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def reconfigured(members, **changes):
    """The members with other entries at the top of config.json."""
    config = json.loads(members["config.json"]) | changes
    return members | {"config.json": json.dumps(config).encode()}


def rearranged(members, **changes):
    """The members with other constructor arguments in config.json."""
    config = json.loads(members["config.json"])["config"] | changes
    return reconfigured(members, config=config)


def refused(path, *parts, kind=UNet):
    """Loading is one line that names the file."""
    with pytest.raises(UserError) as caught:
        load_archive(path, kind)
    text = str(caught.value)
    assert text.startswith(f"{path}: "), f"{text!r} does not begin with the file"
    assert "\n" not in text, f"expected one line, got {text!r}"
    assert len(text) < 500 + len(str(path)), f"{len(text)} characters of message"
    missing = [part for part in parts if part not in text]
    assert not missing, f"{text!r} does not say {missing}"


# --- Good archives -------------------------------------------------------------------------


def test_the_archive_holds_what_keras_expects(unet, members):
    expected = {"metadata.json", "config.json", "model.weights.h5"}
    assert set(members) == expected, f"members {set(members)}, expected {expected}"
    found = json.loads(members["config.json"])["config"]
    assert found == unet.get_config(), f"config.json holds {found}, not the arguments"


@pytest.mark.parametrize("storage", ["float32", "float16"])
def test_weights_come_back(unet, tmp_path, storage):
    path = tmp_path / "deep" / "unet.keras"
    save_archive(unet, path, storage)
    loaded = load_archive(path, UNet)
    for mine, theirs in zip(unet.weights, loaded.weights, strict=True):
        wanted = mine.numpy()
        assert theirs.dtype == "float32", f"{theirs.path}: loaded as {theirs.dtype}"
        if storage == "float16":
            wanted = wanted.astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(theirs.numpy(), wanted, err_msg=mine.path)
    assert weights_digest(loaded) == weights_digest(unet), f"{storage} changed the digest"
    assert loaded.get_config() == unet.get_config(), f"{storage} changed the config"
    assert not loaded.compiled, "a loaded network arrives compiled"


def test_half_precision_takes_about_half_the_room(tmp_path):
    unet = UNet(**SIZES | {"channels": 64, "norm_groups": 8}, zero_init=False)
    sizes = {}
    for storage in ("float32", "float16"):
        path = tmp_path / f"{storage}.keras"
        save_archive(unet, path, storage)
        sizes[storage] = path.stat().st_size
    assert sizes["float16"] < 0.55 * sizes["float32"], f"sizes {sizes}: expected about half"


def test_a_compiled_network_leaves_its_training_behind(unet, tmp_path):
    twin = UNet.from_config(unet.get_config())
    twin.compile("adamw", loss="mse")
    save_archive(twin, tmp_path / "unet.keras")
    with zipfile.ZipFile(tmp_path / "unet.keras") as archive:
        config = json.loads(archive.read("config.json"))
    assert not config.get("compile_config"), "the archive holds a training setup"


def test_read_config_needs_no_network(unet, members, tmp_path):
    path = pack(tmp_path / "unet.keras", members | {"model.weights.h5": b"not weights"})
    assert read_config(path, UNet) == unet.get_config(), "other arguments than were saved"


def test_an_unknown_storage_is_refused(unet, tmp_path):
    with pytest.raises(UserError, match=r"storage.*'float8'.*did you mean"):
        save_archive(unet, tmp_path / "unet.keras", "float8")
    assert not list(tmp_path.iterdir()), "a refused storage left a file"


def test_digest_tells_weights_and_config_apart(unet):
    digest = weights_digest(unet)
    twin = UNet.from_config(unet.get_config() | {"name": "other"})
    assert weights_digest(twin) != digest, "other weights, the same digest"
    twin.set_weights(unet.get_weights())
    assert weights_digest(twin) == digest, "the name of a model counts in its digest"
    other = UNet.from_config(unet.get_config() | {"dropout": 0.5})
    other.set_weights(unet.get_weights())
    assert weights_digest(other) != digest, "other arguments, the same digest"


# --- Names of weights ----------------------------------------------------------------------

PLAIN = {"channels": 4, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 2}
NETWORKS = {
    "autoencoder": lambda: Autoencoder(**PLAIN, shift_factor=0.1),
    "conditional": lambda: UNet(**PLAIN, num_heads=2, context_dim=4, attention_levels=(1,)),
    "unconditional": lambda: UNet(**PLAIN, num_heads=2, attention_levels=(0,), dropout=0.1),
    "signals": lambda: UNet(**PLAIN, num_heads=2, attention_levels=(), spatial_dims=1),
    "classic": lambda: ClassicUNet(4, (1, 2)),
    "basic": BasicUNet,
    "text encoder": lambda: TextEncoder(
        hidden_dim=4, num_layers=2, num_heads=2, context_length=4, vocabulary_size=8
    ),
    "discriminator": lambda: PatchDiscriminator(4, 2, norm_groups=2),
    "spectral norm": lambda: PatchDiscriminator(4, 2, norm_groups=2, spectral_norm=True),
    "perceptual": lambda: PerceptualDistance("VGG", (0, 0, 0), (1, 1, 1)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_weights_have_the_names_that_keras_gives_them(tmp_path, name):
    network = NETWORKS[name]()
    for place, variable in enumerate(network.weights):
        variable.assign(np.full(variable.shape, place, "float32"))
    network.save(tmp_path / "network.keras")
    stored = read_weights(tmp_path / "network.keras")
    paths = weight_paths(network)
    assert set(paths) == set(stored), f"{set(paths) ^ set(stored)}: not in both"
    for place, (path, variable) in enumerate(zip(paths, network.weights, strict=True)):
        expected = np.full(variable.shape, place, "float32")
        np.testing.assert_array_equal(stored[path], expected, err_msg=f"{variable.path} as {path}")


def test_an_array_stays_in_the_type_it_is_stored_in(unet, tmp_path):
    save_archive(unet, tmp_path / "unet.keras", "float16")
    name = weight_paths(unet)[0]
    stored = read_weights(tmp_path / "unet.keras", [name])
    expected = unet.weights[0].numpy().astype("float16")
    assert stored.keys() == {name}, f"read {list(stored)}, expected {name} alone"
    np.testing.assert_array_equal(stored[name], expected)
    assert stored[name].dtype == expected.dtype, f"read as {stored[name].dtype}"


def test_bfloat16_is_read_as_float32(tmp_path):
    unet = UNet(**SIZES, zero_init=False, dtype="bfloat16")
    unet.save(tmp_path / "unet.keras")
    loaded = load_archive(tmp_path / "unet.keras", UNet)
    stored = read_weights(tmp_path / "unet.keras")
    for name, mine, theirs in zip(weight_paths(unet), unet.weights, loaded.weights, strict=True):
        assert stored[name].dtype == "float32", f"{name}: read as {stored[name].dtype}"
        expected = mine.numpy().astype("float32")
        np.testing.assert_array_equal(stored[name], expected, err_msg=name)
        np.testing.assert_array_equal(theirs.numpy().astype("float32"), expected, err_msg=name)


def test_a_weight_that_is_not_there_is_named(members, tmp_path):
    path = pack(tmp_path / "unet.keras", members)
    with pytest.raises(UserError, match=r"no weight 'layers/dense/vars/7' \(did you mean"):
        read_weights(path, ["layers/dense/vars/7"])


# --- Code in archives ----------------------------------------------------------------------


def test_a_lambda_network_is_refused(tmp_path, marker):
    model = keras.Sequential([keras.Input((2,)), make_lambda(marker)])
    marker.rmdir()  # building the model has traced the code once
    model.save(tmp_path / "unet.keras")
    refused(tmp_path / "unet.keras", "Sequential", "latentddpm>UNet")
    assert not marker.exists(), "the code in the archive has run"


@pytest.mark.parametrize("place", ["class", "dtype", "channels", "name", "compile", "build"])
def test_a_lambda_anywhere_runs_nothing(members, tmp_path, lambda_layer, marker, place):
    if place == "class":
        members = reconfigured(members, **lambda_layer | {"registered_name": "latentddpm>UNet"})
    elif place == "compile":
        setup = {"optimizer": "sgd", "loss": lambda_layer}
        members = reconfigured(members, compile_config=setup)
    elif place == "build":
        members = reconfigured(members, build_config={"input_shape": lambda_layer})
    else:
        members = rearranged(members, **{place: lambda_layer})
    path = pack(tmp_path / "unet.keras", members)
    try:
        load_archive(path, UNet)
    except UserError as error:
        text = str(error)
        assert text.startswith(f"{path}: "), f"{text!r} does not begin with the file"
        assert "\n" not in text, f"expected one line, got {text!r}"
    else:
        assert place in ("compile", "build"), f"a Lambda as {place} loads"
    assert not marker.exists(), f"the code in {place} has run"


def test_another_module_cannot_be_called(members, tmp_path, marker):
    call = {
        "module": "os",
        "class_name": "system",
        "config": f"touch {marker}",
        "registered_name": "system",
    }
    refused(pack(tmp_path / "unet.keras", rearranged(members, dtype=call)))
    assert not marker.exists(), "an archive has run a command"


def test_another_class_is_refused_by_name(tmp_path, members):
    keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)]).save(tmp_path / "s.keras")
    refused(tmp_path / "s.keras", "'Sequential'", "'latentddpm>UNet'")
    path = pack(tmp_path / "unet.keras", members)
    refused(path, "'latentddpm>UNet'", "'latentddpm>Autoencoder'", kind=Autoencoder)


# --- Members -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "assets/code.py", "x.pkl"])
def test_a_further_member_is_refused_by_name(members, tmp_path, name):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    refused(pack(folder / "unet.keras", {**members, name: b"import os"}), name)
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["unet.keras"], f"reading the archive wrote {left}"


@pytest.mark.parametrize("name", ["metadata.json", "config.json", "model.weights.h5"])
def test_a_missing_member_is_refused_by_name(members, tmp_path, name):
    rest = {key: data for key, data in members.items() if key != name}
    refused(pack(tmp_path / "unet.keras", rest), name)


# --- Sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "model.weights.h5", "metadata.json"])
def test_a_zip_bomb_is_refused(members, tmp_path, name):
    bomb = members | {name: bytes(32 << 20)}
    path = pack(tmp_path / "unet.keras", bomb, zipfile.ZIP_DEFLATED)
    refused(path, "expands to", "refused")


def test_a_huge_config_is_refused(members, tmp_path):
    long = members["config.json"] + b" " * MAX_CONFIG_BYTES
    refused(pack(tmp_path / "unet.keras", members | {"config.json": long}), "too large")


@pytest.mark.parametrize(
    "claim",
    [
        {"channels": 256},
        {"channels": 1 << 16},
        {"channel_multipliers": [1, 1 << 20]},
        {"num_res_blocks": 1 << 30},
        {"latent_channels": 1 << 40},
        {"context_dim": 1 << 40},
    ],
)
def test_arguments_larger_than_the_weights_are_refused(members, tmp_path, claim):
    path = pack(tmp_path / "unet.keras", rearranged(members, **claim))
    refused(path, "parameters", "weights; refused")


@pytest.mark.parametrize(("hidden_dim", "num_layers"), [(1 << 20, 1), (1, 1 << 30)])
def test_a_huge_text_encoder_is_refused(members, tmp_path, hidden_dim, num_layers):
    arguments = {"hidden_dim": hidden_dim, "num_layers": num_layers, "num_heads": 1}
    config = {"registered_name": "latentddpm>TextEncoder", "config": arguments}
    path = pack(tmp_path / "text.keras", reconfigured(members, **config))
    refused(path, "parameters", kind=TextEncoder)


def test_a_config_without_bottom_is_refused(members, tmp_path):
    deep = b"[" * 100_000 + b"]" * 100_000
    refused(pack(tmp_path / "unet.keras", members | {"config.json": deep}))


def weights(change):
    """A weights file in which `change(file, name)` was made to one array."""

    def apply(data):
        stream = io.BytesIO(data)
        with h5py.File(stream, "r+") as file:
            arrays = []
            file.visititems(
                lambda name, item: arrays.append(name) if hasattr(item, "dtype") else None
            )
            change(file, arrays[0])
        return stream.getvalue()

    return apply


def missing(file, name):
    del file[name]


def other_shape(file, name):
    del file[name]
    file[name] = np.zeros((3, 5, 7), np.float32)


def huge(file, name):
    """A petabyte of zeros in a few bytes."""
    del file[name]
    file.create_dataset(name, (1 << 24, 1 << 24), np.float32, chunks=(1 << 10, 1 << 10))


def outside(file, name):
    """An array that lives in another file of the computer."""
    shape = file[name].shape
    del file[name]
    file.create_dataset(name, shape, np.uint8, external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])


def of_objects(file, name):
    del file[name]
    file.create_dataset(name, data=["text", "more"], dtype=h5py.string_dtype())


@pytest.mark.parametrize("change", [missing, other_shape, huge, outside, of_objects])
def test_wrong_weights_are_refused(members, tmp_path, change):
    changed = weights(change)(members["model.weights.h5"])
    path = pack(tmp_path / "unet.keras", members | {"model.weights.h5": changed})
    refused(path, "cannot be loaded")
    if change in (huge, outside, of_objects):
        with pytest.raises(UserError, match="cannot be loaded: 'layers/"):
            read_weights(path)


# --- Broken files --------------------------------------------------------------------------


def test_no_file(tmp_path):
    refused(tmp_path / "unet.keras", "no such file")
    refused(tmp_path, "no such file")


@pytest.mark.parametrize("data", [b"", b"PK", b"hello " * 100, bytes(1000)])
def test_what_is_not_a_zip_is_refused(tmp_path, data):
    path = tmp_path / "unet.keras"
    path.write_bytes(data)
    refused(path, "not a .keras archive")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(members, tmp_path, share):
    path = pack(tmp_path / "unet.keras", members)
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(path, "not a .keras archive")


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("name", ["config.json", "model.weights.h5"])
def test_changed_bytes_are_refused(members, tmp_path, name, compression):
    path = pack(tmp_path / "unet.keras", members, compression)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(name)
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(name)
    for place in range(start + info.compress_size // 2, start + info.compress_size, 7):
        data[place] ^= 0xFF
    path.write_bytes(data)
    refused(path)


@pytest.mark.parametrize("flag", ["encrypted", "method"])
def test_a_zip_of_another_kind_is_refused(members, tmp_path, flag):
    path = pack(tmp_path / "unet.keras", members)
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = data.find(signature)
        while place >= 0:
            if flag == "encrypted":
                data[place + offset] |= 1
            else:
                data[place + offset + 2] = 99
            place = data.find(signature, place + 1)
    path.write_bytes(data)
    refused(path, "not a .keras archive")


@pytest.mark.parametrize(
    "config",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"3",
        b"{}",
        b"\xff\xfe",
        b'{"registered_name": "latentddpm>UNet"}',
    ],
)
def test_a_config_of_another_form_is_refused(members, tmp_path, config):
    refused(pack(tmp_path / "unet.keras", members | {"config.json": config}))


@pytest.mark.parametrize(
    "changes",
    [{"channels": "many"}, {"depth": 3}, {"attention_levels": [9]}, {"norm_groups": 3}],
)
def test_impossible_arguments_are_refused(members, tmp_path, changes):
    path = pack(tmp_path / "unet.keras", rearranged(members, **changes))
    refused(path, "cannot be loaded")
