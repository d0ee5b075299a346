"""Pipelines that are told pictures, side by side with diffusers; needs the `reference` extra.

Models made here are written, opened by diffusers' own pipeline, and draw the same from the same
noise; what was written is read again.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import SIZE, perturb, tiny_model

from latentddpm import interop
from latentddpm.conditions.conditions import Conditions
from latentddpm.errors import UserError
from latentddpm.interop.diffusers.folder import INDEX
from latentddpm.utils.files import read_json

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
reference = importlib.import_module("reference_networks")

pytestmark = [
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|diffusers|transformers)"),
]
TOLERANCE = 1e-3
STEPS = 6
PROMPT, NEGATIVE = "red apple", "blue"


def nhwc(tensor):
    return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


def nchw(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))


def assert_close(found, expected, what):
    size = np.abs(expected).max()
    assert 0.2 < size < 100, f"{what}: answers of order {size:.2g} say little"
    difference = np.abs(np.asarray(found) - expected).max()
    assert difference <= TOLERANCE, f"{what} differs by {difference:.2g} of {size:.2g}"


def decoded(model, latents):
    return np.clip(np.asarray(model.autoencoder.decode(latents)) / 2 + 0.5, 0, 1)


def model_of(*entries):
    """A model whose words and conditions count."""
    conditions = Conditions.from_json(entries)
    model = tiny_model(conditions=conditions.specs())
    model.conditions = conditions
    model.defaults["timestep_spacing"] = "leading"
    perturb(model.autoencoder)
    return model


def opened(model, name, folder):
    interop.save_diffusers(model, folder)
    assert read_json(folder / INDEX)["_class_name"] == name
    pipeline = getattr(diffusers, name).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def drawn():
    """A picture uint8 (H, W, 3), a mask, and the noise of two images."""
    numbers = np.random.default_rng(0)
    picture = numbers.integers(0, 256, (*SIZE, 3), np.uint8)
    mask = np.zeros(SIZE, np.uint8)
    mask[8:27, :19] = 255
    return picture, mask, numbers.standard_normal((2, 4, 4, 4)).astype("float32")


def test_inpainting(drawn, tmp_path):
    """`StableDiffusionInpaintPipeline` samples the latents around the hole; here their mean is
    told."""
    picture, mask, noise = drawn
    hole = {"name": "inpainting", "kind": "inpainting", "channels": 5}
    model = model_of(hole)
    pipeline = opened(model, "StableDiffusionInpaintPipeline", tmp_path / "theirs")
    values = nchw(picture[None] / np.float32(127.5) - 1)
    around = values * torch.from_numpy(mask < 128)
    with torch.no_grad():
        latents = pipeline.vae.encode(around).latent_dist.mode() * 0.7
        masks = torch.from_numpy(mask / np.float32(255))[None, None]
        asked = {"num_inference_steps": STEPS, "guidance_scale": 3.0}
        made = {
            output: pipeline(
                [PROMPT] * 2,
                negative_prompt=[NEGATIVE] * 2,
                image=(values + 1) / 2,
                mask_image=masks,
                masked_image_latents=latents,
                strength=1.0,
                height=SIZE[0],
                width=SIZE[1],
                latents=nchw(noise),
                output_type=output,
                **asked,
            ).images
            for output in ("latent", "np")
        }
    again = interop.load_diffusers(tmp_path / "theirs")
    assert again.conditions == model.conditions
    for one in (model, again):
        ours = one.generate(
            PROMPT,
            num_images=2,
            negative_prompt=NEGATIVE,
            init_image=picture,
            mask=mask,
            latents=noise,
            num_steps=STEPS,
            guidance_scale=3.0,
            output="latents",
        )
        assert_close(ours, nhwc(made["latent"]), "latents")
        assert_close(decoded(one, ours), made["np"], "images")


def test_instructions(drawn, tmp_path):
    """`StableDiffusionInstructPix2PixPipeline`, with a scale for the picture and one for text."""
    picture, _, noise = drawn
    model = model_of(
        {"name": "picture", "kind": "picture", "channels": 4, "scale": 1 / 0.7},
    )
    name = "StableDiffusionInstructPix2PixPipeline"
    pipeline = opened(model, name, tmp_path / "theirs")
    with torch.no_grad():
        made = {
            output: pipeline(
                [PROMPT] * 2,
                negative_prompt=[NEGATIVE] * 2,
                image=torch.cat([nchw(picture[None] / np.float32(255))] * 2),
                num_inference_steps=STEPS,
                guidance_scale=4.0,
                image_guidance_scale=1.5,
                latents=nchw(noise),
                output_type=output,
            ).images
            for output in ("latent", "np")
        }
    again = interop.load_diffusers(tmp_path / "theirs")
    assert again.conditions == model.conditions
    assert again.defaults["condition_scales"] == {"picture": 1.5}
    for one in (model, again):
        ours = one.generate(
            PROMPT,
            num_images=2,
            negative_prompt=NEGATIVE,
            conditions={"picture": picture},
            latents=noise,
            num_steps=STEPS,
            guidance_scale=4.0,
            condition_scales={"picture": 1.5} if one is model else None,
            output="latents",
        )
        assert_close(ours, nhwc(made["latent"]), "latents")
        assert_close(decoded(one, ours), made["np"], "images")


def test_upscaling(drawn, tmp_path):
    """`StableDiffusionUpscalePipeline`, whose picture gets no noise here."""
    small = drawn[0][:8, :8]
    noise = np.random.default_rng(1).standard_normal((2, 8, 8, 4)).astype("float32")
    model = model_of(
        {
            "name": "low_resolution",
            "kind": "low_resolution",
            "channels": 3,
            "factor": 8,
            "depth": 1,
            "null": False,
        },
        {"name": "noise_level", "kind": "class", "words": [*"0123456"], "null": False},
    )
    interop.save_diffusers(model, tmp_path / "parts")
    assert not (tmp_path / "parts" / INDEX).exists()
    quiet = diffusers.DDPMScheduler(beta_start=1e-9, beta_end=2e-9)
    parts = {
        "vae": diffusers.AutoencoderKL,
        "text_encoder": transformers.CLIPTextModel,
        "tokenizer": transformers.CLIPTokenizer,
        "unet": diffusers.UNet2DConditionModel,
        "scheduler": diffusers.UniPCMultistepScheduler,
    }
    pipeline = diffusers.StableDiffusionUpscalePipeline(
        **{name: kind.from_pretrained(tmp_path / "parts" / name) for name, kind in parts.items()},
        low_res_scheduler=quiet,
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        made = pipeline(
            [PROMPT] * 2,
            negative_prompt=[NEGATIVE] * 2,
            image=torch.cat([nchw(small[None] / np.float32(127.5) - 1)] * 2),
            noise_level=3,
            num_inference_steps=STEPS,
            guidance_scale=4.0,
            latents=nchw(noise),
            output_type="latent",
        ).images
    again = interop.load_diffusers(tmp_path / "theirs")
    assert again.conditions == model.conditions
    assert again.defaults["guidance_scale"] == 9.0
    ours = again.generate(
        PROMPT,
        num_images=2,
        negative_prompt=NEGATIVE,
        conditions={"low_resolution": small, "noise_level": 3},
        latents=noise,
        num_steps=STEPS,
        guidance_scale=4.0,
        height=64,
        width=64,
        output="latents",
    )
    assert_close(ours, nhwc(made), "latents")


def test_classes_of_a_model_of_pixels(tmp_path):
    """A class-conditional `UNet2DModel`, whose pipeline there cannot be told a class."""
    torch.manual_seed(0)
    unet = reference.randomize(
        diffusers.UNet2DModel(
            sample_size=12,
            in_channels=1,
            out_channels=1,
            block_out_channels=[8, 16],
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=["DownBlock2D", "AttnDownBlock2D"],
            up_block_types=["AttnUpBlock2D", "UpBlock2D"],
            num_class_embeds=10,
        )
    )
    scheduler = diffusers.DDIMScheduler(clip_sample=True)
    diffusers.DDIMPipeline(unet, scheduler).save_pretrained(tmp_path / "theirs")
    model = interop.load_diffusers(tmp_path / "theirs")
    noise = np.random.default_rng(0).standard_normal((2, 12, 12, 1)).astype("float32")
    labels, latents = torch.tensor([3, 7]), nchw(noise)
    scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        for timestep in scheduler.timesteps:
            prediction = unet(latents, timestep, class_labels=labels).sample
            latents = scheduler.step(prediction, timestep, latents).prev_sample
    told = [{"label": 3}, {"label": "7"}]
    ours = model.generate(conditions=told, latents=noise, num_steps=STEPS, output="latents")
    assert_close(ours, nhwc(latents), "latents")
    interop.save_diffusers(model, tmp_path / "again")
    assert interop.load_diffusers(tmp_path / "again").conditions == model.conditions
    with pytest.raises(UserError, match="label: this model has to be told it"):
        model.generate(num_steps=STEPS)
