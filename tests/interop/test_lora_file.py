"""LoRA files of others: their names, strengths and kinds; what is refused, and that untouched.

`golden/lora` holds files of diffusers and what it made of them (`golden/make_lora_golden.py`).
"""

import json

import numpy as np
import pytest
from conftest import TESTS
from safetensors.numpy import load_file, save_file
from tiny import tiny_model

from latentddpm.errors import UserError
from latentddpm.interop.diffusers.networks import rows_of
from latentddpm.interop.diffusers.weight_map import to_theirs
from latentddpm.interop.diffusers.weights import variable
from latentddpm.interop.lora_file import STYLES, style_of
from latentddpm.interop.lora_merge import merge_lora

GOLDEN = TESTS / "golden" / "lora"
CASES = sorted(path.stem for path in GOLDEN.glob("*.safetensors") if ".fused" not in path.name)
QUERY = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_" + QUERY.replace(".", "_")
OUT = "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"
CONV = "mid_block.resnets.0.conv1"
TEXT = "encoder.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def whole():
    return tiny_model()


@pytest.fixture
def model(whole):
    """The model, to change: it gets its weights back afterwards."""
    networks = whole.unet, whole.text_encoder
    weights = [network.get_weights() for network in networks]
    yield whole
    for network, values in zip(networks, weights, strict=True):
        network.set_weights(values)


def unet_weights(model):
    """Weights of a UNet as diffusers has them, by its names."""
    return {
        row.key: to_theirs(np.asarray(variable(model.unet, row.path)), row.layout)
        for row in rows_of(model.unet)
    }


def changes(model, path, scale=1.0):
    """How a file changes the weights of the UNet, by diffusers' names."""
    before = {key: array.copy() for key, array in unet_weights(model).items()}
    merge_lora(model, path, scale)
    after = unet_weights(model)
    return {k: after[k] - v for k, v in before.items() if not np.array_equal(after[k], v)}


def pair(rank=2, inputs=32, outputs=32, seed=0, dtype="float32"):
    down, up = (
        np.random.default_rng([seed, number]).normal(size=size).astype(dtype)
        for number, size in enumerate([(rank, inputs), (outputs, rank)])
    )
    return down, up


def written(path, tensors, metadata=None):
    save_file(tensors, path, metadata)
    return path


# --- Strength ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_change_is_the_one_that_diffusers_makes(model, name):
    expected = load_file(GOLDEN / f"{name}.fused.safetensors")
    found = changes(model, GOLDEN / f"{name}.safetensors")
    assert found.keys() == expected.keys(), f"{found.keys() ^ expected.keys()} differ"
    for key, change in expected.items():
        assert np.abs(change).max() > 1e-3, f"{key}: says little"
        np.testing.assert_allclose(found[key], change, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32"])
@pytest.mark.parametrize("shape", [(), (1,)])
def test_alpha_is_a_number_of_any_type(model, tmp_path, dtype, shape):
    down, up = pair()
    tensors = {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up}
    tensors[f"{KOHYA}.alpha"] = np.full(shape, 8, dtype)
    found = changes(model, written(tmp_path / "x.safetensors", tensors))
    np.testing.assert_allclose(found[f"{QUERY}.weight"], 8 / 2 * up @ down, atol=1e-5)


def test_peft_keeps_alpha_in_a_file_of_its_own(model, tmp_path):
    down, up = pair()
    tensors = {f"base_model.model.{QUERY}.lora_A.weight": down}
    tensors[f"base_model.model.{QUERY}.lora_B.weight"] = up
    path = written(tmp_path / "adapter_model.safetensors", tensors)
    config = {"r": 2, "lora_alpha": 6, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    expected = 6 / np.sqrt(2) * up @ down
    np.testing.assert_allclose(changes(model, path)[f"{QUERY}.weight"], expected, atol=1e-5)


def test_a_header_without_sense_is_named(model, tmp_path):
    down, up = pair()
    tensors = {f"unet.{QUERY}.lora_A.weight": down, f"unet.{QUERY}.lora_B.weight": up}
    for header in ('{"unet.lora_alpha": "much"}', '{"unet.lora_alpha": NaN}', "[1]", "{"):
        path = written(tmp_path / "x.safetensors", tensors, {"lora_adapter_metadata": header})
        with pytest.raises(UserError, match="lora_adapter_metadata in its header is malformed"):
            merge_lora(model, path)


def test_a_configuration_without_sense_is_named(model, tmp_path):
    down, up = pair()
    tensors = {f"{QUERY}.lora_A.weight": down, f"{QUERY}.lora_B.weight": up}
    path = written(tmp_path / "adapter_model.safetensors", tensors)
    (tmp_path / "adapter_config.json").write_text('{"lora_alpha": [1]}', "utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json is malformed"):
        merge_lora(model, path)


# --- Names ---------------------------------------------------------------------------------

COMPVIS = "middle_block.1.transformer_blocks.0.attn1.to_q"
NAMES = {
    "kohya": (f"{KOHYA}.lora_down.weight", f"{KOHYA}.lora_up.weight"),
    "diffusers": (f"unet.{QUERY}.lora_A.weight", f"unet.{QUERY}.lora_B.weight"),
    "diffusers 0.20": (f"unet.{QUERY}.lora.down.weight", f"unet.{QUERY}.lora.up.weight"),
    "attention processors": (
        f"unet.{QUERY.removesuffix('.to_q')}.processor.to_q_lora.down.weight",
        f"unet.{QUERY.removesuffix('.to_q')}.processor.to_q_lora.up.weight",
    ),
    "processors of a UNet alone": (
        f"{QUERY.removesuffix('.to_q')}.processor.to_q_lora.down.weight",
        f"{QUERY.removesuffix('.to_q')}.processor.to_q_lora.up.weight",
    ),
    "PEFT": (
        f"base_model.model.{QUERY}.lora_A.weight",
        f"base_model.model.{QUERY}.lora_B.weight",
    ),
    "PEFT with its adapter": (
        f"unet.{QUERY}.lora_A.style.weight",
        f"unet.{QUERY}.lora_B.style.weight",
    ),
    "PEFT of a UNet alone": (f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"),
    "diffusion_model": (
        f"diffusion_model.{COMPVIS}.lora_A.weight",
        f"diffusion_model.{COMPVIS}.lora_B.weight",
    ),
    "diffusion_model, diffusers": (
        f"diffusion_model.{QUERY}.lora_A.weight",
        f"diffusion_model.{QUERY}.lora_B.weight",
    ),
    "CompVis": (
        f"lora_unet_{COMPVIS.replace('.', '_')}.lora_down.weight",
        f"lora_unet_{COMPVIS.replace('.', '_')}.lora_up.weight",
    ),
}


@pytest.mark.parametrize("style", NAMES)
def test_names_of_every_style_are_read(model, tmp_path, style):
    down, up = pair()
    tensors = dict(zip(NAMES[style], (down, up), strict=True))
    found = changes(model, written(tmp_path / "x.safetensors", tensors))
    assert found.keys() == {f"{QUERY}.weight"}, f"{style}: changes {list(found)}"
    np.testing.assert_allclose(found[f"{QUERY}.weight"], up @ down, atol=1e-5, err_msg=style)


def test_the_output_of_an_attention_processor(model, tmp_path):
    down, up = pair()
    start = f"unet.{OUT.removesuffix('.to_out.0')}.processor.to_out_lora"
    tensors = {f"{start}.down.weight": down, f"{start}.up.weight": up}
    found = changes(model, written(tmp_path / "x.safetensors", tensors))
    np.testing.assert_allclose(found[f"{OUT}.weight"], up @ down, atol=1e-5)


@pytest.mark.parametrize(
    ("down", "up"),
    [
        (f"lora_te_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight", ("down", "up")),
        (f"lora_te1_text_model_{TEXT.replace('.', '_')}.lora_{{}}.weight", ("down", "up")),
        (f"text_encoder.text_model.{TEXT}.lora_{{}}.weight", ("A", "B")),
        (f"text_encoder.{TEXT}.lora_{{}}.weight", ("A", "B")),
        (f"text_encoder.text_model.{TEXT}.lora_linear_layer.{{}}.weight", ("down", "up")),
        (f"base_model.model.text_model.{TEXT}.lora_{{}}.weight", ("A", "B")),
    ],
)
def test_names_of_the_text_encoder(model, tmp_path, down, up):
    matrices = pair(inputs=16, outputs=16)
    tensors = {down.format(end): m for end, m in zip(up, matrices, strict=True)}
    dense = model.text_encoder.get_layer("encoder_block_0").attention.query_dense
    before = np.asarray(dense.kernel).reshape(16, 16)
    merge_lora(model, written(tmp_path / "x.safetensors", tensors))
    change = np.asarray(dense.kernel).reshape(16, 16) - before
    np.testing.assert_allclose(change, (matrices[1] @ matrices[0]).T, atol=1e-5)


# --- Convolutions --------------------------------------------------------------------------


def test_a_convolution_is_linear_too(model, tmp_path):
    numbers = np.random.default_rng(0)
    down = numbers.normal(size=(2, 32, 3, 3)).astype("float32")
    up = numbers.normal(size=(32, 2, 1, 1)).astype("float32")
    start = f"lora_unet_{CONV.replace('.', '_')}"
    tensors = {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
    tensors[f"{start}.alpha"] = np.array(1, "float32")
    found = changes(model, written(tmp_path / "x.safetensors", tensors))
    expected = np.einsum("or,rihw->oihw", up[..., 0, 0], down) / 2
    np.testing.assert_allclose(found[f"{CONV}.weight"], expected, atol=1e-5)


def test_a_convolution_in_three_steps(model, tmp_path):
    """LyCORIS's form with a small convolution between two maps of the channels."""
    numbers = np.random.default_rng(0)
    sizes = {"down": (2, 32, 1, 1), "mid": (2, 2, 3, 3), "up": (32, 2, 1, 1)}
    parts = {name: numbers.normal(size=s).astype("float32") for name, s in sizes.items()}
    start = f"lora_unet_{CONV.replace('.', '_')}"
    tensors = {f"{start}.lora_{name}.weight": array for name, array in parts.items()}
    found = changes(model, written(tmp_path / "x.safetensors", tensors))
    expected = np.zeros((32, 32, 3, 3))
    for h in range(3):
        for w in range(3):
            expected[..., h, w] = (
                parts["up"][..., 0, 0] @ parts["mid"][..., h, w] @ (parts["down"][..., 0, 0])
            )
    np.testing.assert_allclose(found[f"{CONV}.weight"], expected, atol=1e-4)


# --- What is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "array", "words"),
    [
        (f"{KOHYA}.lora_up.weight", np.full((32, 2), np.nan, "float32"), ("not finite",)),
        (f"{KOHYA}.lora_down.weight", np.full((2, 32), np.inf, "float16"), ("not finite",)),
        (f"{KOHYA}.alpha", np.ones(2, "float32"), ("(2,)", "one number")),
        (f"{KOHYA}.alpha", np.array(np.nan, "float32"), ("not finite",)),
        (f"{KOHYA}.dora_scale", np.ones((32, 1), "float32"), ("DoRA",)),
        (f"unet.{QUERY}.lora_magnitude_vector", np.ones(32, "float32"), ("DoRA",)),
        (f"{KOHYA}.hada_w1_a", np.ones((32, 2), "float32"), ("LoHa",)),
        (f"{KOHYA}.lokr_w1", np.ones((2, 2), "float32"), ("LoKr",)),
        (f"unet.{QUERY}.lora_B.bias", np.ones(32, "float32"), ("biases",)),
        ("lora_te2_text_model_x.lora_up.weight", np.ones((2, 2), "float32"), ("SDXL",)),
        (f"unet.{QUERY}.lora_A.weight", np.ones((2, 32), "float32"), ("the same",)),
    ],
)
def test_what_is_wrong_or_no_lora_is_named_and_nothing_is_changed(
    model, tmp_path, key, array, words
):
    down, up = pair()
    other = "lora_unet_" + OUT.replace(".", "_")  # comes first, and is well
    tensors = {f"{other}.lora_down.weight": down, f"{other}.lora_up.weight": up}
    tensors |= {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up, key: array}
    path = written(tmp_path / "x.safetensors", tensors)
    before = model.unet.get_weights()
    with pytest.raises(UserError) as caught:
        merge_lora(model, path)
    missing = [word for word in (*words, str(path), key) if word not in str(caught.value)]
    assert not missing, f"{str(caught.value)!r} does not name {missing}"
    for one, other in zip(model.unet.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other, err_msg="half merged")


def test_a_change_that_is_too_large_is_named_before_a_weight_changes(model, tmp_path):
    """Each number is finite, the product is not; of two maps the first is well."""
    down, up = pair()
    other = "lora_unet_" + OUT.replace(".", "_")
    tensors = {f"{other}.lora_down.weight": down, f"{other}.lora_up.weight": up}
    tensors |= {f"{KOHYA}.lora_down.weight": down, f"{KOHYA}.lora_up.weight": up * 1e30}
    path = written(tmp_path / "x.safetensors", tensors)
    before = model.unet.get_weights()
    with pytest.raises(
        UserError, match=f"at scale 1e\\+10 the change of '{KOHYA}.lora_up.weight'"
    ):
        merge_lora(model, path, 1e10)
    for one, other in zip(model.unet.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other, err_msg="half merged")
    found = changes(model, path, 1e-30)
    np.testing.assert_allclose(found[f"{QUERY}.weight"], up @ down, rtol=1e-4, err_msg="fits")


@pytest.mark.parametrize("style", NAMES)
def test_info_names_the_style(style):
    expected = {"kohya": "kohya's scripts", "CompVis": "CompVis' layers"}
    found = style_of(NAMES[style])
    assert found in STYLES, f"{style}: {found!r} is none of {list(STYLES)}"
    assert expected.get(style, found) == found, f"{style}: expected {expected[style]!r}"
