"""LoRA: a change that starts at nothing, trains alone, and is the same merged as beside."""

import copy
import hashlib
import shutil

import keras
import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from tiny import UNET, few_emoji, perturb, step_by_step, tiny_autoencoder, tiny_model

from latentddpm import interop
from latentddpm.cli import main
from latentddpm.config import DiffusionRun
from latentddpm.config_file import load_config
from latentddpm.errors import UserError
from latentddpm.generation.loras import read_loras
from latentddpm.interop.lora import add_lora, save_lora
from latentddpm.interop.lora_file import read_lora_metadata
from latentddpm.interop.lora_merge import merge_lora
from latentddpm.models.archive import load_archive
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import rebuild
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.pipeline.model_folder import read_model_folder
from latentddpm.training.diffusion import train_diffusion
from latentddpm.training.diffusion_networks import build_networks
from latentddpm.training.plan.sources import read_sources
from latentddpm.utils.pixels import read_metadata

ATTENTION = ("query", "key", "value", "out")
QUERY = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
NUMBERS = np.random.default_rng(0)
INPUTS = {
    "noisy_latents": NUMBERS.standard_normal((2, 4, 4, 4)).astype("float32"),
    "timesteps": np.array([3, 500], "float32"),
    "context": NUMBERS.standard_normal((2, 5, 16)).astype("float32"),
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A folder with `data`, and `base`, the model that is changed."""
    lab = tmp_path_factory.mktemp("lab")
    few_emoji(lab / "data")
    model = tiny_model()
    model.autoencoder = tiny_autoencoder(num_res_blocks=0)
    model.save(lab / "base")
    return lab


@pytest.fixture(scope="module")
def base(lab):
    """The model's parts, to look at but not to change."""
    return LatentDiffusion.load(lab / "base")


@pytest.fixture(scope="module")
def changed(base):
    """A copy of the UNet with a LoRA of rank 3 on every kind of projection, not zero any more."""
    keras.utils.set_random_seed(1)
    unet = rebuild(base.unet)
    add_lora(unet, 3, 6.0, (*ATTENTION, "proj_in", "proj_out", "ff_in", "ff_out"))
    numbers = np.random.default_rng(2)
    for variable in unet.trainable_variables:
        variable.assign(numbers.normal(0, 0.1, variable.shape))
    return unet


@pytest.fixture(scope="module")
def file(changed, tmp_path_factory):
    path = tmp_path_factory.mktemp("lora") / "all.safetensors"
    save_lora(changed, path, {"rank": 3})
    return path


@pytest.fixture
def model(base):
    """The model, to change: it gets its weights back afterwards."""
    networks = base.unet, base.text_encoder
    weights = [network.get_weights() for network in networks]
    yield base
    for network, values in zip(networks, weights, strict=True):
        network.set_weights(values)


def predict(unet):
    return np.asarray(unet(INPUTS))


def call(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def succeeds(*arguments):
    done = call(*arguments)
    assert done.exit_code == 0, f"expected exit code 0: {done.output} {done.exception!r}"
    return done


# --- What is added -------------------------------------------------------------------------


@pytest.mark.slow
def test_it_starts_as_no_change_and_trains_alone(base):
    keras.utils.set_random_seed(1)
    unet = rebuild(base.unet)
    add_lora(unet, 2, 2.0, ATTENTION)
    np.testing.assert_array_equal(predict(unet), predict(base.unet), err_msg="changed at once")
    names = {variable.name for variable in unet.trainable_variables}
    assert names == {"lora_kernel_a", "lora_kernel_b"}, f"trains {names}"
    # Blocks of attention: one down, the middle, two up, each with twice four projections.
    count = len(unet.trainable_variables)
    assert count == 2 * 8 * 4, f"{count} variables train, expected 64"
    downs = [v for v in unet.trainable_variables if v.name == "lora_kernel_a"]
    for down in downs:
        bound = 1 / np.sqrt(down.shape[0])
        largest = np.abs(down).max()
        assert 0.8 * bound < largest <= bound, f"{down.path}: up to {largest}, bound {bound}"
    alike = {np.asarray(down).tobytes() for down in downs}
    assert len(alike) == len(downs), "two projections start with the same numbers"


def test_only_what_is_named_gets_one(base):
    unet = rebuild(base.unet)
    add_lora(unet, 1, 1.0, ("query", "ff_in"))
    paths = {variable.path.split("/")[-2] for variable in unet.trainable_variables}
    assert paths == {"query", "ff_in"}, f"LoRA on {paths}"


def test_an_unconditional_unet_has_attention_too():
    unet = UNet(**UNET)
    perturb(unet)
    before = np.asarray(unet({k: v for k, v in INPUTS.items() if k != "context"}))
    with pytest.raises(UserError, match="'ff_in'"):
        add_lora(unet, 1, 1.0, ("ff_in",))
    add_lora(unet, 1, 1.0, ATTENTION)
    after = np.asarray(unet({k: v for k, v in INPUTS.items() if k != "context"}))
    np.testing.assert_array_equal(after, before, err_msg="changed at once")


# --- Files ---------------------------------------------------------------------------------


def test_merged_equals_unmerged(model, changed, file):
    before = predict(model.unet)
    effect = np.abs(before - predict(changed)).max()
    assert effect > 0.1, f"the LoRA changes the prediction by {effect} only"
    merge_lora(model, file)
    np.testing.assert_allclose(predict(model.unet), predict(changed), atol=1e-5)
    merge_lora(model, file, -1.0)
    np.testing.assert_allclose(
        predict(model.unet), before, atol=1e-5, err_msg="merged and taken out"
    )


def test_a_model_remembers_what_was_merged(base, file):
    model = copy.copy(base)
    model.unet, model.loras = rebuild(base.unet), []
    merge_lora(model, file, 0.5)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    expected = [{"file": "all.safetensors", "sha256": digest, "scale": 0.5}]
    assert model.loras == expected, f"it remembers {model.loras}"


def test_the_change_is_the_formula(model, file):
    tensors = load_file(file)
    kernel = model.unet.get_layer("mid_attention").self_attention.query.kernel
    before = np.asarray(kernel)
    merge_lora(model, file, 0.5)
    up, down = (tensors[f"{QUERY}.lora_{half}.weight"] for half in ("up", "down"))
    alpha = float(tensors[f"{QUERY}.alpha"])
    assert (alpha, down.shape) == (6.0, (3, 32)), f"alpha {alpha}, rank by {down.shape}"
    expected = before + 0.5 * 6 / 3 * (up @ down).T
    np.testing.assert_allclose(kernel, expected, atol=1e-6, err_msg="W + scale · α/r · A B")


def test_two_files_add_up(model, changed, file):
    merge_lora(model, file, 0.25)
    merge_lora(model, file, 0.75)
    np.testing.assert_allclose(predict(model.unet), predict(changed), atol=1e-5)


@pytest.mark.parametrize(
    ("start", "down", "up"),
    [
        ("unet.{}", "lora_A.weight", "lora_B.weight"),
        ("unet.{}", "lora.down.weight", "lora.up.weight"),
    ],
    ids=["peft", "diffusers"],
)
def test_other_names_are_read(model, tmp_path, start, down, up):
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    numbers = np.random.default_rng(4)
    tensors = {
        f"{start.format(module)}.{down}": numbers.normal(size=(2, 32)).astype("float16"),
        f"{start.format(module)}.{up}": numbers.normal(size=(32, 2)).astype("float16"),
    }
    save_file(tensors, tmp_path / "x.safetensors")
    kernel = model.unet.get_layer("mid_attention").self_attention.query.kernel
    before = np.asarray(kernel)
    merge_lora(model, tmp_path / "x.safetensors")
    a, b = (array.astype("float32") for array in tensors.values())
    np.testing.assert_allclose(kernel, before + (b @ a).T, atol=1e-5, err_msg="α/r is 1 here")


@pytest.mark.parametrize("start", ["lora_te_text_model_{}", "text_encoder.text_model.{}"])
def test_the_text_encoder_is_changed_as_well(model, tmp_path, start):
    name, (down, up) = "encoder.layers.0.self_attn.q_proj", ("lora_A", "lora_B")
    if start.startswith("lora"):
        name, (down, up) = name.replace(".", "_"), ("lora_down", "lora_up")
    a, b = np.random.default_rng(5).normal(size=(2, 2, 16)).astype("float32")
    stem = start.format(name)
    tensors = {f"{stem}.{down}.weight": a, f"{stem}.{up}.weight": np.ascontiguousarray(b.T)}
    save_file(tensors, tmp_path / "x.safetensors")
    dense = model.text_encoder.get_layer("encoder_block_0").attention.query_dense
    before = np.asarray(dense.kernel).reshape(16, 16)
    merge_lora(model, tmp_path / "x.safetensors")
    after = np.asarray(dense.kernel).reshape(16, 16)
    np.testing.assert_allclose(after, before + (b.T @ a).T, atol=1e-5, err_msg="W + A B")


def broken(file, **changes):
    """Tensors of a LoRA file with some of them replaced, or left out (None)."""
    tensors = {**load_file(file), **changes}
    return {key: value for key, value in tensors.items() if value is not None}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({f"{QUERY}.lora_up.weight": None}, (QUERY, "no up")),
        ({f"{QUERY}.lora_down.weight": np.ones((3, 31), "float32")}, (QUERY, "(3, 31)", "32")),
        ({f"{QUERY}.lora_up.weight": np.ones((32, 4), "float32")}, (QUERY, "(32, 4)", "(32, 3)")),
        ({f"{QUERY}.lora_down.weight": np.ones((3, 32), "int32")}, (QUERY, "I32", "F16")),
        ({f"{QUERY}q.alpha": np.array(1.0, "float32")}, (f"{QUERY}q", "did you mean", QUERY)),
        ({"conv_in.weight": np.ones(3, "float32")}, ("conv_in.weight", "not of a LoRA")),
    ],
    ids=["half", "width", "rank", "type", "name", "other"],
)
def test_what_does_not_fit_is_refused_untouched(model, file, tmp_path, changes, words):
    path = tmp_path / "broken.safetensors"
    save_file(broken(file, **changes), path)
    before = model.unet.get_weights()
    with pytest.raises(UserError) as caught:
        merge_lora(model, path)
    missing = [word for word in (*words, str(path)) if word not in str(caught.value)]
    assert not missing, f"{str(caught.value)!r} does not name {missing}"
    for one, value in zip(model.unet.weights, before, strict=True):
        np.testing.assert_array_equal(one, value, err_msg=f"half merged: {one.path}")


def test_another_base_is_told_by_its_digest(model, file, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(load_file(file), path, {"base_digest": "0123456789ab", "base_model": "sd15"})
    with pytest.warns(UserWarning, match=r"sd15 \(0123456789ab\)"):
        merge_lora(model, path)


@pytest.mark.parametrize(
    ("option", "word"),
    [("nowhere.safetensors", "no such file"), ("x:y", "FILE:SCALE"), ("x:nan", "finite")],
)
def test_options_that_name_no_file_are_refused(option, word):
    with pytest.raises(UserError, match=word):
        read_loras([option])


# --- A run and what comes of it ------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(lab):
    """The networks after four steps of a LoRA of rank 2, whose run is in `run`."""
    training = {
        "num_steps": 4,
        "batch_size": 4,
        "warmup_steps": 0,
        "learning_rate": 1e-2,
        "ema_momentum": 0.5,
        "validate_every": 4,
        "checkpoint_every": 2,
        "precision": "float32",
    }
    settings = {
        "lora": {"rank": 2, "alpha": 4},
        "training": training,
        "samples": {"prompts": ["red apple"], "images_per_prompt": 1, "num_steps": 1},
    }
    (lab / "lora.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    config = load_config(DiffusionRun, lab / "lora.yaml", init=lab / "base")
    with step_by_step():
        return train_diffusion(
            config, lab / "data", None, lab / "run", latents=lab / "latents", quiet=True
        )


@pytest.fixture(scope="module")
def run(lab, trained):
    return lab / "run"


def arguments(lab, out, *more, init="base"):
    return (
        *("train-diffusion", "--data", lab / "data", "--init", lab / init),
        *("--latents", lab / "latents", "--config", lab / "lora.yaml", "--out", out),
        *more,
    )


def test_a_run_leaves_a_small_file(lab, base, run):
    path = run / "lora.safetensors"
    size = path.stat().st_size
    numbers = sum(array.size for array in load_file(path).values())
    assert 4 * numbers < size < 4 * numbers + 20_000, f"{size} bytes for {numbers} numbers"
    assert not (run / "model").exists(), "a LoRA run wrote a model as well"
    metadata = read_lora_metadata(path)
    assert (metadata["rank"], metadata["alpha"]) == ("2", "4.0"), f"metadata {metadata}"
    assert metadata["base_digest"] == base.digest, "the file does not know its base"
    ups = [array for key, array in load_file(path).items() if "lora_up" in key]
    assert len(ups) == 32, f"{len(ups)} projections, expected 32"
    assert all(np.any(up) for up in ups), "a projection was not trained"


def test_training_changes_nothing_else(base, trained):
    """The frozen weights are those of the model, bit by bit."""
    for network, before in ((trained.unet, base.unet), (trained.text_encoder, base.text_encoder)):
        found = {variable.path: np.asarray(variable) for variable in network.weights}
        for variable in before.weights:
            np.testing.assert_array_equal(
                found[variable.path], variable, err_msg=f"{variable.path} was trained"
            )


def test_a_checkpoint_holds_what_trains_and_not_the_base(base, trained, run):
    state = load_file(run / "checkpoints" / "step-00000004" / "state.safetensors")
    trains = sum(int(np.prod(v.shape)) for v in trained.unet.trainable_variables)
    held = sum(array.size for array in state.values())
    # Weights, two moments, averages, a count.
    assert held == 4 * trains + 1, f"{held} numbers for {trains} that train"
    frozen = {np.asarray(v).tobytes() for v in base.unet.weights if np.any(v) and v.shape != ()}
    kept = [key for key, array in state.items() if array.tobytes() in frozen]
    assert not kept, f"{kept} are weights of the base"


def test_a_base_that_was_moved_is_the_same(lab, run, tmp_path):
    """The finished run again: the same file, byte for byte, header included."""
    moved = lab / "moved" / "base"
    shutil.copytree(lab / "base", moved)
    again = tmp_path / "again"
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("lora.safetensors"))
    done = succeeds(*arguments(lab, again, "--resume", init=moved))
    assert done.stdout == f"{again / 'lora.safetensors'}\n", f"stdout: {done.stdout!r}"
    digest = read_model_folder(lab / "base").digest
    said = f"init {lab / 'base'} ({digest}) → {moved} ({digest})"
    assert said in done.stderr, f"{done.stderr!r}, expected {said!r}"
    one, other = ((folder / "lora.safetensors").read_bytes() for folder in (run, again))
    assert one == other, "the same LoRA is other bytes"


@pytest.mark.slow
def test_another_base_is_refused(lab, run):
    tiny_model(seed=1).save(lab / "other")
    done = call(*arguments(lab, run, "--resume", init="other"))
    assert done.exit_code == 2, f"exit code {done.exit_code}: {done.output}"
    for name in ("base", "other"):
        said = f"{lab / name} ({read_model_folder(lab / name).digest})"
        assert said in done.stderr, f"{done.stderr!r} does not name {said}"
    assert "--allow-changes" in done.stderr, f"{done.stderr!r}"


@pytest.mark.slow
def test_resuming_gives_the_same_bytes(lab, tmp_path):
    """Both by the command: the fixture `run` has no graph, whose sums round otherwise."""
    whole, again = tmp_path / "whole", tmp_path / "again"
    succeeds(*arguments(lab, whole, "--quiet"))
    shutil.copytree(whole / "checkpoints" / "step-00000002", again / "checkpoints/step-00000002")
    succeeds(*arguments(lab, again, "--resume", "--quiet"))
    found, expected = ((folder / "lora.safetensors").read_bytes() for folder in (again, whole))
    assert found == expected, "two steps after resuming: other bytes"


def test_generate_takes_a_run_and_remembers_it(lab, run, tmp_path):
    strong = tmp_path / "strong.png"
    shared = ("--model", lab / "base", "--lora", f"{run}:40", "--out", strong, "--quiet")
    succeeds("generate", "--prompt", "red apple", "--seed", 3, *shared)
    trace = read_metadata(strong)["loras"]
    assert [(one["file"], one["scale"]) for one in trace] == [("lora.safetensors", 40.0)]
    done = call("generate", "--from", strong, "--out", tmp_path / "again.png")
    assert done.exit_code == 2, "made again without the LoRA"
    assert "--lora FILE:40" in done.stderr, f"{done.stderr}: expected how to give it"
    shutil.copy(run / "lora.safetensors", tmp_path)
    done = succeeds("generate", "--from", strong, "--out", tmp_path / "again.png")
    assert "every pixel" in done.stderr, f"not the same picture again: {done.stderr}"
    done = call("generate", "--model", run, "--prompt", "x")
    assert "trained a LoRA" in done.stderr, f"{done.stderr}: expected what the run is"


@pytest.mark.slow
def test_merge_writes_a_model_that_needs_no_lora(lab, model, run, tmp_path):
    merged = tmp_path / "merged"
    before = model.unet.get_weights()
    succeeds("merge", "--model", lab / "base", "--lora", f"{run}:40", "--out", merged)
    merge_lora(model, run / "lora.safetensors", 40.0)
    found = load_archive(read_model_folder(merged).file("unet"), UNet).get_weights()
    for variable, one in zip(model.unet.weights, found, strict=True):
        np.testing.assert_array_equal(one, variable, err_msg=variable.path)
    changed = sum(not np.array_equal(a, b) for a, b in zip(before, found, strict=True))
    assert changed == 32, f"{changed} weights changed, expected the 32 projections"


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        (("lora.targets=[query, kee]",), "lora.targets"),
        (("lora.rank=2", "text.trainable=true"), "text.trainable=false"),
    ],
)
def test_settings_that_make_no_lora_are_refused(lab, overrides, word):
    with pytest.raises(UserError, match=word):
        read_sources(load_config(DiffusionRun, None, overrides, init=lab / "base"), None)


def test_a_lora_needs_a_model_to_change():
    with pytest.raises(UserError, match="--init"):
        read_sources(load_config(DiffusionRun, None, ("lora.rank=2",)), None)


def test_it_trains_in_bfloat16(lab):
    overrides = ("lora.rank=2", "training.precision=bfloat16")
    config, sources = read_sources(
        load_config(DiffusionRun, None, overrides, init=lab / "base"), None
    )
    unet = build_networks(config, sources)[0]
    kinds = {variable.dtype for variable in unet.trainable_variables}
    assert kinds == {"float32"}, f"A and B are {kinds}, expected float32"
    assert unet.get_layer("mid_attention").self_attention.query.compute_dtype == "bfloat16"


# --- Others --------------------------------------------------------------------------------


@pytest.mark.reference
def test_diffusers_opens_the_file_and_agrees(lab, base, changed, file, tmp_path):
    torch = pytest.importorskip("torch")
    pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline

    base = copy.copy(base)
    base.autoencoder = tiny_autoencoder()  # diffusers has none without residual blocks
    interop.save_diffusers(base, tmp_path / "theirs")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "theirs", safety_checker=None)
    pipeline.load_lora_weights(str(file))
    arrays = {name: torch.from_numpy(array) for name, array in INPUTS.items()}
    with torch.no_grad():
        found = pipeline.unet(
            arrays["noisy_latents"].permute(0, 3, 1, 2), arrays["timesteps"], arrays["context"]
        ).sample
    found = found.permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(found, predict(changed), atol=1e-5, err_msg="diffusers differs")


@pytest.mark.reference
def test_what_diffusers_saves_is_merged_alike(model, tmp_path):
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    model.autoencoder = tiny_autoencoder()  # diffusers has none without residual blocks
    interop.save_diffusers(model, tmp_path / "theirs")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "theirs", safety_checker=None)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    adapter = peft.LoraConfig(r=2, lora_alpha=6, target_modules=targets)
    pipeline.unet.add_adapter(adapter)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in pipeline.unet.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.1)
        arrays = {name: torch.from_numpy(array) for name, array in INPUTS.items()}
        expected = pipeline.unet(
            arrays["noisy_latents"].permute(0, 3, 1, 2), arrays["timesteps"], arrays["context"]
        ).sample
    layers = convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(pipeline.unet))
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, layers, unet_lora_adapter_metadata=adapter.to_dict()
    )
    merge_lora(model, tmp_path / "pytorch_lora_weights.safetensors")
    np.testing.assert_allclose(
        predict(model.unet), expected.permute(0, 2, 3, 1).numpy(), atol=1e-5
    )
