"""ONNX and LiteRT: written by the command line, run by their own runtimes.

Needs the `export_model` extra; what can be tested without it is in `test_export.py`.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from limits import file_size_limit
from tiny import (
    CONTEXT_LENGTH,
    SIZE,
    conditioned_model,
    endpoint_inputs,
    perturb,
    quick_model,
    tiny_autoencoder,
)

from latentddpm.choices import EXPORTS
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError
from latentddpm.export import endpoints as interop_endpoints
from latentddpm.export import litert, onnx
from latentddpm.export.endpoints import TOLERANCE, check, endpoints, examples
from latentddpm.export.export import export_model
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.utils.files import file_digest

ROOT = Path(__file__).parents[2]
WRITERS = {"onnx": onnx, "litert": litert}
PARTS = {
    "encode": "encoder",
    "decode": "decoder",
    "denoise": "unet",
    "encode_text": "text_encoder",
}
# Another size, batch and prompt length than those of the check at export time.
HEIGHT, WIDTH, BATCH, LENGTH = 16, 48, 5, 9
ONE_LEVEL = {"channel_multipliers": (1,), "num_res_blocks": 0}

# Runs a script of `examples/` where nothing but NumPy and ONNX Runtime can be imported.
STRANGER = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("latentddpm", "keras", "keras_hub", "tensorflow", "onnx", "PIL"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Blocker())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module", params=["onnx", pytest.param("litert", marks=pytest.mark.slow)])
def kind(request):
    for tool in EXPORTS[request.param]:
        pytest.importorskip(tool)
    return request.param


@pytest.fixture(scope="module")
def model():
    # LiteRT cannot open an encoder that halves an image before any ResnetBlock.
    return quick_model(num_res_blocks=1)


@pytest.fixture(scope="module")
def written(kind, model, tmp_path_factory):
    """The exported folder and what the command line said while it made it."""
    folder = tmp_path_factory.mktemp("export")
    model.save(folder / "model")
    command = ["export", "--model", folder / "model", "--format", kind, "--out", folder / "out"]
    ours = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")  # settings of our tests
    done = subprocess.run(
        [sys.executable, "-m", "latentddpm", *map(str, command)],
        env={key: value for key, value in os.environ.items() if key not in ours},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"the command line failed: {done.stderr}"
    assert done.stdout == f"{folder / 'out'}\n", f"expected the path, got {done.stdout!r}"
    return folder / "out", done.stderr


@pytest.fixture(scope="module")
def manifest(written):
    return json.loads((written[0] / "pipeline.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def inputs(model):
    return endpoint_inputs(model, HEIGHT, WIDTH, LENGTH, seed=1)


def run_file(kind, file, name, inputs):
    """Outputs by name, as somebody without latentddpm would get them."""
    if kind == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(file))
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(None, inputs), strict=True))
    from ai_edge_litert.interpreter import Interpreter

    return Interpreter(model_path=str(file)).get_signature_runner(name)(**inputs)


def test_the_command_line_says_a_line_for_each_part(written, kind):
    suffix = WRITERS[kind].SUFFIX
    said = [line for line in written[1].splitlines() if not line.endswith("…")]
    pattern = r"(\w+): largest difference (\S+) \((\w+\.\w+), \d+\.\d MB, \d+ s\)"
    lines = [re.fullmatch(pattern, line) for line in said]
    assert all(lines), f"expected a line for each part and no chatter, got {said}"
    found = {line[1]: line[3] for line in lines}
    expected = {name: f"{part}{suffix}" for name, part in PARTS.items()}
    assert found == expected, f"expected {expected}, got {found}"
    differences = [float(line[2]) for line in lines]
    assert max(differences) <= TOLERANCE == 1e-4, f"differences {differences}"


def test_a_server_finds_all_it_needs(written, manifest, model, kind):
    folder = written[0]
    assert manifest["format"] == kind, f"unexpected format {manifest['format']}"
    assert set(manifest["parts"]) == set(PARTS.values()), f"parts {set(manifest['parts'])}"
    for name, part in manifest["parts"].items():
        assert part["largest_difference"] <= TOLERANCE, f"{name}: {part}"
        for file, entry in part["files"].items():
            assert file_digest(folder / file) == entry["sha256"], f"{file}: another digest"
            assert (folder / file).stat().st_size == entry["bytes"], f"{file}: another size"
    assert manifest["scaling_factor"] == model.autoencoder.scaling_factor, "another scaling"
    assert manifest["image_size"] == list(SIZE), f"size {manifest['image_size']}"
    assert manifest["defaults"]["guidance_scale"] == 3.0, f"defaults {manifest['defaults']}"
    levels = manifest["schedule"]["alphas_cumprod"]
    np.testing.assert_array_equal(levels, model.schedule.alphas_cumprod, "other noise levels")
    tokenizer = CLIPTokenizer.load(folder / manifest["tokenizer"])
    assert (folder / "tokenizer" / "vocab.json").is_file(), "expected the vocabulary in full"
    assert tokenizer.context_length == CONTEXT_LENGTH, "the tokenizer has another length"


def test_it_is_no_model_folder(written, kind):
    with pytest.raises(UserError, match=f"pipeline.json: format {kind}"):
        read_model_folder(written[0])


@pytest.mark.parametrize("name", PARTS)
def test_batch_size_and_length_are_free(written, kind, model, inputs, name):
    endpoint = endpoints(model)[name]
    own = {spec.name: inputs[spec.name] for spec in endpoint.inputs}
    file = written[0] / f"{endpoint.part}{WRITERS[kind].SUFFIX}"
    found = run_file(kind, file, name, own)
    assert set(found) == set(endpoint.outputs), f"outputs {set(found)}, not {endpoint.outputs}"
    for output, expected in endpoint.function(*own.values()).items():
        np.testing.assert_allclose(
            found[output],
            np.asarray(expected),
            rtol=0,
            atol=TOLERANCE,
            err_msg=f"{kind} {name} {output} at {HEIGHT}×{WIDTH}, batch {BATCH}",
        )


def test_the_axes_have_names(written, manifest, kind):
    if kind != "onnx":
        pytest.skip("LiteRT names no axes")
    import onnxruntime

    for part, entry in manifest["parts"].items():
        session = onnxruntime.InferenceSession(str(written[0] / f"{part}.onnx"))
        for value in session.get_inputs():
            expected = entry["inputs"][value.name]
            assert value.shape == expected["shape"], f"{part} {value.name}: {value.shape}"
        names = [output.name for output in session.get_outputs()]
        assert names == entry["outputs"], f"{part}: outputs {names}"


def test_an_interpreter_resized_by_hand(written, kind, model, inputs):
    if kind != "litert":
        pytest.skip("only LiteRT's interpreter is resized")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(written[0] / "decoder.tflite"))
    (entry,), (result,) = interpreter.get_input_details(), interpreter.get_output_details()
    for size in (1, BATCH):
        latents = inputs["latents"][:size]
        interpreter.resize_tensor_input(entry["index"], latents.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(entry["index"], latents)
        interpreter.invoke()
        found = interpreter.get_tensor(result["index"])
        expected = np.asarray(model.autoencoder.decode(latents))
        np.testing.assert_allclose(
            found, expected, rtol=0, atol=TOLERANCE, err_msg=f"decoder at batch {size}"
        )


def test_a_process_with_numpy_and_onnxruntime_alone_generates(written, kind, model, tmp_path):
    if kind != "onnx":
        pytest.skip("examples/onnx_generate.py runs ONNX")
    from PIL import Image

    example = [str(ROOT / "examples" / "onnx_generate.py"), str(written[0])]
    for seed, prompt in ((0, "a red apple"), (7, "two cats' 3 naïve ☕ don't")):
        done = subprocess.run(
            [sys.executable, "-I", "-c", STRANGER, *example, prompt, "--seed", str(seed)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, f"the example failed: {done.stderr}"
        found = np.asarray(Image.open(tmp_path / "out.png")).astype(int)
        expected = model.generate(prompt, seed=seed, sampler="ddim", timestep_spacing="trailing")[
            0
        ].astype(int)
        furthest = np.abs(found - expected).max()
        assert furthest <= 1, f"seed {seed}: pixels are {furthest} of 255 levels off, expected 1"


@pytest.mark.slow
def test_an_unconditional_unet_takes_no_context(kind, tmp_path):
    model = quick_model(text=False)
    endpoint = endpoints(model)["denoise"]
    run = WRITERS[kind].write(endpoint, tmp_path / f"unet{WRITERS[kind].SUFFIX}")
    assert [spec.name for spec in endpoint.inputs] == ["noisy_latents", "timesteps"]
    difference = check(endpoint, run, model)
    assert 0 <= difference <= TOLERANCE, f"difference {difference}"
    # The same file is told from another network.
    perturb(model.unet, seed=1)
    with pytest.raises(ArithmeticError, match="endpoint denoise differs"):
        check(endpoint, run, model)


@pytest.fixture(scope="module")
def alone():
    return LatentDiffusion(tiny_autoencoder(**ONE_LEVEL), None, None, image_size=SIZE)


@pytest.mark.slow
def test_a_network_takes_its_conditions_by_name(kind, alone, tmp_path):
    model = conditioned_model(text=False)
    model.autoencoder = alone.autoencoder  # is soon written
    differences = export_model(model, tmp_path / "out", kind)
    assert max(differences.values()) <= TOLERANCE
    manifest = json.loads((tmp_path / "out" / "pipeline.json").read_text("utf-8"))
    assert Conditions.from_json(manifest["conditions"]) == model.conditions
    inputs = manifest["parts"]["unet"]["inputs"]
    latents = ["batch", "latent_height", "latent_width"]
    assert list(inputs)[2:] == model.conditions.names
    assert inputs["lines"]["shape"] == [*latents, 4]
    assert inputs["digit"]["shape"] == ["batch", 4]
    *_, given = examples(endpoints(model)["denoise"], model)
    file = tmp_path / "out" / f"unet{WRITERS[kind].SUFFIX}"
    found = run_file(kind, file, "denoise", given)["prediction"]
    np.testing.assert_allclose(found, model.unet(given), atol=TOLERANCE)
    other = {**given, "digit": given["digit"] + 1}
    assert np.abs(run_file(kind, file, "denoise", other)["prediction"] - found).max() > 1e-3


@pytest.mark.slow
def test_an_autoencoder_alone_exports_its_two_parts(kind, alone, tmp_path):
    differences = export_model(alone, tmp_path / "out", kind)
    assert set(differences) == {"encode", "decode"}, f"unexpected endpoints {differences}"
    suffix = WRITERS[kind].SUFFIX
    names = {path.name for path in (tmp_path / "out").iterdir()}
    expected = {f"encoder{suffix}", f"decoder{suffix}", "pipeline.json"}
    assert names == expected, f"expected {expected}, got {names}"


def test_an_export_that_fails_its_check_leaves_nothing(kind, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(interop_endpoints, "TOLERANCE", -1.0)
    with pytest.raises(ArithmeticError, match="endpoint encode"):
        export_model(alone, tmp_path / "out", kind)
    left = list(tmp_path.iterdir())
    assert not left, f"expected nothing under the final name or beside it, found {left}"


def test_a_disk_that_is_full_leaves_nothing(kind, alone, tmp_path):
    with file_size_limit(2_000), pytest.raises(OSError, match="File too large"):
        export_model(alone, tmp_path / "out", kind)
    left = list(tmp_path.iterdir())
    assert not left, f"expected nothing under the final name or beside it, found {left}"


@pytest.mark.slow
def test_a_part_beyond_two_gigabytes(kind, alone, tmp_path, monkeypatch):
    """ONNX puts the weights beside the file; LiteRT cannot, and says so."""
    if kind == "litert":
        monkeypatch.setattr(litert, "LARGEST", 0)
        with pytest.raises(UserError, match=r"encoder has .* GB of weights.*'onnx'"):
            export_model(alone, tmp_path / "out", kind)
        return
    monkeypatch.setattr(onnx, "EXTERNAL_ABOVE", 0)
    export_model(alone, tmp_path / "out", kind)
    entries = json.loads((tmp_path / "out" / "pipeline.json").read_text("utf-8"))["parts"]
    files = list(entries["encoder"]["files"])
    assert files == ["encoder.onnx", "encoder.onnx.data"], f"files {files}"
    modes = {oct((tmp_path / "out" / file).stat().st_mode & 0o777) for file in files}
    assert modes == {"0o644"}, f"expected files that a server can read, got {modes}"
    images = np.random.default_rng(0).uniform(-1, 1, (1, *SIZE, 3)).astype("float32")
    found = run_file(kind, tmp_path / "out" / "encoder.onnx", "encode", {"images": images})
    mean, _ = alone.autoencoder.encode(images)
    np.testing.assert_allclose(found["mean"], np.asarray(mean), rtol=0, atol=TOLERANCE)
