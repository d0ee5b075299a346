"""ControlNets side by side with diffusers itself; needs the `reference` extra."""

import json

import keras
import numpy as np
import pytest
from tiny import UNET, perturb, tiny_model

from latentddpm import interop
from latentddpm.errors import UserError
from latentddpm.interop.convert import convert_from, convert_to
from latentddpm.interop.diffusers.control import load_control_net, save_control_net
from latentddpm.models.denoisers.control import ControlNet
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.control.control import Control
from latentddpm.pipeline.control.folder import load_control, save_control

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")

pytestmark = [
    pytest.mark.reference,
    # torch's and transformers' own business.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|diffusers|transformers)"),
]

SMALL = {
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "attention_head_dim": 2,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "conditioning_embedding_out_channels": [8, 16],
}
VARIETY = {
    "factor 2": SMALL,
    "scaled by the timestep": {**SMALL, "resnet_time_scale_shift": "scale_shift"},
    "as in Stable Diffusion": {
        **SMALL,
        "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
        "block_out_channels": [8, 16, 16],
        "layers_per_block": 2,
        "attention_head_dim": [1, 2, 4],
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
    },
    "pixels, linear projections": {
        **SMALL,
        "in_channels": 3,
        "use_linear_projection": True,
        "conditioning_channels": 1,
        "conditioning_embedding_out_channels": [8],
    },
}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


def randomize(network):
    """Every weight says something, also those that start at zero."""
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    return network.eval()


def nchw(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))


def inputs(config, size=(4, 6), seed=0):
    numbers = np.random.default_rng(seed)
    factor = 2 ** (len(config["conditioning_embedding_out_channels"]) - 1)
    channels = config.get("in_channels", 4), config.get("conditioning_channels", 3)
    pixels = (2, size[0] * factor, size[1] * factor, channels[1])
    return {
        "noisy_latents": numbers.normal(size=(2, *size, channels[0])).astype("float32"),
        "timesteps": np.array([3, 871], "float32"),
        "context": numbers.normal(size=(2, 5, 16)).astype("float32"),
        "control": numbers.uniform(size=pixels).astype("float32"),
    }


def assert_same_residuals(control, theirs, told, tolerance=1e-5):
    found = [np.asarray(one) for one in control(told).values()]
    context = torch.from_numpy(told["context"])
    down, middle = theirs(
        nchw(told["noisy_latents"]),
        torch.from_numpy(told["timesteps"]),
        context,
        nchw(told["control"]),
        return_dict=False,
    )
    expected = [np.moveaxis(one.numpy(), 1, -1) for one in (*down, middle)]
    assert len(found) == len(expected)
    for number, (one, other) in enumerate(zip(found, expected, strict=True)):
        size = np.abs(other).max()
        assert 0.02 < size < 100, f"residual {number} of order {size:.2g} says little"
        difference = np.abs(one - other).max() / max(1, size)
        assert difference <= tolerance, f"residual {number} differs by {difference:.2g}"


@pytest.mark.parametrize("name", VARIETY)
def test_what_we_read_has_diffusers_residuals(name, tmp_path):
    config = VARIETY[name]
    theirs = randomize(diffusers.ControlNetModel(**config))
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_residuals(load_control_net(tmp_path / "theirs"), theirs, inputs(config))


def test_what_we_write_is_opened_by_diffusers_and_by_us(tmp_path):
    keras.utils.set_random_seed(0)
    control = ControlNet.from_unet(UNet(**UNET, context_dim=16), hint_channels=[8, 16])
    perturb(control)
    save_control(control, tmp_path / "run" / "control", "0")
    convert_to("diffusers", tmp_path / "run", tmp_path / "theirs")
    theirs = diffusers.ControlNetModel.from_pretrained(tmp_path / "theirs").eval()
    told = inputs({"conditioning_embedding_out_channels": [8, 16]})
    assert_same_residuals(control, theirs, told)
    convert_from(tmp_path / "theirs", tmp_path / "again")
    again = load_control(tmp_path / "again")
    for one, other in zip(again.weights, control.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    save_control_net(control, tmp_path / "half", storage="float16")
    half = diffusers.ControlNetModel.from_pretrained(tmp_path / "half").eval()
    assert_same_residuals(control, half, told, tolerance=0.01)


def test_a_model_and_its_control_net_draw_diffusers_images(tmp_path):
    """`StableDiffusionControlNetPipeline` of tiny parts against `generate`."""
    model = tiny_model()
    control = ControlNet.from_unet(model.unet, hint_channels=[16, 32, 96, 256])
    perturb(control, size=0.05)
    interop.save_diffusers(model, tmp_path / "model")
    save_control_net(control, tmp_path / "control")
    base = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    network = diffusers.ControlNetModel.from_pretrained(tmp_path / "control")
    pipeline = diffusers.StableDiffusionControlNetPipeline(
        **base.components, controlnet=network, requires_safety_checker=False
    )
    pipeline.set_progress_bar_config(disable=True)
    numbers = np.random.default_rng(0)
    noise = numbers.normal(size=(1, 4, 4, 4)).astype("float32")
    picture = numbers.integers(0, 256, (32, 32, 3)).astype("uint8")
    how = {"guidance_scale": 3.0, "negative_prompt": "blue"}
    expected = pipeline(
        "red apple",
        image=nchw(picture[None] / np.float32(255)),
        num_inference_steps=4,
        controlnet_conditioning_scale=0.7,
        latents=nchw(noise),
        output_type="np",
        **how,
    ).images
    how |= {"num_steps": 4, "latents": noise, "output": "latents"}
    latents = model.generate("red apple", controls=[Control(control, picture, 0.7)], **how)
    found = np.clip(np.asarray(model.autoencoder.decode(latents)) / 2 + 0.5, 0, 1)
    difference = np.abs(found - expected).max()
    assert difference <= 1e-3, f"images differ by {difference:.2g}"
    free = model.generate("red apple", **how)
    assert np.abs(free - latents).max() > 0.05, "the ControlNet says nothing"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"controlnet_conditioning_channel_order": "bgr"},
            "channel_order: 'bgr' is not supported",
        ),
        ({"global_pool_conditions": True}, "global_pool_conditions: True is not supported"),
        ({"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "down_block_types"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type: 'UNetMidBlock2D'"),
        ({"some_new_option": 3}, "some_new_option: 3"),
        ({"conditioning_embedding_out_channels": []}, "expected a list of widths"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(changes, message, tmp_path):
    diffusers.ControlNetModel(**SMALL).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}), "utf-8")
    with pytest.raises(UserError, match=message):
        load_control_net(tmp_path)


def test_one_without_text_is_not_written(tmp_path):
    control = ControlNet.from_unet(UNet(**UNET))
    with pytest.raises(UserError, match="is for models with text"):
        save_control_net(control, tmp_path / "none")
