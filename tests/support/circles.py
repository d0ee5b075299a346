"""A model of pixels, and small pictures of circles with their outlines."""

import json

import keras
from PIL import Image, ImageDraw
from tiny import perturb

from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.models.autoencoder.pixel_space import PixelSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

SIDE = 16
SIZES = {
    "channels": 8,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 1,
    "attention_levels": (1,),
    "num_heads": 2,
    "norm_groups": 4,
    "latent_channels": 3,
    "zero_init": False,
}


def pixel_unet(seed=0, **changes):
    keras.utils.set_random_seed(seed)
    unet = UNet(**{**SIZES, **changes})
    perturb(unet, seed, 0.05)
    return unet


def pixel_model(seed=0, **changes):
    """An unconditional model of 16×16 pixels in two steps."""
    return LatentDiffusion(
        PixelSpace(3),
        pixel_unet(seed, **changes),
        NoiseSchedule(),
        image_size=(SIDE, SIDE),
        defaults={"num_steps": 2},
    )


def circle(radius, fill, outline=None):
    picture = Image.new("RGB", (SIDE, SIDE), "black" if outline else "white")
    box = [SIDE // 2 - radius, SIDE // 2 - radius, SIDE // 2 + radius, SIDE // 2 + radius]
    ImageDraw.Draw(picture).ellipse(box, fill=fill, outline=outline)
    return picture


def few_circles(folder, count=8):
    """Circles in `folder`, each with its outline in a hidden folder, named in the metadata."""
    (folder / ".outlines").mkdir(parents=True)
    lines = []
    for number in range(count):
        radius, name = 2 + number % 5, f"{number}.png"
        circle(radius, (40 * number % 256, 90, 30)).save(folder / name)
        circle(radius, None, "white").save(folder / ".outlines" / name)
        lines.append(json.dumps({"file_name": name, "outline": f".outlines/{name}"}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), "utf-8")
    return folder
