"""Messages of `train-vae`, `train-diffusion`, `encode` and `evaluate`."""

from pathlib import Path

import yaml
from remedy_models import put_model
from tiny import few_emoji

from remedies.remedy import Remedy

SHORT = {
    "training": {"num_steps": 1, "batch_size": 2, "warmup_steps": 0, "validate_every": 1},
}
SMALL = {"channels": 16, "channel_multipliers": [1], "num_res_blocks": 1, "norm_groups": 4}
UNET = {
    "unet": {**SMALL, "num_heads": 2},
    "text": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "context_length": 16},
    "samples": {"images_per_prompt": 1, "num_steps": 1},
    **SHORT,
}
VAE = {"autoencoder": {**SMALL, "channel_multipliers": [1, 1]}, **SHORT}
INIT = {"samples": UNET["samples"], **SHORT}


def images(folder: Path) -> None:
    """Images with captions and without, and configurations of a step."""
    for name in ("captioned", "bare"):
        (folder / name).mkdir()
        few_emoji(folder / name, count=4)
    (folder / "bare" / "metadata.jsonl").unlink()
    for name, settings in (("unet", UNET), ("vae", VAE), ("init", INIT)):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings), "utf-8")


def lab(folder: Path) -> None:
    """The same, a model, and a file."""
    images(folder)
    put_model(folder / "model")
    (folder / "file").write_text("x", "utf-8")


BARE = "train-diffusion --data bare --out run"
FRESH = "train-diffusion --data captioned --config unet.yaml --vae model --out run"
PIXELS = "train-diffusion --data bare --config unet.yaml --vae none --out run"
TEMPLATE = """--set 'data.caption_templates=["a photo of sks"]'"""

REMEDIES = [
    Remedy(
        "bare images for a model with words",
        lab,
        f"{BARE} --init model --config init.yaml",
        ("no captions", "data.caption_templates="),
        (f"{BARE} --init model --config init.yaml {TEMPLATE}",),
    ),
    Remedy(
        "bare images and words wanted",
        lab,
        f"{BARE} --vae model --config unet.yaml --set text.source=scratch",
        ("no captions", "--set text.source=none"),
        (f"{BARE} --vae model --config unet.yaml --set text.source=none --dry-run",),
    ),
    Remedy(
        "no autoencoder",
        lab,
        "train-diffusion --data captioned --config unet.yaml --out run --dry-run",
        ("--vae: needed", "--init", "--vae none"),
        (f"{FRESH} --dry-run",),
    ),
    Remedy(
        "latents of a run on pixels",
        images,
        f"{PIXELS} --latents latents --dry-run",
        ("--latents latents", "not cached; leave it out"),
        (f"{PIXELS} --dry-run",),
    ),
    Remedy(
        "norm groups that do not divide",
        lab,
        f"{FRESH} --set unet.norm_groups=7 --dry-run",
        ("unet.norm_groups=7", "nearest valid: 8"),
        (f"{FRESH} --set unet.norm_groups=8 --dry-run",),
    ),
    Remedy(
        "a resolution between two multiples",
        lab,
        f"{FRESH} --set data.resolution=33 --dry-run",
        ("data.resolution 33", "nearest valid: 32 or 34"),
        (f"{FRESH} --set data.resolution=34 --dry-run",),
    ),
    Remedy(
        "a configuration of the other command",
        lab,
        "train-vae --data bare --config unet.yaml --out run --dry-run",
        ("unet.yaml: this is one of train-diffusion", "expected a configuration of train-vae"),
        ("train-vae --data bare --config vae.yaml --out run --dry-run",),
    ),
    Remedy(
        "a setting of the other command",
        lab,
        "train-vae --data bare --config vae.yaml --set unet.channels=16 --out run --dry-run",
        ("unet is a setting of train-diffusion, not of train-vae",),
        ("train-vae --data bare --config vae.yaml --out run --dry-run",),
    ),
    Remedy(
        "a flow model that predicts noise",
        lab,
        f"{FRESH} --set schedule.kind=flow --dry-run",
        ("'epsilon' is not for schedule.kind=flow", "schedule.prediction_type=velocity"),
        (f"{FRESH} --set schedule.kind=flow --set schedule.prediction_type=velocity --dry-run",),
    ),
    Remedy(
        "a decoder of no model",
        lab,
        "train-vae --data bare --config vae.yaml --set training.train=decoder --out run --dry-run",
        ("training.train=decoder", "--init"),
        ("train-vae --data bare --set training.train=decoder --init model --out run --dry-run",),
    ),
    Remedy(
        "a run folder below a file",
        lab,
        "train-vae --data bare --config vae.yaml --out file/run",
        ("--out file/run", "file is a file; name a folder"),
        ("train-vae --data bare --config vae.yaml --out run/of/mine --dry-run",),
    ),
    Remedy(
        "an encoding that does not fit",
        lab,
        "encode --data bare --vae model --out latents --resolution 33",
        ("--resolution 33", "nearest valid: 32 or 34"),
        ("encode --data bare --vae model --out latents --resolution 32",),
    ),
    Remedy(
        "a split without images",
        lab,
        "evaluate --model model --data captioned --split validation --validation-fraction 0",
        ("leaves it none", "the split all"),
        ("evaluate --model model --data captioned --split all --validation-fraction 0",),
    ),
]
