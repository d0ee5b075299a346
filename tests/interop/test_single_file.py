"""Single-file checkpoints: names and sizes against diffusers, other models refused by name."""

import json
import math
import tracemalloc
from pathlib import Path

import compvis
import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.errors import UserError
from latentddpm.interop.compvis import single_file
from latentddpm.interop.compvis.averaged import with_dots
from latentddpm.interop.compvis.config import text_config, unet_config, vae_config
from latentddpm.interop.compvis.names import unet_names, vae_names
from latentddpm.interop.compvis.single_file import load_single_file, read_single_file
from latentddpm.interop.convert import convert_from
from latentddpm.interop.diffusers.folder import load_diffusers, save_diffusers
from latentddpm.interop.diffusers.networks import validate
from latentddpm.models.archive import weights_digest
from latentddpm.pipeline.model_folder import read_model_folder

GOLDEN = Path(__file__).parents[1] / "golden"
UNET, VAE, TEXT = (compvis.PREFIXES[part] for part in ("unet", "vae", "text"))


@pytest.fixture(scope="module")
def names():
    return json.loads((GOLDEN / "single_file_names.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def whole():
    return compvis.whole()


@pytest.fixture(scope="module")
def file(tmp_path_factory, whole):
    path = tmp_path_factory.mktemp("single") / "tiny.safetensors"
    save_file(whole, path)
    return path


@pytest.fixture(scope="module")
def model(file):
    return load_single_file(file)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN / "single_file_outputs.safetensors")


def near(found, expected, name, atol=1e-4):
    found = keras.ops.convert_to_numpy(found)
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=f"{name} of diffusers")


def full_shapes(table):
    """CompVis' names and shapes: the autoencoder's projections are convolutions there."""
    return {
        name: (*shape, 1, 1) if ".attn_1." in name and len(shape) == 2 else tuple(shape)
        for name, shape in table.values()
    }


# --- Names ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("network", "count", "sizes"),
    [
        ("unet", 686, (4, 2, (0, 1, 2))),
        ("vae", 248, (4, 2)),
        ("tiny_unet", 208, (2, 1, (0,))),
        ("tiny_vae", 152, (3, 1)),
    ],
)
def test_names_are_those_that_diffusers_converts(names, network, count, sizes):
    table = names[network]
    assert len(table) == count, f"{network} has {count} tensors"
    ours = (unet_names if "unet" in network else vae_names)(table, *sizes)
    wrong = {key: ours[key] for key, (name, _) in table.items() if ours[key] != name}
    assert not wrong, f"diffusers converts other names: {wrong}"
    assert len(set(ours.values())) == count, "no two tensors have the same name"


def test_the_tiny_network_has_the_names_of_its_definition(names):
    """Those written out by hand in tests/support/compvis.py, and their shapes."""
    for network, shapes in (
        ("tiny_unet", compvis.unet_shapes()),
        ("tiny_vae", compvis.vae_shapes()),
    ):
        assert full_shapes(names[network]) == shapes, f"{network}: other names or shapes"


def test_full_size_configurations_come_from_the_shapes(names):
    shapes = full_shapes(names["unet"])
    assert sum(map(math.prod, shapes.values())) == 859_520_964, "SD 1.x's UNet"
    config = unet_config(shapes, "file")
    expected = {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "cross_attention_dim": 768,
        "attention_head_dim": 8,
        "use_linear_projection": False,
        "sample_size": 64,
    }
    assert expected.items() <= config.items(), f"expected the sizes of SD 1.x, got {config}"
    config = vae_config(full_shapes(names["vae"]), "file")
    expected = {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "scaling_factor": 0.18215,
    }
    assert expected.items() <= config.items(), f"expected SD's autoencoder, got {config}"
    shapes = compvis.text_shapes(12, 768, 3072)
    assert len(shapes) == 196, "CLIP ViT-L/14's text encoder; older files have position_ids, too"
    config = text_config(shapes, "file")
    expected = {"num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
    assert expected.items() <= config.items(), f"expected CLIP ViT-L/14, got {config}"


# --- Reading -------------------------------------------------------------------------------


def test_outputs_are_those_of_diffusers(model, golden):
    mean, logvar = model.autoencoder.encode(golden["images"])
    near(mean, golden["mean"], "mean")
    near(logvar, golden["logvar"], "logvar")
    raw = golden["latents"] * model.autoencoder.scaling_factor
    near(model.autoencoder.decode(raw), golden["decoded"], "decoded images")
    near(model.text_encoder({"token_ids": golden["token_ids"]}), golden["context"], "context")
    inputs = {
        "noisy_latents": golden["latents"],
        "timesteps": golden["timesteps"],
        "context": golden["context"],
    }
    near(model.unet(inputs), golden["prediction"], "prediction")


def test_the_pipeline_is_whole(model):
    assert model.schedule.prediction_type == "epsilon", "SD 1.x predicts the noise"
    assert model.schedule.beta_schedule == "scaled_linear", "SD 1.x's schedule"
    assert model.autoencoder.scaling_factor == 0.18215, "SD 1.x's scale"
    assert model.tokenizer.context_length == 77, "CLIP's length"
    images = model.generate("a cat", seed=0, num_steps=2, height=16, width=24)
    assert images.shape == (1, 16, 24, 3), "it draws"


def test_import_export_import_is_exact(model, tmp_path):
    save_diffusers(model, tmp_path / "folder")
    again = load_diffusers(tmp_path / "folder")
    for part in ("autoencoder", "unet", "text_encoder"):
        expected, found = (weights_digest(getattr(m, part)) for m in (model, again))
        assert found == expected, f"{part}: other weights after import, export, import"
    np.testing.assert_array_equal(again.tokenizer("a cat"), model.tokenizer("a cat"))
    assert again.schedule.get_config() == model.schedule.get_config(), "the same schedule"


def test_convert_writes_a_model_folder(file, model, tmp_path):
    convert_from(file, tmp_path / "model")
    parts = read_model_folder(tmp_path / "model").parts
    for name, network in (
        ("vae", model.autoencoder),
        ("unet", model.unet),
        ("text_encoder", model.text_encoder),
    ):
        assert parts[name]["digest"] == weights_digest(network), f"{name} has other weights"


def test_a_unet_alone_becomes_a_model_folder_of_one_part(model, tmp_path):
    save_file(compvis.tensors("unet"), tmp_path / "unet.safetensors")
    convert_from(tmp_path / "unet.safetensors", tmp_path / "model")
    parts = read_model_folder(tmp_path / "model").parts
    assert set(parts) == {"unet"}, f"expected the UNet and nothing else, got {sorted(parts)}"
    assert parts["unet"]["digest"] == weights_digest(model.unet), "expected the file's weights"


def test_half_precision_is_read_exactly(tmp_path):
    half = compvis.tensors("vae", dtype="float16")
    for name, tensors in {
        "half": half,
        "rounded": {key: value.astype("float32") for key, value in half.items()},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    first, second = (load_single_file(tmp_path / f"{n}.safetensors") for n in ("half", "rounded"))
    assert weights_digest(first.autoencoder) == weights_digest(second.autoencoder), (
        "float16 has to become float32 exactly"
    )


def test_full_size_is_understood_without_memory(tmp_path, names):
    """All of Stable Diffusion 1.x, in the 4.3 GB of its header."""
    prefixed = {UNET: full_shapes(names["unet"]), VAE: full_shapes(names["vae"])}
    prefixed[TEXT] = compvis.text_shapes(12, 768, 3072)
    shapes = {prefix + k: shape for prefix, s in prefixed.items() for k, shape in s.items()}
    path = tmp_path / "v1.safetensors"
    compvis.write_sparse(path, shapes)
    assert path.stat().st_size > 4.2e9, "float32, a gigaparameter"
    tracemalloc.start()
    checkpoint = read_single_file(path)
    networks = [validate(piece) for piece in (checkpoint.unet, checkpoint.vae)]
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 50e6, f"reading the header took {used / 1e6:.0f} MB"
    assert [len(network.matched) for network in networks] == [686, 248], "every tensor, once"


@pytest.mark.parametrize("bare", [False, True])
def test_an_autoencoder_alone(tmp_path, model, bare):
    tensors = compvis.tensors("vae")
    if bare:
        tensors = {name.removeprefix(VAE): value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "vae.safetensors")
    alone = load_single_file(tmp_path / "vae.safetensors")
    assert alone.unet is None, "the file has no UNet"
    assert weights_digest(alone.autoencoder) == weights_digest(model.autoencoder), "same weights"


def test_dense_projections_are_seen(tmp_path):
    save_file(compvis.tensors("unet", linear=True), tmp_path / "unet.safetensors")
    unet = read_single_file(tmp_path / "unet.safetensors").unet
    assert unet.config["use_linear_projection"] is True, "proj_in has two axes"
    assert unet.tensors().shape("mid_block.attentions.0.proj_in.weight") == (64, 64)


@pytest.mark.parametrize(
    ("markers", "metadata", "expected"),
    [
        ([], {}, {"prediction_type": "epsilon"}),
        ([], {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
        (["v_pred"], {}, {"prediction_type": "v_prediction"}),
        (["v_pred", "ztsnr"], {}, {"rescale_betas_zero_snr": True}),
        (["v_pred"], {"modelspec.prediction_type": "epsilon"}, {"prediction_type": "epsilon"}),
    ],
)
def test_what_the_file_says_of_its_prediction(tmp_path, markers, metadata, expected):
    tensors = compvis.tensors("unet") | {name: np.zeros(0, "float32") for name in markers}
    save_file(tensors, tmp_path / "unet.safetensors", metadata=metadata or None)
    scheduler = read_single_file(tmp_path / "unet.safetensors").scheduler
    assert expected.items() <= scheduler.items(), f"expected {expected}, got {scheduler}"


def test_the_size_it_was_trained_at(tmp_path):
    metadata = {"modelspec.resolution": "768x512"}
    save_file(compvis.tensors("unet"), tmp_path / "unet.safetensors", metadata=metadata)
    config = read_single_file(tmp_path / "unet.safetensors").unet.config
    assert config["sample_size"] == [64, 96], "latents of 512 by 768 pixels (height, width)"


# --- Conditions ----------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "name"), [(9, "inpainting"), (8, "picture")])
def test_input_channels_behind_the_latents_are_a_condition(tmp_path, channels, name):
    tensors = compvis.whole() | compvis.tensors("unet", in_channels=channels)
    save_file(tensors, tmp_path / "model.safetensors")
    model = load_single_file(tmp_path / "model.safetensors")
    (condition,) = model.conditions
    assert (condition.kind, condition.name, condition.channels) == (name, name, channels - 4)
    if name == "picture":  # told the mean of the posterior as it is
        assert condition.scale * model.autoencoder.scaling_factor == pytest.approx(1)
    kernel = np.asarray(model.unet.get_layer("conv_in").conv.kernel)
    expected = tensors[f"{UNET}input_blocks.0.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(kernel, expected)


# --- Averaged weights ----------------------------------------------------------------------

AVERAGED = {
    "CompVis": lambda name: "model_ema.diffusion_model" + name.replace(".", ""),
    "with dots": lambda name: f"ema.{name}",
    "with a prefix": lambda name: f"ema_model.model.diffusion_model.{name}",
    "model_ema with dots": lambda name: f"model_ema.diffusion_model.{name}",
}


@pytest.mark.parametrize("style", AVERAGED)
def test_averaged_weights_alone_are_read_with_a_note(tmp_path, style):
    tensors = {k: v for k, v in compvis.whole().items() if "model_ema" not in k}
    names = {
        key: AVERAGED[style](key.removeprefix(UNET)) if key.startswith(UNET) else key
        for key in tensors
    }
    counters = {"model_ema.decay": np.array(0.9999, "float32")}
    path = tmp_path / "ema.safetensors"
    save_file({names[key]: value for key, value in tensors.items()} | counters, path)
    with pytest.warns(UserWarning, match=r"ema.safetensors: averaged weights \(EMA\) are read"):
        checkpoint = read_single_file(path)
    unet = validate(checkpoint.unet)
    for row, key in unet.matched:
        assert unet.tensors.shape(key) == row.shape, f"{key} has another shape"
    key = "down_blocks.0.resnets.0.conv1.weight"
    expected = tensors[f"{UNET}input_blocks.1.0.in_layers.2.weight"]
    np.testing.assert_array_equal(unet.tensors.read(key), expected, err_msg=key)


def test_plain_weights_are_read_where_there_are_both(file):
    """As in diffusers; `whole` has an averaged tensor too."""
    bias = validate(read_single_file(file).unet).tensors.read("conv_out.bias")
    np.testing.assert_array_equal(bias, compvis.whole()[f"{UNET}out.2.bias"])


def test_an_autoencoder_s_averaged_weights(tmp_path):
    names = {f"model_ema.{k.removeprefix(VAE).replace('.', '')}": v
             for k, v in compvis.tensors("vae").items()}  # fmt: skip
    save_file(names, tmp_path / "vae.safetensors")
    with pytest.warns(UserWarning, match="averaged"):
        checkpoint = read_single_file(tmp_path / "vae.safetensors")
    assert checkpoint.unet is None, "there is no UNet"
    validate(checkpoint.vae)


@pytest.mark.parametrize("network", ["unet", "vae", "tiny_unet", "tiny_vae"])
def test_the_dots_come_back(names, network):
    wrong = {
        name: found
        for name, _ in names[network].values()
        if (found := with_dots(name.replace(".", ""))) != name
    }
    assert not wrong, f"expected the names with their dots, got {wrong}"
    assert with_dots("something_else0weight") is None, "expected None for others"


# --- Refusals ------------------------------------------------------------------------------


ZERO = np.zeros(1, "float32")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"conditioner.embedders.0.a": ZERO}, "is Stable Diffusion XL"),
        ({"cond_stage_model.model.transformer.resblocks.0.a": ZERO}, "is Stable Diffusion 2"),
        ({"model.diffusion_model.joint_blocks.0.a": ZERO}, "is Stable Diffusion 3"),
        ({"model.diffusion_model.double_blocks.0.a": ZERO}, "is Flux"),
        ({"control_model.input_blocks.0.0.weight": ZERO}, "is a ControlNet"),
        ({"model.diffusion_model.label_emb.0.0.weight": ZERO}, "label_emb"),
        ({"model.diffusion_model.middle_block.1.qkv.weight": ZERO}, "unconditional UNet"),
        ({"lora_unet_mid_block.lora_up.weight": ZERO}, "is a LoRA; generate --lora and merge"),
        (
            {"unet.mid_block.attn1.to_q.lora_A.weight": ZERO},
            "is a LoRA; generate --lora and merge",
        ),
        (
            {"unet.mid_block.attn1.to_q.lora.up.weight": ZERO},
            "is a LoRA; generate --lora and merge",
        ),
        ({"down_blocks.0.resnets.0.conv1.weight": ZERO}, "in diffusers' names"),
        ({"encoder.down_blocks.0.resnets.0.conv1.weight": ZERO}, "in diffusers' names"),
        ({"text_model.final_layer_norm.bias": ZERO}, "a text encoder alone"),
        ({"model_ema.diffusion_modelout2bias": ZERO}, "averaged weights .* lacks the tensors"),
        ({"something.else": ZERO}, "no Stable Diffusion 1.x checkpoint; it holds 'something"),
        ({}, "it holds nothing"),
        (compvis.tensors("unet", in_channels=5), "depth-guided UNet, with 5 input channels"),
        (compvis.tensors("unet", in_channels=3), "out_channels: 4 is not supported"),
        (compvis.tensors("unet", linear=True, context=1024), "UNet of Stable Diffusion 2.x"),
        (compvis.tensors("unet"), "has no autoencoder"),
        (compvis.tensors("unet", "text"), "a pruned file, it has no autoencoder; load it in"),
        (compvis.tensors("vae", "text"), "a pruned file, it has no UNet"),
        (compvis.tensors("unet", "vae"), "a pruned file, it has no text encoder"),
    ],
)
def test_other_models_are_refused_by_name(tmp_path, monkeypatch, tensors, message):
    def read(*_):
        raise AssertionError("expected a refusal before a weight is read")

    monkeypatch.setattr(single_file.TensorFiles, "read", read)
    path = tmp_path / "model.safetensors"
    save_file(tensors, path)
    with pytest.raises(UserError, match=message) as caught:
        load_single_file(path)
    assert "model.safetensors" in str(caught.value), "the file is named"
    assert "\n" not in str(caught.value), "an error is one line"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{VAE}quant_conv.weight": None}, "autoencoder without quant_conv"),
        ({f"{VAE}decoder.up.2.block.1.conv1.bias": None}, "no tensor .*up.2.block.1.conv1.bias"),
        ({f"{VAE}encoder.mid.attn_1.q.weight": None}, "no tensor .*encoder.mid.attn_1.q.weight"),
        ({f"{UNET}output_blocks.1.1.conv.bias": None}, "no tensor .*output_blocks.1.1.conv.bias"),
        ({f"{UNET}input_blocks.1.0.in_layers.2.weight": None}, "a level without blocks"),
        ({f"{TEXT}encoder.layers.0.layer_norm1.bias": None}, "no tensor .*layer_norm1.bias"),
        (
            {f"{VAE}encoder.down.0.attn.0.q.weight": ZERO},
            "has no place for 'first_stage_model.encoder.down.0.attn.0.q.weight'",
        ),
        (
            {f"{UNET}middle_block.1.transformer_blocks.1.norm1.bias": ZERO},
            "has no place for 'model.diffusion_model.middle_block.1.transformer_blocks.1",
        ),
        (
            {f"{UNET}time_embed.0.bias": np.zeros(7, "float32")},
            r"is \(7,\), .* makes it \(128,\)",
        ),
        (
            {f"{UNET}time_embed.0.bias": np.zeros(128, "int32")},
            "is I32, which is not read; expected one of F32",
        ),
        (
            {f"{UNET}out.2.weight": np.zeros(4, "float32")},
            r"'out.2.weight' is \(4,\), expected 4 axes",
        ),
        (
            {f"{UNET}input_blocks.3.0.in_layers.2.weight": np.zeros((10**9, 0, 3, 3))},
            "does not|is not supported|makes it",
        ),
        (
            {f"{TEXT}embeddings.token_embedding.weight": np.zeros((10**9, 0))},
            "positive whole number",
        ),
        (
            {f"{TEXT}embeddings.token_embedding.weight": np.zeros((9, 64))},
            "has 9 tokens; expected CLIP's 49408",
        ),
        (
            {f"{UNET}out.2.bias": np.zeros(4, "int8")},
            r"is I8, 8-bit integers \(quantised\), which is not read; expected one of F32",
        ),
        (
            {"alphas_cumprod": np.linspace(1, 0, 1000, dtype="float32")},
            "alphas_cumprod is not that of Stable Diffusion 1.x",
        ),
        (
            {"alphas_cumprod": np.full(1000, np.nan, "float32")},
            "'alphas_cumprod' holds numbers that are not finite",
        ),
    ],
)
def test_damaged_checkpoints_are_refused(tmp_path, whole, changes, message):
    tensors = {k: v for k, v in (whole | changes).items() if v is not None}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=message) as caught:
        load_single_file(tmp_path / "model.safetensors")
    assert "\n" not in str(caught.value), "an error is one line"


def test_what_is_no_safetensors_file(tmp_path, file):
    for name in ("model.ckpt", "model.pt", "model.bin"):
        with pytest.raises(UserError, match="a pickle can run code and is never opened; convert"):
            load_single_file(tmp_path / name)
    with pytest.raises(UserError, match="no such file"):
        load_single_file(tmp_path / "model.safetensors")
    path = tmp_path / "short.safetensors"
    path.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load_single_file(path)
    path.write_bytes(b"\x80\x04\x95" + bytes(100))  # a pickle under another name
    with pytest.raises(UserError, match="not a valid safetensors file"):
        load_single_file(path)


def test_unknown_prediction_type(tmp_path):
    metadata = {"modelspec.prediction_type": "epsilom"}
    save_file(compvis.tensors("unet"), tmp_path / "unet.safetensors", metadata=metadata)
    with pytest.raises(UserError, match="did you mean 'epsilon'"):
        read_single_file(tmp_path / "unet.safetensors")


# --- diffusers itself ----------------------------------------------------------------------


@pytest.mark.reference
def test_the_same_tensors_as_diffusers_loads(file, tmp_path):
    """`from_single_file` of diffusers, with a configuration of this size beside it."""
    pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    checkpoint = read_single_file(file)
    for kind, piece in (
        (diffusers.UNet2DConditionModel, checkpoint.unet),
        (diffusers.AutoencoderKL, checkpoint.vae),
    ):
        kind.from_config(piece.config).save_config(tmp_path / kind.__name__)
        loaded = kind.from_single_file(
            str(file), config=str(tmp_path / kind.__name__), local_files_only=True
        )
        theirs, ours = loaded.state_dict(), piece.tensors()
        assert set(ours.keys()) == theirs.keys(), f"{kind.__name__} has other tensors"
        for key, value in theirs.items():
            np.testing.assert_array_equal(ours.read(key), value.numpy(), f"{key} of diffusers")


@pytest.mark.reference
def test_diffusers_runs_what_is_loaded(file, model):
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    config = read_single_file(file).unet.config
    unet = diffusers.UNet2DConditionModel.from_config(config).eval()
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    weights = {key: torch.from_numpy(value) for key, value in compvis.tensors("unet").items()}
    unet.load_state_dict(convert_ldm_unet_checkpoint(weights, config))
    token_ids = CLIPTokenizer()(["a cat", ""])
    context = keras.ops.convert_to_numpy(model.text_encoder({"token_ids": token_ids}))
    latents = np.random.default_rng(1).normal(size=(2, 6, 4, 4)).astype("float32")
    timesteps = np.array([1, 999], "int32")
    with torch.no_grad():
        expected = unet(
            torch.from_numpy(latents).movedim(-1, 1),
            torch.from_numpy(timesteps),
            torch.from_numpy(context),
        ).sample.movedim(1, -1)
    inputs = {"noisy_latents": latents, "timesteps": timesteps, "context": context}
    near(model.unet(inputs), expected.numpy(), "prediction")
