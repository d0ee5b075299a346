"""Make tests/golden/diffusers: tiny networks of diffusers, and what they answer.

    HF_HUB_OFFLINE=1 python tests/golden/make_diffusers_golden.py

Needs the `reference` extra (torch, diffusers, transformers). Every folder is what
`save_pretrained` writes, with an `answers.safetensors` beside it: inputs and outputs, channels
last. Weights are random and none of them zero or one; outputs are computed in float32 from the
weights as they are stored.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel
from transformers import CLIPTokenizer as ReferenceTokenizer

sys.path.insert(0, str(Path(__file__).parent))

from reference_networks import AUTOENCODERS, ORIGINAL, UNETS, randomize

from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.clip.vocabulary import END_TOKEN, START_TOKEN, byte_tokens

OUT = Path(__file__).with_name("diffusers")
WEIGHTS = "diffusion_pytorch_model.safetensors"
MERGES = [("a", "p"), ("r", "e"), ("re", "d</w>"), ("ap", "p"), ("app", "l"), ("appl", "e</w>")]


def nhwc(tensor):
    return tensor.permute(0, 2, 3, 1).contiguous()


def save(model, folder, dtype=torch.float32, **options):
    """`save_pretrained` in `dtype`, and the same model in float32 with the stored weights."""
    model.to(dtype).save_pretrained(folder, **options)
    return model.to(torch.float32).eval()


def autoencoder_answers(model, folder):
    images = torch.rand(2, 3, 16, 24) * 2 - 1
    moments = model.encode(images).latent_dist
    raw_latents = torch.randn(2, 4, 6, 4)
    answers = {
        "images": nhwc(images),
        "mean": nhwc(moments.mean),
        "logvar": nhwc(moments.logvar),
        "raw_latents": nhwc(raw_latents),
        "decoded": nhwc(model.decode(raw_latents).sample),
    }
    save_file(answers, folder / "answers.safetensors")


def unet_answers(model, folder):
    noisy = torch.randn(3, 4, 8, 12)
    timesteps = torch.tensor([0, 17, 999])
    answers = {"noisy_latents": nhwc(noisy), "timesteps": timesteps.to(torch.int32)}
    context = {}
    if isinstance(model, UNet2DConditionModel):
        answers["context"] = torch.randn(3, 7, model.config.cross_attention_dim)
        context = {"encoder_hidden_states": answers["context"]}
    answers["prediction"] = nhwc(model(noisy, timesteps, **context).sample)
    save_file(answers, folder / "answers.safetensors")


def odd_answers(folder):
    """What a conditional UNet answers at a size that its factor does not divide, 7×9."""
    model = UNet2DConditionModel.from_pretrained(folder, torch_dtype=torch.float32).eval()
    numbers = torch.Generator().manual_seed(0)
    noisy, timesteps = torch.randn(2, 4, 7, 9, generator=numbers), torch.tensor([7, 900])
    context = torch.randn(2, 5, model.config.cross_attention_dim, generator=numbers)
    answers = {
        "noisy_latents": nhwc(noisy),
        "timesteps": timesteps.int(),
        "context": context,
        "prediction": nhwc(model(noisy, timesteps, encoder_hidden_states=context).sample),
    }
    save_file(answers, OUT / "odd_answers.safetensors")


def rename_to_old_attention(folder):
    """The names that the autoencoder's attention had in early versions."""
    file = next(folder.glob("diffusion*.safetensors"))
    tensors = load_file(file)
    for new, old in (
        ("to_q", "query"),
        ("to_k", "key"),
        ("to_v", "value"),
        ("to_out.0", "proj_attn"),
    ):
        tensors = {key.replace(f".{new}.", f".{old}."): value for key, value in tensors.items()}
    save_file(tensors, file, metadata={"format": "pt"})


def make_pipeline(folder):
    """A whole Stable Diffusion pipeline, and the images of injected latents."""
    tokens = [*byte_tokens(), *map("".join, MERGES), START_TOKEN, END_TOKEN]
    vocabulary = {token: n for n, token in enumerate(tokens)}
    ours = CLIPTokenizer(9, vocabulary=vocabulary, merges=MERGES)
    ours.save(folder / "source", standalone=True)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=9,
        bos_token_id=ours.start_id,
        eos_token_id=ours.end_id,
        pad_token_id=ours.end_id,
    )
    vae = randomize(AutoencoderKL(**AUTOENCODERS["sharded"])).half().float()
    unet = randomize(UNet2DConditionModel(**(UNETS["heads-int"][1] | {"cross_attention_dim": 16})))
    text_encoder = randomize(CLIPTextModel(config))
    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=unet.half().float(),
        text_encoder=text_encoder.half().float(),
        tokenizer=ReferenceTokenizer.from_pretrained(folder / "source"),
        scheduler=DDIMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            clip_sample=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    asked = {"prompt": ["red apple", "apple"], "negative_prompt": "red"}
    latents = torch.randn(2, 4, 8, 12)
    made = {}
    for output in ("np", "latent"):
        made[output] = pipeline(
            prompt=asked["prompt"],
            negative_prompt=[asked["negative_prompt"]] * 2,
            num_inference_steps=5,
            guidance_scale=7.5,
            latents=latents.clone(),
            height=16,
            width=24,
            output_type=output,
        ).images
    pipeline.to(torch.float16).save_pretrained(folder)
    shutil.rmtree(folder / "source")
    answers = {
        "latents": nhwc(latents),
        "final_latents": nhwc(made["latent"]),
        "images": torch.from_numpy(made["np"]).contiguous(),
    }
    save_file(answers, folder / "answers.safetensors")
    (folder / "asked.json").write_text(json.dumps(asked, indent=2) + "\n")


def make_pixels(folder):
    """A pipeline of pixels as its first folders are: both parts at the top."""
    torch.manual_seed(1)
    unet = randomize(UNet2DModel(**ORIGINAL)).half().float()
    scheduler = DDPMScheduler(variance_type="fixed_large", clip_sample=True)
    pipeline = DDIMPipeline(unet=unet, scheduler=scheduler)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, torch.manual_seed(2), num_inference_steps=5, output_type="np").images
    noise = torch.randn(2, 3, *ORIGINAL["sample_size"], generator=torch.manual_seed(2))
    timesteps = torch.tensor([17, 999])
    answers = {
        "noisy_latents": nhwc(noise),
        "timesteps": timesteps.to(torch.int32),
        "prediction": nhwc(unet(noise, timesteps).sample),
        "images": torch.from_numpy(images).contiguous(),
    }
    DDPMPipeline(unet.half(), scheduler).save_pretrained(folder)
    for part in ("unet", "scheduler"):
        for file in (folder / part).iterdir():
            file.rename(folder / file.name)
        (folder / part).rmdir()
    save_file(answers, folder / "answers.safetensors")


@torch.no_grad()
def main():
    torch.manual_seed(0)
    shutil.rmtree(OUT, ignore_errors=True)
    folder = OUT / "vae-sharded"
    model = randomize(AutoencoderKL(**AUTOENCODERS["sharded"]))
    autoencoder_answers(save(model, folder, max_shard_size="60KB"), folder)
    folder = OUT / "vae-old-names"
    model = randomize(AutoencoderKL(**AUTOENCODERS["two-layers"]))
    autoencoder_answers(save(model, folder, torch.float16, variant="fp16"), folder)
    rename_to_old_attention(folder)
    dtypes = {"heads-list-linear": torch.bfloat16, "heads-int": torch.float32}
    for name, (kind, config) in UNETS.items():
        folder = OUT / f"unet-{name}"
        model = randomize(kind(**config))
        unet_answers(save(model, folder, dtypes.get(name, torch.float16)), folder)
    odd_answers(OUT / "unet-heads-int")
    make_pipeline(OUT / "pipeline")
    make_pixels(OUT / "pixels")
    for file in OUT.rglob("*.safetensors"):
        file.chmod(0o644)


if __name__ == "__main__":
    main()
