"""Side by side with diffusers itself; needs the `reference` extra.

More variety than the golden files, and the other direction: what we write is opened by
`from_pretrained` and gives the same numbers.
"""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny import CONTEXT_LENGTH, perturb, tiny_model

from latentddpm import interop
from latentddpm.diffusion import samplers
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.interop.diffusers.folder import read_folder
from latentddpm.interop.diffusers.networks import validate
from latentddpm.interop.diffusers.scheduler import KINDS, read_scheduler, scheduler_config
from latentddpm.interop.diffusers.write_config import unet_config
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
sys.path.insert(0, str(Path(__file__).parents[1] / "golden"))
reference = importlib.import_module("reference_networks")
SMALL, TWO, randomize = reference.SMALL, reference.TWO, reference.randomize

pytestmark = [
    pytest.mark.reference,
    # torch's and transformers' own business.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:(torch|diffusers|transformers)"),
]
TOLERANCE = 1e-4


def nhwc(tensor):
    return tensor.detach().permute(0, 2, 3, 1).contiguous().numpy()


def nchw(array):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(np.asarray(array), -1, 1)))


def assert_close(found, expected, what, tolerance=TOLERANCE):
    assert found.shape == expected.shape, f"{what}: {found.shape}, expected {expected.shape}"
    size = np.abs(expected).max()
    assert 0.2 < size < 100, f"{what}: answers of order {size:.2g} say little"
    difference = np.abs(np.asarray(found) - expected).max()
    assert difference <= tolerance, f"{what} differs by {difference:.2g} of {size:.2g}"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    with torch.no_grad():
        yield


# --- Import ----------------------------------------------------------------------------------

AUTOENCODERS = {
    "one level": {
        "down_block_types": ["DownEncoderBlock2D"],
        "up_block_types": ["UpDecoderBlock2D"],
        "block_out_channels": [16],
        "norm_num_groups": 8,
    },
    "four levels": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [16, 32, 64, 64],
        "layers_per_block": 2,
        "norm_num_groups": 16,
    },
    "other channels": {
        **TWO,
        "block_out_channels": [8, 24],
        "in_channels": 1,
        "out_channels": 1,
        "latent_channels": 3,
        "norm_num_groups": 4,
    },
    "as in Stable Diffusion 3": {
        **TWO,
        "block_out_channels": [8, 16],
        "latent_channels": 16,
        "norm_num_groups": 4,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "mean and std of each channel": {
        **TWO,
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "scaling_factor": 0.5,
        "latents_mean": [-1.6574, 1.886, -1.383, 2.5155],
        "latents_std": [8.4927, 5.9022, 6.5498, 5.2299],
    },
}


def normalized(config, raw):
    """Latents (B, c, h, w) as pipelines of diffusers make them of raw ones, in float64."""
    raw = raw.double()
    if config.latents_mean is not None:  # StableDiffusionXLImg2ImgPipeline.prepare_latents
        mean, std = (
            torch.tensor(values).double().view(1, -1, 1, 1)
            for values in (config.latents_mean, config.latents_std)
        )
        return (raw - mean) * config.scaling_factor / std
    return (raw - (config.shift_factor or 0)) * config.scaling_factor  # StableDiffusion3Img2Img


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_autoencoder(name, tmp_path):
    config = AUTOENCODERS[name]
    model = randomize(diffusers.AutoencoderKL(**config))
    model.save_pretrained(tmp_path)
    ours = interop.load_diffusers(tmp_path).autoencoder
    images = torch.rand(3, model.config.in_channels, 32, 48) * 2 - 1
    moments = model.encode(images).latent_dist
    mean, logvar = ours.encode(nhwc(images))
    assert_close(mean, nhwc(moments.mean), "mean")
    assert_close(logvar, nhwc(moments.logvar), "logvar")
    raw = torch.randn(2, model.config.latent_channels, 6, 4)
    latents = nhwc(normalized(model.config, raw).float())
    assert_close(ours.to_latents(nhwc(raw)), latents, "latents", 1e-5)
    assert_close(ours.decode(latents), nhwc(model.decode(raw).sample), "decode")
    interop.save_diffusers(LatentDiffusion(ours, None, None), tmp_path / "again")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "again" / "vae")
    assert_close(nhwc(again.decode(raw).sample), nhwc(model.decode(raw).sample), "written")
    back = nhwc(normalized(again.config, raw).float())
    assert_close(back, latents, "latents of what was written", 1e-5)


FOUR = {**SMALL, "block_out_channels": [16, 32, 64, 64], "layers_per_block": 2}
UNETS = {
    "unconditional, attention in the middle only": (
        diffusers.UNet2DModel,
        {
            **SMALL,
            "down_block_types": ["DownBlock2D"] * 2,
            "up_block_types": ["UpBlock2D"] * 2,
            "attention_head_dim": 8,
        },
    ),
    "unconditional, four levels": (
        diffusers.UNet2DModel,
        {
            **FOUR,
            "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 2, "DownBlock2D"],
            "up_block_types": ["UpBlock2D", *["AttnUpBlock2D"] * 2, "UpBlock2D"],
        },
    ),
    "Stable Diffusion 1.x": (
        diffusers.UNet2DConditionModel,
        {**FOUR, "norm_num_groups": 16, "attention_head_dim": 8, "cross_attention_dim": 24},
    ),
    "Stable Diffusion 2.x": (
        diffusers.UNet2DConditionModel,
        {
            **FOUR,
            "norm_num_groups": 16,
            "attention_head_dim": [2, 4, 8, 8],
            "cross_attention_dim": 24,
            "use_linear_projection": True,
        },
    ),
    "other epsilon, layers as a list": (
        diffusers.UNet2DConditionModel,
        {
            **SMALL,
            "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
            "layers_per_block": [3, 3],
            "norm_eps": 1e-3,
            "attention_head_dim": [4, 1],
            "cross_attention_dim": 5,
        },
    ),
}


def predictions(theirs, ours, height=8, width=16):
    """What both answer to the same question: three examples, not square."""
    channels = theirs.config.in_channels
    noisy, timesteps = torch.randn(3, channels, height, width), torch.tensor([1, 500, 999])
    inputs = {"noisy_latents": nhwc(noisy), "timesteps": timesteps.int().numpy()}
    context = {}
    if isinstance(theirs, diffusers.UNet2DConditionModel):
        context["encoder_hidden_states"] = torch.randn(3, 11, theirs.config.cross_attention_dim)
        inputs["context"] = context["encoder_hidden_states"].numpy()
    return ours(inputs), nhwc(theirs(noisy, timesteps, **context).sample)


@pytest.mark.parametrize("name", UNETS)
def test_unet(name, tmp_path):
    kind, config = UNETS[name]
    model = randomize(kind(**config))
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    ours = validate(read_folder(tmp_path).unet).build()
    assert_close(*predictions(model, ours), "prediction")


def digits_of_the_course():
    """The second network of diffusers' course, for digits of 28×28."""
    return diffusers.UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        layers_per_block=2,
        block_out_channels=(32, 64, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    )


def test_the_unet_of_the_course(tmp_path):
    """28 → 14 → 7, heads of 8 channels."""
    model = randomize(digits_of_the_course())
    model.save_pretrained(tmp_path)
    ours = validate(read_folder(tmp_path).unet).build()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert ours.count_params() == count == 1_707_009, f"{ours.count_params()} beside {count}"
    assert_close(*predictions(model, ours, 28, 28), "prediction", 3e-5)  # of 5


@pytest.mark.parametrize("size", [(9, 13), (10, 7), (5, 5)])
def test_sizes_that_the_factor_does_not_divide(size, tmp_path):
    """Three levels: 9×13 → 5×7 → 3×4, and up to the sizes of the skip connections."""
    down, up = ["CrossAttnDownBlock2D"] * 2, ["CrossAttnUpBlock2D"] * 2
    sizes = {**SMALL, "block_out_channels": [8, 16, 16], "cross_attention_dim": 6}
    model = diffusers.UNet2DConditionModel(
        **sizes,
        attention_head_dim=2,
        down_block_types=[*down, "DownBlock2D"],
        up_block_types=["UpBlock2D", *up],
    )
    randomize(model).save_pretrained(tmp_path)
    ours = validate(read_folder(tmp_path).unet).build()
    assert_close(*predictions(model, ours, *size), "prediction", 1e-5)


def test_a_learned_variance_there_and_back(tmp_path):
    """Twice as many channels come out as go in, as of guided-diffusion's networks."""
    name, config = UNETS["unconditional, attention in the middle only"]
    model = randomize(name(**{**config, "out_channels": 8}))
    model.save_pretrained(tmp_path / "theirs")
    ours = validate(read_folder(tmp_path / "theirs").unet).build()
    assert ours.learned_variance, "the second half of the channels got lost"
    assert_close(*predictions(model, ours), "prediction and variance", 1e-5)
    assert unet_config(ours, None)["out_channels"] == 8, "out_channels got lost"


@pytest.mark.parametrize(
    "case", ["unconditional, attention in the middle only", "other epsilon, layers as a list"]
)
def test_a_scale_and_a_shift_by_the_timestep_there_and_back(case, tmp_path):
    """AdaGN of Dhariwal & Nichol 2021, as of guided-diffusion's networks."""
    name, config = UNETS[case]
    text = name is diffusers.UNet2DConditionModel
    more = {} if text else {"attn_norm_num_groups": config["norm_num_groups"]}
    model = name(**{**config, **more, "resnet_time_scale_shift": "scale_shift"})
    randomize(model).save_pretrained(tmp_path / "theirs")
    ours = validate(read_folder(tmp_path / "theirs").unet).build()
    assert ours.get_config()["time_scale_shift"], "the scale got lost"
    assert_close(*predictions(model, ours), "prediction", 1e-5)
    written = unet_config(ours, None)
    for key in ("resnet_time_scale_shift", *more):
        assert written[key] == model.config[key], f"{key}: {written[key]}"


# --- Export ----------------------------------------------------------------------------------


def test_a_pipeline_made_here(tmp_path):
    """Context of 16 tokens, measured scaling factor, our tokenizer; guidance 7.5."""
    model = tiny_model(channel_multipliers=(1, 2))
    perturb(model.autoencoder)
    model.defaults["timestep_spacing"] = "leading"
    interop.save_diffusers(model, tmp_path / "theirs")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "theirs")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.vae.config.scaling_factor == 0.7, "the scaling factor got lost"
    prompts, negative = ["red apple", "a photo of two dogs, 3d"], "blue"
    token_ids = pipeline.tokenizer(
        prompts, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH
    ).input_ids
    np.testing.assert_array_equal(token_ids, model.tokenizer(prompts), err_msg="token ids")

    latents = np.random.default_rng(0).standard_normal((2, 4, 6, 4)).astype("float32")
    options = {"height": 32, "width": 48}
    made = {
        output: pipeline(
            prompts,
            negative_prompt=[negative] * 2,
            num_inference_steps=10,
            guidance_scale=7.5,
            latents=nchw(latents),
            output_type=output,
            **options,
        ).images
        for output in ("latent", "np")
    }
    ours = model.generate(
        prompts,
        negative_prompt=negative,
        num_steps=10,
        guidance_scale=7.5,
        latents=latents,
        output="latents",
        **options,
    )
    assert_close(ours, nhwc(made["latent"]), "latents", 1e-3)
    images = np.clip(np.asarray(model.autoencoder.decode(ours)) / 2 + 0.5, 0, 1)
    assert_close(images, made["np"], "images", 1e-3)


SCHEDULERS = {
    "DDPMPipeline": diffusers.DDPMScheduler(clip_sample=False),
    "DDIMPipeline": diffusers.DDPMScheduler(clip_sample=True, beta_schedule="squaredcos_cap_v2"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_pipeline_of_pixels(name, channels, tmp_path):
    """Read here, written again, opened there: DDIM draws the same from the same noise.

    The options of the sampler that was read, such as `clip_sample`, are its defaults.
    """
    config = {**UNETS["unconditional, attention in the middle only"][1]}
    config.update(in_channels=channels, out_channels=channels, norm_num_groups=4)
    unet = randomize(diffusers.UNet2DModel(**config))
    getattr(diffusers, name)(unet=unet, scheduler=SCHEDULERS[name]).save_pretrained(tmp_path / "a")
    read = interop.load_diffusers(tmp_path / "a")
    assert read.defaults["sampler"] == ("ddpm" if name == "DDPMPipeline" else "ddim")
    interop.save_diffusers(read, tmp_path / "b")
    assert type(diffusers.DiffusionPipeline.from_pretrained(tmp_path / "b")).__name__ == name
    again = interop.load_diffusers(tmp_path / "b")
    assert again.facts == read.facts, "other facts after a round trip"
    theirs = diffusers.DDIMPipeline.from_pretrained(tmp_path / "b")
    theirs.set_progress_bar_config(disable=True)
    drawn = theirs(
        2, torch.Generator().manual_seed(0), num_inference_steps=5, output_type="np"
    ).images
    noise = torch.randn(2, channels, *config["sample_size"], generator=torch.manual_seed(0))
    ours = again.generate(
        num_images=2,
        num_steps=5,
        sampler="ddim",
        timestep_spacing="leading",
        sampler_options={"steps_offset": 0},
        latents=nhwc(noise),
        output="latents",
    )
    assert_close(np.clip(ours / 2 + 0.5, 0, 1), drawn, "images")
    assert drawn.std() > 0.1, "the images say little"


def test_parts_made_here(tmp_path):
    """A model without text: every part opens by itself."""
    model = tiny_model(text=False)
    perturb(model.autoencoder)
    interop.save_diffusers(model, tmp_path / "theirs", storage="float16")
    interop.load_diffusers(tmp_path / "theirs")
    model = interop.load_diffusers(tmp_path / "theirs")  # with weights as they were stored
    unet = diffusers.UNet2DModel.from_pretrained(tmp_path / "theirs" / "unet").float()
    assert_close(*predictions(unet, model.unet), "prediction")
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "theirs" / "vae").float()
    images = np.random.default_rng(0).uniform(-1, 1, (2, 32, 16, 3)).astype("float32")
    mean, _ = model.autoencoder.encode(images)
    assert_close(mean, nhwc(vae.encode(nchw(images)).latent_dist.mean), "mean")


def test_the_model_that_ships(tmp_path):
    """emoji-128 in diffusers draws what it draws here."""
    folder = Path(__file__).resolve().parents[2] / "weights" / "emoji-128"
    model = LatentDiffusion.load(folder)
    interop.save_diffusers(model, tmp_path / "theirs")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "theirs")
    pipeline.set_progress_bar_config(disable=True)
    latents = np.random.default_rng(0).standard_normal((1, 16, 16, 4)).astype("float32")
    images = pipeline(
        "red apple",
        num_inference_steps=10,
        guidance_scale=4.0,
        latents=nchw(latents),
        output_type="np",
    ).images
    ours = model.generate(
        "red apple", num_steps=10, guidance_scale=4.0, latents=latents, output="latents"
    )
    decoded = np.clip(np.asarray(model.autoencoder.decode(ours)) / 2 + 0.5, 0, 1)
    assert_close(decoded, images, "images", 1e-3)


# --- Schedulers ------------------------------------------------------------------------------


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "cosine"])
@pytest.mark.parametrize("name", KINDS)
def test_a_scheduler_has_our_noise_levels(name, beta_schedule):
    schedule = NoiseSchedule(beta_schedule, num_train_timesteps=1000)
    defaults = {"sampler": KINDS[name].sampler, "timestep_spacing": "leading"}
    config = scheduler_config(schedule, defaults)
    assert config["_class_name"] == name, f"{defaults['sampler']} became {config['_class_name']}"
    theirs = getattr(diffusers, name).from_config(config)
    np.testing.assert_allclose(
        theirs.alphas_cumprod.numpy(), schedule.alphas_cumprod, rtol=2e-4, atol=1e-7, err_msg=name
    )
    theirs.set_timesteps(10)
    ours = samplers.get(defaults["sampler"])(schedule, 10, "leading")
    found = list(dict.fromkeys(theirs.timesteps.tolist()))  # some visit a timestep twice
    expected = list(ours.timesteps)
    if ours.left_out is not None:  # pure noise, of which epsilon says nothing; see `spacing`
        expected[0] = ours.left_out
    assert found == expected, f"{name} visits {found}, ours {expected}"


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "unipc"])
def test_a_scheduler_of_flow_matching_has_our_levels(sampler):
    schedule = FlowSchedule(shift=3.0)
    config = scheduler_config(schedule, {"sampler": sampler, "timestep_spacing": "linspace"})
    theirs = getattr(diffusers, config["_class_name"]).from_config(config)
    theirs.set_timesteps(10)
    _, defaults = read_scheduler(dict(theirs.config) | config, "scheduler_config.json")
    ours = samplers.get(defaults["sampler"])(schedule, 10, defaults["timestep_spacing"])
    expected = [ours.rates(i)[1] for i in range(11)]
    found = list(dict.fromkeys(theirs.sigmas.tolist()))
    # The multistep solvers start at 1 − 1/T instead of 1.
    tolerance = 1e-6 if config["_class_name"].startswith("Flow") else 2e-3
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance, err_msg=sampler)
