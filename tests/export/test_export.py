"""Models for other programs: what is written computes what the model does.

ONNX and LiteRT, which need their tools, are in `test_export_parts.py`.
"""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from limits import file_size_limit
from tiny import (
    SIZE,
    conditioned_model,
    endpoint_inputs,
    perturb,
    pixel_model,
    quick_model,
    tiny_autoencoder,
)

from latentddpm.choices import EXPORTS
from latentddpm.cli import main
from latentddpm.errors import UserError
from latentddpm.export import endpoints as interop_endpoints
from latentddpm.export.endpoints import TOLERANCE, check, endpoints, examples
from latentddpm.export.export import export_model
from latentddpm.export.saved_model import runner
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.utils.console import held_stderr

# Another size, batch and prompt length than those of the check at export time.
HEIGHT, WIDTH, BATCH = 16, 48, 5
ONE_LEVEL = {"channel_multipliers": (1,), "num_res_blocks": 0}
"""For tests of files: an autoencoder that is soon traced."""

# Calls every endpoint where nothing of ours can be imported.
STRANGER = """
import json, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("latentddpm", "keras_hub"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
inputs = np.load(sys.argv[2])
def call(name, *keys):
    found = tf.nest.flatten(getattr(model, name)(*[tf.constant(inputs[key]) for key in keys]))
    return {f"{name}/{i}": array.numpy() for i, array in enumerate(found)}
results = {}
for name, keys in json.loads(sys.argv[4]).items():
    results.update(call(name, *keys))
assert "latentddpm" not in sys.modules
np.savez(sys.argv[3], **results)
"""


@pytest.fixture(scope="module")
def model():
    return quick_model()


@pytest.fixture(scope="module")
def written(model, tmp_path_factory):
    """The SavedModel's folder, and what the command line said while it made it."""
    folder = tmp_path_factory.mktemp("export")
    model.save(folder / "model")
    arguments = ["export", "--model", folder / "model", "--format", "saved-model"]
    arguments += ["--out", folder / "saved-model"]
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"expected exit code 0, got {done.exit_code}: {done.stderr}"
    assert done.stdout == f"{folder / 'saved-model'}\n", f"expected the path: {done.stdout!r}"
    return folder / "saved-model", done.stderr


@pytest.fixture(scope="module")
def inputs(model):
    return endpoint_inputs(model, HEIGHT, WIDTH, 7, seed=0)


def arguments(model):
    """Endpoint → names of its inputs."""
    found = endpoints(model)
    return {name: [spec.name for spec in found[name].inputs] for name in found}


@pytest.fixture(scope="module")
def loaded(written):
    return tf.saved_model.load(str(written[0]))


@pytest.fixture(scope="module")
def alone():
    return LatentDiffusion(tiny_autoencoder(**ONE_LEVEL), None, None, image_size=SIZE)


def test_every_endpoint_agrees_at_export_time(written):
    said = re.findall(r"^(\w+): largest difference ([-+.\de]+)", written[1], re.M)
    differences = {name: float(value) for name, value in said}
    names = {"encode", "decode", "denoise", "encode_text"}
    assert set(differences) == names, f"expected endpoints {names}, got {written[1]}"
    assert max(differences.values()) <= TOLERANCE == 1e-4, f"differences {differences}"


def test_an_autoencoder_alone_has_its_two_endpoints(alone):
    assert arguments(alone) == {"encode": ["images"], "decode": ["latents"]}, (
        "expected an autoencoder to encode and decode"
    )


def test_a_model_of_pixels_has_one_endpoint():
    assert arguments(pixel_model()) == {"denoise": ["noisy_latents", "timesteps"]}, (
        "expected nothing to encode or decode"
    )


def test_an_unconditional_unet_takes_no_context():
    found = arguments(quick_model(text=False))
    assert found["denoise"] == ["noisy_latents", "timesteps"], f"unexpected inputs {found}"
    assert "encode_text" not in found, "expected no text endpoint without a text encoder"


@pytest.mark.slow
def test_a_network_takes_its_conditions_by_name(alone, tmp_path):
    model = conditioned_model(text=False)
    model.autoencoder = alone.autoencoder  # is soon written
    names = ["noisy_latents", "timesteps", "lines", "digit", "age", "style"]
    assert arguments(model)["denoise"] == names
    differences = export_model(model, tmp_path / "out", "saved-model")
    assert max(differences.values()) <= TOLERANCE
    function = tf.saved_model.load(str(tmp_path / "out")).signatures["denoise"]
    shapes = {
        spec.name: tuple(spec.shape) for spec in function.structured_input_signature[1].values()
    }
    assert shapes["lines"] == (None, None, None, 4)
    assert shapes["digit"] == (None, 4)
    (given, _) = examples(endpoints(model)["denoise"], model)
    (found,) = function(**{name: tf.constant(value) for name, value in given.items()}).values()
    np.testing.assert_allclose(found, model.unet(given), atol=TOLERANCE)


@pytest.mark.slow
def test_it_runs_where_latentddpm_is_not(model, written, inputs, tmp_path):
    np.savez(tmp_path / "inputs.npz", **inputs)
    names = arguments(model)
    files = [str(written[0]), str(tmp_path / "inputs.npz"), str(tmp_path / "found.npz")]
    process = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *files, json.dumps(names)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0, f"a process without latentddpm failed: {process.stderr}"
    found = np.load(tmp_path / "found.npz")
    for name, endpoint in endpoints(model).items():
        expected = endpoint.function(*[tf.constant(inputs[key]) for key in names[name]])
        expected = tf.nest.flatten(expected)
        for i, array in enumerate(expected):
            np.testing.assert_allclose(
                found[f"{name}/{i}"],
                np.asarray(array),
                rtol=0,
                atol=TOLERANCE,
                err_msg=f"{name} at {HEIGHT}×{WIDTH}, batch {BATCH}, in another process",
            )


def test_one_output_goes_without_its_name(loaded, inputs):
    images = loaded.decode(tf.constant(inputs["latents"]))
    assert isinstance(images, tf.Tensor), f"expected images themselves, got {type(images)}"
    moments = loaded.encode(tf.constant(inputs["images"]))
    assert set(moments) == {"mean", "logvar"}, f"expected both moments, got {set(moments)}"


def test_the_timesteps_are_of_the_networks_type(model):
    spec = endpoints(model)["denoise"].inputs[1]
    assert spec.dtype == model.unet.input["timesteps"].dtype, f"unexpected {spec}"


def test_the_check_sees_two_batches_and_two_sizes(model):
    for name, endpoint in endpoints(model).items():
        shapes = [
            [array.shape for array in inputs.values()] for inputs in examples(endpoint, model)
        ]
        batches = [{shape[0] for shape in case} for case in shapes]
        assert batches == [{1}, {2}], f"{name}: expected batches of 1 and 2, got {shapes}"
        if name != "encode_text":
            sizes = {case[0][1:3] for case in shapes}
            assert len(sizes) == 2, f"{name}: expected two sizes of image, got {shapes}"


def test_what_computes_something_else_is_caught(loaded):
    other = quick_model()
    perturb(other.unet, seed=1, size=0.05)
    endpoint = endpoints(other)["denoise"]
    run = runner(loaded, endpoint)
    with pytest.raises(ArithmeticError, match=r"endpoint denoise differs .* by .* 1e-04"):
        check(endpoint, run, other)


@pytest.mark.parametrize("wrong", [{}, {"images": np.zeros((1, 8, 8, 3), "float32")}])
def test_an_output_of_another_name_or_shape_is_caught(model, wrong):
    with pytest.raises(ArithmeticError, match=r"endpoint decode: images has the shape"):
        check(endpoints(model)["decode"], lambda inputs: wrong, model)


def test_numbers_that_are_none_are_caught(model):
    endpoint = endpoints(model)["encode_text"]

    def run(inputs):
        return {"context": np.full((*inputs["token_ids"].shape, 16), np.nan)}

    with pytest.raises(ArithmeticError, match="differs from the model by nan"):
        check(endpoint, run, model)


@pytest.mark.slow
def test_an_export_that_fails_its_check_leaves_nothing(alone, tmp_path, monkeypatch):
    monkeypatch.setattr(interop_endpoints, "TOLERANCE", -1.0)
    with pytest.raises(ArithmeticError):
        export_model(alone, tmp_path / "out", "saved-model")
    left = list(tmp_path.iterdir())
    assert not left, f"expected nothing under the final name or beside it, found {left}"


@pytest.mark.slow
def test_a_disk_that_is_full_leaves_nothing(alone, tmp_path):
    with file_size_limit(20_000), pytest.raises(OSError, match="File too large"):
        export_model(alone, tmp_path / "out", "saved-model")
    left = list(tmp_path.iterdir())
    assert not left, f"expected nothing under the final name or beside it, found {left}"


def test_the_keras_format_is_a_model_folder(model, tmp_path):
    assert export_model(model, tmp_path / "out", "keras") == {}, "expected nothing to compare"
    parts = set(read_model_folder(tmp_path / "out").parts)
    assert parts == {"vae", "unet", "text_encoder"}, f"expected every part, got {parts}"


@pytest.mark.parametrize("kind", [kind for kind in EXPORTS if kind != "graphs"])
def test_an_existing_folder_is_refused(model, tmp_path, kind):
    with pytest.raises(UserError, match="exists already") as error:
        export_model(model, tmp_path, kind)
    assert str(tmp_path) in str(error.value), f"expected the folder to be named: {error.value}"
    assert not list(tmp_path.iterdir()), "expected the folder untouched"


def test_an_unknown_format_is_refused_with_the_nearest(model, tmp_path):
    with pytest.raises(UserError, match="did you mean 'saved-model'"):
        export_model(model, tmp_path / "out", "savedmodel")


def test_the_help_names_every_format():
    text = CliRunner().invoke(main, ["export", "--help"]).output
    missing = [kind for kind in EXPORTS if kind not in text]
    assert not missing, f"expected {missing} in the help of export:\n{text}"


@pytest.mark.parametrize(("kind", "tool"), [("onnx", "tf2onnx"), ("litert", "ai_edge_litert")])
def test_absent_tools_are_named_in_one_line(model, tmp_path, monkeypatch, kind, tool):
    monkeypatch.setitem(sys.modules, tool, None)  # as if it were not installed
    with pytest.raises(UserError) as error:
        export_model(model, tmp_path / "out", kind)
    for part in (f"export --format {kind} needs", tool, 'pip install "latentddpm[export]"'):
        assert part in str(error.value), f"expected {part!r} in {error.value}"
    assert "\n" not in str(error.value), f"expected one line: {error.value}"
    assert not list(tmp_path.iterdir()), "expected nothing written"


@pytest.mark.parametrize("kind", ["saved-model", "onnx", "litert"])
def test_a_storage_that_the_format_lacks_is_refused(model, tmp_path, kind):
    with pytest.raises(UserError, match=f"storage 'float16'.*not '{kind}'"):
        export_model(model, tmp_path / "out", kind, "float16")
    assert not list(tmp_path.iterdir()), "expected nothing written"


def test_chatter_is_held_back_and_shown_when_it_matters(capfd):
    with held_stderr():
        os.write(2, b"from C++\n")
    said = capfd.readouterr().err
    assert said == "", f"expected silence, got {said!r}"

    def failing():
        with held_stderr():
            os.write(2, b"from C++\n")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    said = capfd.readouterr().err
    assert said == "from C++\n", f"expected what led to the failure, got {said!r}"
