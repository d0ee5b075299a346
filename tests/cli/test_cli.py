"""The command line, end to end on forty real images: what it writes, says and refuses.

Training runs once per trainer in a process of its own, as a user starts it; the other commands
run in this process, which has paid for TensorFlow already.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import (
    COMMAND,
    LDM_CONFIG,
    VAE_CONFIG,
    call,
    pixels,
    refused,
    refused_before,
    start,
    succeeds,
)
from conftest import EMOJI
from limits import file_size_limit, resource
from safetensors.numpy import load_file
from tiny import QUICK_AUTOENCODER, quick_model, tiny_autoencoder

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.models.archive import load_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.run import checkpoint
from latentddpm.training.run.contract import Contract
from latentddpm.training.run.runlog import RunLog
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
from latentddpm.utils.files import read_json_lines
from latentddpm.utils.pixels import read_metadata, save_png

# A UNet of one level: a training step is traced in half the time.
UNET = {**LDM_CONFIG["unet"], "channel_multipliers": [1], "attention_levels": []}
KINDS = {"vae": Autoencoder, "unet": UNet, "text_encoder": TextEncoder}
# How TensorFlow, its C++ libraries and absl begin their lines, and words of theirs.
CHATTER = re.compile(
    r"^[IWEF]\d{4} |^WARNING:|oneDNN|cuda|AVX|computation_placer|absl", re.I | re.M
)


def files(folder):
    """Paths below a folder, but for folders."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def same_weights(one, other):
    """Two model folders hold the same numbers, bit by bit."""
    parts = read_model_folder(one).parts
    assert set(parts) == set(read_model_folder(other).parts), "expected the same parts"
    for name in parts:
        arrays = [
            load_archive(read_model_folder(folder).file(name), KINDS[name]).get_weights()
            for folder in (one, other)
        ]
        unequal = sum(not np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
        assert not unequal, f"{name}: {unequal} of {len(arrays[0])} arrays differ"


def same_checkpoint(one, other):
    states = [load_file(folder / checkpoint.STATE) for folder in (one, other)]
    assert set(states[0]) == set(states[1]), "expected the same variables"
    unequal = [
        key for key, array in states[0].items() if not np.array_equal(array, states[1][key])
    ]
    assert not unequal, f"{one.name}: {len(unequal)} variables differ, such as {unequal[0]}"


# --- Shared: data, configurations, trained and untrained models ----------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data`, `vae.yaml` and `ldm.yaml`."""
    lab = tmp_path_factory.mktemp("lab")
    shutil.copytree(EMOJI, lab / "data", ignore=shutil.ignore_patterns("*.md"))
    (lab / "vae.yaml").write_text(yaml.safe_dump(VAE_CONFIG), "utf-8")
    (lab / "ldm.yaml").write_text(yaml.safe_dump({**LDM_CONFIG, "unet": UNET}), "utf-8")
    return lab


def vae_arguments(lab, out, *more):
    return (
        *("train-vae", "--data", lab / "data", "--config", lab / "vae.yaml", "--out", out),
        *more,
    )


def ldm_arguments(lab, out, *more):
    return (
        *("train-diffusion", "--data", lab / "data", "--config", lab / "ldm.yaml"),
        *("--vae", lab / "vae", "--latents", lab / "latents", "--out", out),
        *more,
    )


@pytest.fixture(scope="module")
def vae(lab):
    """Eight steps of `train-vae` in `lab/vae`, where there is nothing to resume yet."""
    return succeeds(start(*vae_arguments(lab, lab / "vae", "--resume")))


@pytest.fixture(scope="module")
def cache(lab, vae):
    """`encode` into `lab/latents`."""
    return succeeds(
        call(
            *("encode", "--data", lab / "data", "--vae", lab / "vae"),
            *("--out", lab / "latents", "--mirrored"),
        )
    )


@pytest.fixture(scope="module")
def ldm(lab, cache):
    """Eight steps of `train-diffusion` in `lab/ldm`, from the cache."""
    return succeeds(start(*ldm_arguments(lab, lab / "ldm")))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an untrained model."""
    folder = tmp_path_factory.mktemp("untrained") / "model"
    quick_model().save(folder)
    return folder


@pytest.fixture(scope="module")
def apple(model, tmp_path_factory):
    """A PNG of the untrained model."""
    path = tmp_path_factory.mktemp("apple") / "apple.png"
    generate(model, "--prompt", "red apple", "--seed", 7, "--out", path)
    return path


def generate(model, *arguments):
    return succeeds(call("generate", "--model", model, *arguments))


# --- The command itself --------------------------------------------------------------------


def processor_seconds():
    """Of the processes that this one has started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once_and_imports_nothing_heavy():
    began = processor_seconds()
    done = succeeds(start("--help"))
    seconds = processor_seconds() - began
    assert seconds < 2, f"--help took {seconds:.2f} s of the processor, expected about 0.3"
    for name in ("train-vae", "train-diffusion", "encode", "generate", "export", "info"):
        assert name in done.stdout, f"expected --help to name {name}"


@pytest.mark.parametrize("command", ["train-vae", "train-diffusion", "generate", "export"])
def test_the_help_of_a_command_needs_neither_tensorflow_nor_keras(command):
    code = (
        "import sys, latentddpm.cli\n"
        "try: latentddpm.cli.main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print(sorted({'tensorflow', 'keras', 'numpy'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, command, "--help"], capture_output=True, text=True
    )
    assert process.stdout.splitlines()[-1] == "[]", f"{command} --help imported too much"


def test_what_can_be_refused_at_once_is(tmp_path):
    lines = (
        ("info", "nowhere"),
        ("generate", "--model", "nowhere"),
        ("generate", "--from", "nowhere.png"),
        ("generate", "--num-images", 0),
        ("generate", "--num-images", 2, "--out", "two.png"),
        ("train-vae", "--data", "nowhere", "--out", "x", "--set", "training.nmu_steps=1"),
    )
    refused_before("tensorflow", lines, tmp_path)


# --- From images to a model ----------------------------------------------------------------


def test_train_vae_leaves_its_run_folder(lab, vae):
    run = lab / "vae"
    assert vae.stdout == f"{run / 'model'}\n", f"expected the model's path alone: {vae.stdout!r}"
    assert "scaling_factor" in vae.stderr, "expected the measured scale on stderr"
    found = files(run)
    expected = {
        "config.yaml",
        "log.jsonl",
        "samples/step-00000008.png",
        "model/vae.keras",
        "model/pipeline.json",
        "model/graphs/encoder.onnx",
        "model/graphs/decoder.onnx",
        *(
            f"checkpoints/{step}/{name}"
            for step in ("step-00000004", "step-00000008", "best/step-00000008")
            for name in (checkpoint.STATE, checkpoint.RUN, checkpoint.MANIFEST)
        ),
    }
    assert expected <= found, f"the run folder lacks {expected - found}"
    events = [name for name in found - expected if name.startswith("tensorboard/events.")]
    catalog = {name for name in found if name.startswith("catalog/version-000001/")}
    assert "catalog/version-000001/catalog.json" in catalog, f"no catalog in {found}"
    strange = found - expected - catalog - set(events) - {"catalog/.lock", ".lock"}
    assert not strange, f"strange files {strange}"
    assert len(events) == 1, f"expected one file of TensorBoard events, found {events}"
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text("utf-8").splitlines()]
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, 9)), f"expected a line for each of 8 steps, got {steps}"
    assert "validation_psnr" in lines[-1], f"expected a validation at the end, got {lines[-1]}"
    settings = yaml.safe_load((run / "config.yaml").read_text("utf-8"))
    for section, values in VAE_CONFIG.items():
        assert settings[section].items() >= values.items(), f"config.yaml: another {section}"
    assert settings["training"]["kl_weight"] == 1e-6, "expected defaults in config.yaml as well"
    making = read_metadata(run / "samples" / "step-00000008.png")
    assert making["training_step"] == 8, f"expected how it was made, got {making}"
    assert all((lab / "data" / name).is_file() for name in making["images"]), (
        f"expected the names of the images, got {making}"
    )


def test_the_latent_scale_is_measured(lab, vae):
    autoencoder = load_archive(lab / "vae" / "model" / "vae.keras", Autoencoder)
    statistics = autoencoder.latent_statistics
    assert 0 < statistics["count"] < 40, f"expected the training images alone: {statistics}"
    assert autoencoder.scaling_factor == pytest.approx(1 / statistics["std"]), (
        "expected the scaling factor to be one over the measured standard deviation"
    )


def test_encode_leaves_a_cache(lab, cache):
    assert cache.stdout == f"{lab / 'latents'}\n", f"expected the path alone: {cache.stdout!r}"
    assert "40 images, latents 16×16×4" in cache.stderr, f"expected a summary: {cache.stderr}"
    assert {"moments.npy", "index.json"} <= files(lab / "latents"), "expected the cache's files"
    text = succeeds(call("info", lab / "latents")).stdout
    for words in ("80 of 16×16×8, float16", "images     40", "mirrored: True", lab / "data"):
        assert str(words) in text, f"expected {words!r} in {text}"


def test_train_diffusion_leaves_its_run_folder(lab, ldm):
    run = lab / "ldm"
    assert ldm.stdout == f"{run / 'model'}\n", f"expected the model's path alone: {ldm.stdout!r}"
    found = files(run)
    expected = {
        "config.yaml",
        "log.jsonl",
        "samples/step-00000008.png",
        *(f"model/{name}.keras" for name in ("vae", "unet", "text_encoder")),
        "model/pipeline.json",
        f"checkpoints/step-00000008/{checkpoint.STATE}",
    }
    assert expected <= found, f"the run folder lacks {expected - found}"
    assert any(name.startswith("tensorboard/events.") for name in found), "no TensorBoard events"
    folders = {path.name for path in run.iterdir() if path.is_dir()}
    assert folders == {"samples", "checkpoints", "tensorboard", "model"}, f"found {folders}"
    picture = run / "samples" / "step-00000008.png"
    height, width, _ = pixels(picture).shape
    assert height > 32, f"expected the prompt above two images of 32 pixels, got {height} rows"
    assert width >= 66, f"expected two images beside each other, got {width} columns"
    making = read_metadata(picture)
    expected = {"training_step": 8, "prompts": ["red apple"], "seed": 0, "num_steps": 2}
    assert making.items() >= expected.items(), f"expected how it was made, got {making}"


def test_a_cache_that_fits_is_read_without_encoding(ldm):
    for word in ("to encode", "encode:"):  # before the bar, and on it
        assert word not in ldm.stderr, f"expected the cache to be read as it is: {ldm.stderr}"


def test_nobody_elses_lines_on_stderr(vae, ldm):
    for name, done in (("train-vae", vae), ("train-diffusion", ldm)):
        found = CHATTER.search(done.stderr)
        assert not found, f"{name}: TensorFlow's chatter on stderr: {done.stderr}"


def test_the_trained_model_generates(lab, ldm, tmp_path):
    done = succeeds(
        start(
            *("generate", "--model", lab / "ldm", "--prompt", "red apple", "--seed", 0),
            *("--out", tmp_path / "apple.png", "--timing"),
        )
    )
    assert done.stdout == f"{tmp_path / 'apple.png'}\n", f"expected the path: {done.stdout!r}"
    assert pixels(tmp_path / "apple.png").shape == (32, 32, 3), "expected the trained size"
    for stretch in ("import ONNX Runtime", "load model", "sampler", "decoder", "write"):
        assert stretch in done.stderr, f"--timing says nothing about {stretch!r}: {done.stderr}"
    assert not CHATTER.search(done.stderr), f"TensorFlow's chatter on stderr: {done.stderr}"


def start_and_kill(folder, step, *arguments):
    """Kill the command (SIGKILL) when its run has a checkpoint of `step`."""
    own = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    with subprocess.Popen(
        [str(COMMAND), *map(str, arguments)],
        env=own,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        while process.poll() is None and not (folder / f"checkpoints/step-{step:08d}").exists():
            time.sleep(0.001)
        process.kill()
        errors = process.stderr.read()
    assert process.returncode == -9, f"expected to kill it, it ended by itself: {errors}"
    assert errors == "", f"expected --quiet to say nothing, got {errors!r}"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["vae", "ldm"])
def test_a_killed_run_that_is_resumed_equals_one_without_interruption(kind, lab, ldm, tmp_path):
    arguments = {"vae": vae_arguments, "ldm": ldm_arguments}[kind]
    whole, halves = lab / kind, tmp_path / kind
    often = ("training.checkpoint_every=1", "training.keep_checkpoints=9")
    often = (word for setting in often for word in ("--set", setting))
    start_and_kill(halves, 5, *arguments(lab, halves, "--quiet", *often))
    step = Path("checkpoints", "step-00000004")
    same_checkpoint(whole / step, halves / step)  # two runs with one seed
    succeeds(call(*arguments(lab, halves, "--quiet", "--resume")))
    step = Path("checkpoints", "step-00000008")
    same_checkpoint(whole / step, halves / step)
    same_weights(whole / "model", halves / "model")
    lines = (halves / "log.jsonl").read_text("utf-8").splitlines()
    steps = [line["step"] for line in map(json.loads, lines) if "loss" in line]
    assert steps == list(range(1, 9)), f"expected the log to go on without a gap, got {steps}"


@pytest.mark.slow
def test_resuming_a_finished_run_gives_its_model_again(lab, ldm, tmp_path):
    shutil.copytree(lab / "ldm", tmp_path / "ldm", ignore=shutil.ignore_patterns("model"))
    succeeds(call(*ldm_arguments(lab, tmp_path / "ldm", "--quiet", "--resume")))
    same_weights(lab / "ldm" / "model", tmp_path / "ldm" / "model")


def test_resuming_with_other_sizes_keeps_the_configuration(lab, ldm, tmp_path):
    shutil.copytree(lab / "ldm", tmp_path / "ldm")
    before = (tmp_path / "ldm" / "config.yaml").read_bytes()
    other = ("--resume", "--quiet", "--set", "unet.channels=32")
    done = call(*ldm_arguments(lab, tmp_path / "ldm", *other))
    refused(done, "unet.channels 16 → 32", "--allow-changes", "step 8")
    done = call(*ldm_arguments(lab, tmp_path / "ldm", *other, "--allow-changes"))
    refused(done, "shape", "sizes")
    after = (tmp_path / "ldm" / "config.yaml").read_bytes()
    assert after == before, "expected config.yaml to stay that of the run"


@pytest.mark.parametrize("kind", ["vae", "ldm"])
def test_a_dry_run_prints_and_writes_nothing(kind, lab, vae, tmp_path):
    arguments = {"vae": vae_arguments, "ldm": ldm_arguments}[kind]
    done = succeeds(
        call(*arguments(lab, tmp_path / "run", "--dry-run", "--set", "data.flip=false"))
    )
    settings = yaml.safe_load(done.stdout)
    assert settings["data"]["flip"] is False, "expected overrides in the resolved configuration"
    assert settings["training"]["seed"] == 0, "expected defaults in the resolved configuration"
    parts = {"vae": {"encoder", "decoder"}, "ldm": {"unet", "text_encoder"}}[kind]
    assert set(settings["parameters"]) == parts, f"expected the sizes of {parts}"
    assert min(settings["parameters"].values()) > 1000, f"sizes {settings['parameters']}"
    assert not list(tmp_path.iterdir()), "expected a dry run to write nothing"


# --- Pictures ------------------------------------------------------------------------------


def test_a_picture_tells_how_it_was_made(model, apple):
    made = read_metadata(apple)
    expected = {
        "prompts": ["red apple"],
        "negative_prompt": "",
        "seed": 7,
        "sampler": "unipc",
        "num_steps": 3,
        "guidance_scale": 3.0,
        "model_digest": read_model_folder(model).digest,
    }
    wrong = {key: made.get(key) for key, value in expected.items() if made.get(key) != value}
    assert not wrong, f"metadata {wrong}, expected {expected}"
    assert "latentddpm" in made, "expected the version in the metadata"


def test_from_makes_the_same_picture_again(apple, tmp_path):
    done = succeeds(call("generate", "--from", apple, "--out", tmp_path / "again.png"))
    assert np.array_equal(pixels(tmp_path / "again.png"), pixels(apple)), "expected equal pixels"
    assert f"every pixel as in {apple}" in done.stderr, f"expected it to be said: {done.stderr}"
    assert read_metadata(tmp_path / "again.png") == read_metadata(apple), "other metadata"


def test_from_takes_what_is_given_beside_it(apple, tmp_path):
    done = succeeds(
        call("generate", "--from", apple, "--seed", 8, "--out", tmp_path / "other.png")
    )
    assert "differs from" in done.stderr, f"expected the difference to be said: {done.stderr}"
    assert read_metadata(tmp_path / "other.png")["seed"] == 8, "expected the given seed"


def test_from_compares_with_the_file_as_it_was(apple, tmp_path):
    """Also where the new picture takes its place."""
    path = tmp_path / "apple.png"
    changed = pixels(apple).copy()
    changed[0, 0, 0] ^= 128
    save_png(path, changed, read_metadata(apple))
    done = succeeds(call("generate", "--from", path, "--out", path))
    assert "by at most 128 of 255" in done.stderr, f"expected the difference: {done.stderr}"


def test_several_prompts_go_into_a_folder(model, apple, tmp_path):
    out = tmp_path / "pictures"
    prompts = ("--prompt", "red apple", "--prompt", "cat face", "--num-images", 2)
    done = generate(model, *prompts, "--seed", 7, "--out", out)
    names = ["red-apple-7.png", "red-apple-8.png", "cat-face-9.png", "cat-face-10.png"]
    assert done.stdout.split() == [str(out / name) for name in names], f"got {done.stdout}"
    seeds = [read_metadata(out / name)["seed"] for name in names]
    assert seeds == [7, 8, 9, 10], f"expected the seed of each image, got {seeds}"
    # One level of 255: another batch size adds up its sums in another order.
    difference = np.abs(pixels(out / names[0]).astype(int) - pixels(apple)).max()
    assert difference <= 1, f"image 0 is {difference} levels off the one made alone"
    again = succeeds(call("generate", "--from", out / names[3], "--out", tmp_path / "9.png"))
    assert re.search("every pixel|by at most 1 of", again.stderr), f"not the same: {again.stderr}"


def test_a_grid_has_a_row_for_each_prompt(model, tmp_path):
    prompts = ("--prompt", "red apple", "--prompt", "cat face", "--num-images", 3)
    out = tmp_path / "grid.png"
    generate(model, *prompts, "--seed", 1, "--grid", "--out", out)
    assert pixels(out).shape == (66, 100, 3), f"expected 2 × 3 images, got {pixels(out).shape}"
    done = succeeds(call("generate", "--from", out, "--out", tmp_path / "again.png"))
    assert "every pixel as in" in done.stderr, f"expected the same grid again: {done.stderr}"


def test_quiet_says_nothing(model, tmp_path):
    done = generate(model, "--prompt", "red apple", "--quiet", "--out", tmp_path)
    assert done.stderr == "", f"expected --quiet to say nothing, got {done.stderr!r}"
    assert Path(done.stdout.strip()).parent == tmp_path, "expected the picture in the folder"


# --- Export and info -----------------------------------------------------------------------


def test_the_trained_autoencoder_is_exported_alone(lab, vae, tmp_path):
    out = tmp_path / "out"
    succeeds(call("export", "--model", lab / "vae", "--format", "keras", "--out", out))
    parts = read_model_folder(out).parts
    assert set(parts) == {"vae"}, f"expected the autoencoder alone, got {sorted(parts)}"


@pytest.mark.slow
def test_export_writes_keras_archives(lab, ldm, tmp_path):
    out = tmp_path / "out"
    done = succeeds(call("export", "--model", lab / "ldm", "--format", "keras", "--out", out))
    assert done.stdout == f"{out}\n", f"expected the path alone, got {done.stdout!r}"
    same_weights(lab / "ldm" / "model", out)


def test_info_describes_a_picture(apple):
    found = json.loads(succeeds(call("info", apple)).stdout)
    assert found == read_metadata(apple), "expected the picture's metadata as JSON"


def test_info_describes_a_model(model):
    text = succeeds(call("info", model)).stdout
    for word in (
        read_model_folder(model).digest,
        "32×32",
        "unet",
        "scaled_linear",
        "num_steps: 3",
    ):
        assert word in text, f"expected {word!r} in {text}"


def test_info_describes_a_run(lab, vae, tmp_path):
    text = succeeds(call("info", lab / "vae")).stdout
    for word in ("step       8", "psnr", "examples/s", "finished"):
        assert word in text, f"expected {word!r} in {text}"
    log = (lab / "vae" / "log.jsonl").read_text("utf-8")
    (tmp_path / "log.jsonl").write_text(log + '{"step": 9, "lo', "utf-8")
    text = succeeds(call("info", tmp_path)).stdout
    assert "step       8" in text, f"expected a torn last line to be left out: {text}"


# --- Bad input -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("no such folder",)),
        ({}, ("no image",)),
        ({"a.png": b"not a picture"}, ()),
    ],
)
@pytest.mark.parametrize("kind", ["vae", "ldm"])
def test_a_folder_without_images_is_refused(kind, content, words, lab, vae, tmp_path):
    data, out = tmp_path / "data", tmp_path / "run"
    if content is not None:
        data.mkdir()
        for name, value in content.items():
            (data / name).write_bytes(value)
    arguments = {"vae": vae_arguments, "ldm": ldm_arguments}[kind](lab, out)
    done = call(*(data if argument == lab / "data" else argument for argument in arguments))
    refused(done, data, *words)
    assert not out.exists(), f"expected no run folder, found {files(out)}"


def test_text_without_captions_is_refused(lab, vae, tmp_path):
    shutil.copytree(lab / "data" / "images", tmp_path / "data")
    arguments = ldm_arguments(lab, tmp_path / "run")
    done = call(*(tmp_path / "data" if a == lab / "data" else a for a in arguments))
    refused(done, "no captions", "text.source=none")
    assert not (tmp_path / "run").exists(), "expected no run folder"


@pytest.mark.parametrize(
    ("kind", "overrides", "words"),
    [
        ("vae", "training.nmu_steps=3", ("training.nmu_steps", "did you mean 'num_steps'")),
        ("vae", "training.num_steps=0", ("training.num_steps", "0")),
        ("vae", "data.resolution=35", ("35", "2", "34 or 36")),
        ("vae", "autoencoder.norm_groups=3", ("norm_groups=3", "8")),
        ("ldm", "data.resolution=35", ("35", "2", "34 or 36")),
        ("ldm", "unet.attention_levels=[2]", ("attention_levels", "2")),
        ("ldm", "unet.num_heads=5", ("unet", "5")),
        ("ldm", "text.num_heads=3", ("num_heads", "3")),
        ("ldm", "text.source=clip", ("text.path",)),
        ("ldm", "samples.sampler=ddin", ("samples.sampler", "did you mean 'ddim'")),
        ("ldm", "samples.num_steps=1001", ("samples.num_steps", "1001")),
    ],
)
def test_settings_that_do_not_fit_are_refused(kind, overrides, words, lab, vae, tmp_path):
    arguments = {"vae": vae_arguments, "ldm": ldm_arguments}[kind]
    settings = [word for override in overrides.split() for word in ("--set", override)]
    for more in ((), ("--dry-run",)):
        done = call(*arguments(lab, tmp_path / "run", *settings, *more))
        refused(done, *words)
    assert not list(tmp_path.iterdir()), "expected nothing written"


def test_a_resolution_that_cannot_be_encoded_is_refused(lab, vae, tmp_path):
    where = ("--data", lab / "data", "--vae", lab / "vae", "--out", tmp_path / "latents")
    refused(call("encode", *where, "--resolution", 35, "--quiet"), "35", "34 or 36")
    assert "index.json" not in files(tmp_path), "expected no cache"


def test_a_run_folder_that_is_taken_is_refused(lab, vae):
    before = files(lab / "vae")
    refused(call(*vae_arguments(lab, lab / "vae")), lab / "vae", "--resume")
    assert files(lab / "vae") == before, "expected the run untouched"


def test_resuming_nothing_starts_and_says_so(lab, vae):
    said = f"{lab / 'vae'}: no checkpoint yet, starting from the beginning"
    assert said in vae.stderr.splitlines(), f"{vae.stderr!r}, expected {said!r}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--num-images", 2, "--out", "two.png"), ("two.png", "folder", "--grid")),
        (("--out", "apple.jpg"), ("apple.jpg", ".png")),
        (("--sampler", "ddin"), ("'ddin'", "did you mean 'ddim'")),
        (("--steps", 0), ("--steps: ", "1 to 1000", "0")),
        (("--steps", 1001), ("--steps: ", "1 to 1000", "1001")),
        (("--num-images", 0, "--grid"), ("num-images", "0")),
        (("--batch-size", 0), ("--batch-size: ", "0")),
        (("--height", 0), ("--height", "0")),
        (("--width", 31), ("--width 31", "30 or 32")),
        (("--seed", -1), ("--seed: ", "-1")),
    ],
)
def test_a_picture_that_cannot_be_made_is_refused(options, words, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(call("generate", "--model", model, "--prompt", "red apple", *options), *words)
    assert not list(tmp_path.iterdir()), "expected no picture"


def test_a_model_folder_that_is_not_whole_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    (folder / "unet.keras").unlink()
    for command in (("info", folder), ("generate", "--model", folder, "--out", tmp_path / "x")):
        refused(call(*command), folder / "unet.keras", "missing")


def test_a_unet_of_another_autoencoder_is_refused(model, tmp_path):
    folder = shutil.copytree(model, tmp_path / "model")
    other = LatentDiffusion(tiny_autoencoder(seed=1, **QUICK_AUTOENCODER), None, None)
    other = other.save(tmp_path / "other")
    shutil.copy(other.file("vae"), folder / "vae.keras")
    manifest = json.loads((folder / "pipeline.json").read_text("utf-8"))
    manifest["parts"]["vae"] = other.parts["vae"]
    (folder / "pipeline.json").write_text(json.dumps(manifest), "utf-8")
    done = call("generate", "--model", folder, "--out", tmp_path / "x.png")
    refused(done, "another autoencoder", other.parts["vae"]["digest"][:12])


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, ("no latentddpm metadata",)),
        ([], ("prompts",)),
        (5, ("prompts",)),
        ({"prompts": ["a"], "seed": 1}, ("model_digest",)),
        ({"prompts": ["a"], "seed": "1", "model_digest": "x"}, ("seed", "'1'")),
        ({"prompts": "ab", "seed": 1, "model_digest": "x"}, ("prompts", "'ab'")),
    ],
)
def test_a_picture_of_others_cannot_be_made_again(metadata, words, model, tmp_path):
    path = tmp_path / "picture.png"
    save_png(path, np.zeros((32, 32, 3), np.uint8), metadata)
    refused(call("generate", "--from", path, "--model", model), path, *words)
    if metadata is None:
        text = succeeds(call("info", path)).stdout
        missing = [word for word in ("PNG 32×32", *words) if word not in text]
        assert not missing, f"expected {missing} to be said of the picture: {text}"


def test_a_picture_of_another_model_is_refused(apple, tmp_path):
    quick_model(seed=1).save(tmp_path / "model")
    done = call("generate", "--from", apple, "--model", tmp_path / "model")
    refused(done, apple, read_metadata(apple)["model_digest"], "--model")


def test_info_of_nothing_is_refused(tmp_path):
    refused(call("info", tmp_path / "nothing.png"), "nothing.png", "no such file")
    refused(call("info", tmp_path / "nothing"), "nothing", "no such file or folder")
    refused(call("info", tmp_path), tmp_path, "a folder of 0 entries, that no command takes")


def test_an_export_that_cannot_be_is_refused(model, tmp_path):
    taken = call("export", "--model", model, "--out", tmp_path)
    refused(taken, tmp_path, "exists already")
    unknown = call("export", "--model", model, "--format", "onxx", "--out", tmp_path / "out")
    refused(unknown, "format", "'onxx'", "'saved-model'")
    assert not list(tmp_path.iterdir()), "expected nothing written"


# --- A disk that is full -------------------------------------------------------------------


def test_a_picture_on_a_full_disk_is_one_line_and_no_file(model, tmp_path):
    options = ("--prompt", "red apple", "--quiet", "--out", tmp_path / "apple.png")
    with file_size_limit(500):
        done = call("generate", "--model", model, *options)
    refused(done, "File too large", code=1)
    assert not list(tmp_path.iterdir()), f"left behind: {list(tmp_path.iterdir())}"


def test_nothing_half_written_of_a_model_or_checkpoint(tmp_path):
    autoencoder = tiny_autoencoder(channel_multipliers=(2,), num_res_blocks=0)
    trainer = AutoencoderTrainer(autoencoder)
    trainer.compile("adam")
    trainer.optimizer.build(trainer.trainable_variables)
    alone = LatentDiffusion(autoencoder, None, None)
    contract = Contract("train-vae", {}, {})
    for name, write in {
        "model": alone.save,
        "half": lambda path: alone.save(path, "float16"),
        "checkpoint": lambda path: checkpoint.save(path, trainer, 1, contract),
    }.items():
        folder = tmp_path / name
        with file_size_limit(40_000), pytest.raises(OSError, match="too large") as error:
            write(folder)
        assert "\n" not in str(error.value), f"{name}: expected one line, got {error.value}"
        left = files(tmp_path)
        assert not left, f"{name}: left behind {left}"


def test_a_log_on_a_full_disk_is_a_system_fault(tmp_path):
    log = RunLog(tmp_path)
    with file_size_limit(10), pytest.raises(OSError, match="File too large"):
        log.write(1, {"loss": 1.0})


def test_a_log_goes_on_from_the_step_that_is_resumed(tmp_path):
    log = RunLog(tmp_path)
    for step in (5, 10, 15):
        log.write(step, {"loss": float(step)})
    with open(log.path, "a", encoding="utf-8") as stream:
        stream.write('{"step": 20, "lo')  # torn by a kill
    RunLog(tmp_path, first=10).write(15, {"loss": 1.0})
    found = [(line["step"], line["loss"]) for line in read_json_lines(log.path)]
    assert found == [(5, 5.0), (10, 10.0), (15, 1.0)], f"lines after step 10 are redone: {found}"


@pytest.mark.slow
def test_training_on_a_full_disk_is_one_line(lab, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)], capture_output=True
    )
    if mount.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        done = start(*vae_arguments(lab, disk / "run", "--quiet"))
        refused(done, "No space left on device", code=1)
        left = files(disk / "run")
        assert not any("checkpoints" in name or ".tmp-" in name for name in left), (
            f"half-written files {left}"
        )
    finally:
        subprocess.run(["umount", str(disk)], check=True)
