"""Engines: ONNX Runtime draws what Keras draws, from the same folder, without importing Keras."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import environment
from tiny import conditioned_model, pixel_model, quick_model, step_by_step, tiny_lora

from latentddpm.diffusion.guidance import ClassifierFreeGuidance
from latentddpm.diffusion.inpainting import Inpainting
from latentddpm.diffusion.samplers import NAMES, get
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.engines.networks import COPIES_TO_OPEN, choose_engine
from latentddpm.errors import UserError
from latentddpm.export.endpoints import endpoints, examples
from latentddpm.generation.devices import engine_of, jit_of
from latentddpm.generation.loras import load_model
from latentddpm.graphs.entries import PARTS
from latentddpm.graphs.graph_file import read_graph_file
from latentddpm.interop.lora_merge import merge_lora
from latentddpm.models.autoencoder.tiling import decode
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import MANIFEST, read_model_folder
from latentddpm.utils import arrays
from latentddpm.utils.machine import accelerators

SIZES = {"height": 16, "width": 24, "num_steps": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of an untrained model with text, with graphs."""
    path = tmp_path_factory.mktemp("engines") / "model"
    quick_model().save(path)
    return path


@pytest.fixture(scope="module")
def models(folder):
    """The model of the folder, by both engines."""
    return {engine: LatentDiffusion.load(folder, engine) for engine in ("keras", "onnx")}


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "")


def levels_apart(models, *prompts, **options):
    """Largest difference of the images of both engines, in levels of 255."""
    images = [models[engine].generate(prompts, **options).astype(int) for engine in models]
    assert images[0].std() > 1, "the untrained model draws one color: nothing is compared"
    return np.abs(images[0] - images[1]).max()


# --- The same pictures -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"guidance_scale": 3.0, "sampler": "unipc", "num_images": 2},
        {"negative_prompt": "a dog", "sampler": "ddpm", "guidance_rescale": 0.5},
    ],
    ids=["text", "noise in the steps"],
)
@step_by_step()
def test_both_engines_draw_the_same(models, options):
    apart = levels_apart(models, "a cat", "an apple", seed=1, **SIZES, **options)
    assert apart <= 1, f"{apart} levels of 255, expected at most 1"


@step_by_step()
def test_both_engines_paint_the_same_into_a_picture(models):
    numbers = np.random.default_rng(0)
    start = {"init_image": numbers.integers(0, 255, (16, 24, 3), np.uint8)}
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 12:] = 255
    apart = levels_apart(models, "a cat", seed=1, mask=mask, strength=0.5, **start, **SIZES)
    assert apart <= 1, f"{apart} levels of 255, expected at most 1"


def test_weights_are_copied_whatever_their_order_in_memory(folder):
    """A merged LoRA may leave them transposed; once they are bound their memory is free."""
    inputs = {"noisy_latents": np.ones((1, 4, 4, 4), np.float32), "timesteps": np.ones(1)}
    results = []
    for order in ("C", "F"):
        unet = LatentDiffusion.load(folder, "onnx").unet
        inputs["context"] = np.ones((1, 3, unet.context_dim), np.float32)
        kept = {name: np.array(value, order=order) for name, value in unet.weights.items()}
        run = unet.graph.bind(kept)
        for value in kept.values():
            value.fill(np.nan)
        results.append(run(inputs))
    assert np.isfinite(results[0]).all(), "the session reads the arrays that it was given"
    np.testing.assert_array_equal(*results)


@step_by_step()
def test_a_model_of_pixels_has_an_engine_too(tmp_path):
    pixel_model().save(tmp_path / "model")
    both = {
        engine: LatentDiffusion.load(tmp_path / "model", engine) for engine in ("keras", "onnx")
    }
    assert both["onnx"].engine == "onnx", f"{both['onnx'].engine}"
    apart = levels_apart(both, "", seed=1, num_steps=2)
    assert apart <= 1, f"{apart} levels of 255, expected at most 1"


def test_strips_and_one_pass_are_the_same(models):
    latents = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
    first_stage = models["onnx"].autoencoder
    whole, strips = (decode(first_stage, latents, tile) for tile in ("off", 4))
    assert np.abs(whole - strips).max() < 1e-4, f"{np.abs(whole - strips).max()}, expected 1e-5"


@pytest.mark.slow
def test_a_lora_changes_both_engines_alike(tmp_path, folder):
    both = {engine: LatentDiffusion.load(folder, engine) for engine in ("keras", "onnx")}
    plain = both["keras"].generate("a cat", seed=1, **SIZES)
    tiny_lora(tmp_path / "lora.safetensors", width=16)
    for model in both.values():
        merge_lora(model, tmp_path / "lora.safetensors", 3.0)
    apart = levels_apart(both, "a cat", seed=1, **SIZES)
    assert apart <= 1, f"{apart} levels of 255, expected at most 1"
    changed = np.abs(plain.astype(int) - both["keras"].generate("a cat", seed=1, **SIZES)).max()
    assert changed > 1, f"the LoRA changed {changed} levels: nothing is compared"
    with pytest.raises(UserError, match="has computed already"):
        merge_lora(both["onnx"], tmp_path / "lora.safetensors", 1.0)


@step_by_step()
def test_conditions_reach_both_engines_alike(tmp_path):
    conditioned_model().save(tmp_path / "model")
    both = {name: LatentDiffusion.load(tmp_path / "model", name) for name in ("keras", "onnx")}
    keras_unet, onnx_unet = (model.unet for model in both.values())
    (_, inputs) = examples(endpoints(both["keras"])["denoise"], both["keras"])
    found, expected = onnx_unet(inputs), np.asarray(keras_unet(inputs))
    assert onnx_unet.conditions == keras_unet.conditions
    np.testing.assert_allclose(found, expected, atol=1e-5)
    lines = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    told = {"lines": lines, "digit": "b", "age": 43, "style": 7.5}
    apart = levels_apart(both, "a cat", seed=1, conditions=told, guidance_scale=2.0, **SIZES)
    assert apart <= 1, f"{apart} levels of 255, expected at most 1"
    other = {**told, "digit": "c", "age": None}
    images = [both["onnx"].generate("a", seed=1, conditions=one, **SIZES) for one in (told, other)]
    assert np.abs(images[0].astype(int) - images[1]).max() > 1, "the conditions change nothing"


@pytest.mark.parametrize("name", NAMES)
def test_numpy_and_tensors_are_sampled_alike(name):
    """With NumPy arrays NumPy computes the steps; with tensors Keras's backend does."""
    import keras

    schedule = NoiseSchedule(prediction_type="v_prediction")
    numbers = np.random.default_rng(0)
    start, known = numbers.standard_normal((2, 2, 4, 4, 2), np.float32)
    noise = {k: numbers.standard_normal((2, 4, 4, 2), np.float32) for k in range(9)}
    context = numbers.standard_normal((2, 3, 4), np.float32)
    repaint = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4, 1)

    def network(noisy_latents, timesteps, context):
        shift = context[:, :1, None, :2]
        level = arrays.cast(timesteps, "float32")[:, None, None, None] / 1000
        return 0.5 * noisy_latents + shift - level

    results = []
    for kind in (np.asarray, keras.ops.convert_to_tensor):
        guided = ClassifierFreeGuidance(network, kind(context), kind(0 * context), 2.0, 0.5)
        sampler = Inpainting(get(name)(schedule, 4, "trailing"), known, repaint)
        draw = lambda step, more=0: noise[step + 4 * more]  # noqa: E731
        results.append(sampler.sample(guided, kind(start), draw))
    assert isinstance(results[0], np.ndarray), f"{type(results[0])}, expected NumPy's"
    assert not isinstance(results[1], np.ndarray), "expected a tensor"
    difference = np.abs(results[0] - keras.ops.convert_to_numpy(results[1])).max()
    assert difference < 1e-5, f"{difference}, expected rounding errors"


# --- Without Keras ---------------------------------------------------------------------------


def test_the_command_needs_no_keras(tmp_path, folder):
    code = (
        "import sys\nfrom latentddpm.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n    assert not end.code, end\n"
        "print(sorted({'keras', 'tensorflow', 'keras_hub'} & set(sys.modules)))"
    )
    words = ["generate", "--prompt", "a cat", "--seed", "1", "--steps", "2", "--quiet"]
    words += ["--model", str(folder), "--out", str(tmp_path / "a.png")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=environment() | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"expected it to draw: {done.stderr}"
    assert done.stdout.splitlines()[-1] == "[]", f"imported {done.stdout}"
    assert (tmp_path / "a.png").is_file(), "no picture"


# --- Which engine ----------------------------------------------------------------------------


def test_auto_takes_graphs_on_a_processor(folder, tmp_path, monkeypatch):
    found = read_model_folder(folder)
    assert choose_engine("auto", found) == "onnx", "a folder with graphs, and no accelerator"
    assert choose_engine("keras", found) == "keras", "as asked for"
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(
        "latentddpm.engines.networks.has_accelerator",
        lambda: accelerators.has_accelerator(tmp_path, {}),
    )
    assert choose_engine("auto", found) == "keras", "a GPU is faster"
    assert choose_engine("onnx", found) == "onnx", "as asked for, on the processor"
    hidden = accelerators.has_accelerator(tmp_path, {"CUDA_VISIBLE_DEVICES": "-1"})
    assert not hidden, "a hidden GPU is none"


def test_a_model_too_large_to_open_is_kerass(folder, monkeypatch):
    found = read_model_folder(folder)
    largest = max(read_graph_file(found.graph(name)).weight_bytes for name in PARTS)
    least = COPIES_TO_OPEN * largest
    for free, expected in ((least, "keras"), (least + 1, "onnx"), (None, "onnx")):
        monkeypatch.setattr("latentddpm.engines.networks.free_memory", lambda free=free: free)
        assert choose_engine("auto", found) == expected, f"{free} bytes free, {largest} of weights"
    assert choose_engine("onnx", found) == "onnx", "as asked for"


def test_another_backend_of_keras_is_taken_at_its_word(folder, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert choose_engine("auto", read_model_folder(folder)) == "keras", "the user wants JAX"


def test_a_folder_without_graphs(folder, tmp_path):
    old = shutil.copytree(folder, tmp_path / "old")
    manifest = json.loads((old / MANIFEST).read_text())
    del manifest["graphs"]
    (old / MANIFEST).write_text(json.dumps(manifest))
    found = read_model_folder(old)
    assert choose_engine("auto", found) == "keras", "Keras computes the same without graphs"
    with pytest.raises(UserError, match="export --format graphs"):
        choose_engine("onnx", found)
    with pytest.raises(UserError, match="tensorrt"):
        choose_engine("tensorrt", found)


def test_a_picture_is_made_again_by_its_engine(folder):
    found = read_model_folder(folder)
    assert engine_of(found, None, "keras", "auto") == ("keras", None), "as the picture says"
    assert engine_of(found, "onnx", "keras", "auto") == ("onnx", None), "as asked for"
    assert engine_of(found, None, None, "mirrored:2")[0] == "keras", "two devices are Keras's"
    engine, note = engine_of(found, None, "tensorrt", "auto")
    assert engine == "keras", f"{engine}"
    assert "cannot be had here" in note, f"{note}"
    with pytest.raises(UserError, match="--strategy mirrored:2 needs --engine keras"):
        engine_of(found, "onnx", None, "mirrored:2")


def test_xla_is_kerass():
    found = [jit_of(given, "keras") for given in (None, "auto", "on", "off")]
    assert found == [None, None, True, False], f"{found}"
    with pytest.raises(UserError, match="--jit on: the engine onnx has no XLA"):
        jit_of("on", "onnx")
    with pytest.raises(UserError, match="--jit: 'yes'"):
        jit_of("yes", "keras")


@pytest.mark.slow
def test_a_network_that_xla_compiles_draws_the_same(folder, models):
    compiled = load_model(folder, (), jit=True)
    both = {"keras": models["keras"], "xla": compiled}
    apart = levels_apart(both, "a cat", seed=1, **SIZES)
    assert apart <= 1, f"{apart} levels of 255, expected at most 1"


def test_a_graph_is_not_saved(models, tmp_path):
    with pytest.raises(UserError, match="engine='keras'"):
        models["onnx"].save(tmp_path / "copy")


def test_weights_of_another_shape_are_named(folder, tmp_path):
    other = quick_model(num_res_blocks=1)
    path = tmp_path / "mixed"
    other.save(path)
    graphs = path / "graphs"
    shutil.rmtree(graphs)
    shutil.copytree(folder / "graphs", graphs)
    with pytest.raises(UserError, match="no graph of its encoder"):
        choose_engine("onnx", read_model_folder(path))
