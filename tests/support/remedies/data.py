"""Messages about data."""

import json
import tarfile
from pathlib import Path

import nasty
import yaml
from command_line import LDM_CONFIG
from tiny import quick_model

from remedies.remedy import Remedy

PIXEL = nasty.encoded(nasty.solid("RGB", nasty.RED, 8), "PNG")


def images(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(PIXEL)


def shards_below(folder: Path) -> None:
    images(folder, "1.png")
    (folder / "d/train").mkdir(parents=True)
    for number in range(2):
        with tarfile.open(folder / f"d/train/s-{number}.tar", "w") as shard:
            shard.add(folder / "1.png", "1.png")


def unquoted(folder: Path) -> None:
    images(folder, "d/1.png", "mended/1.png")
    (folder / "d/metadata.csv").write_text("file_name,text\n1.png,a red, ripe apple\n")
    (folder / "mended/metadata.csv").write_text('file_name,text\n1.png,"a red, ripe apple"\n')


def nameless(folder: Path) -> None:
    images(folder, "d/1.png", "mended/1.png")
    (folder / "d/metadata.csv").write_text("item,text\n1.png,apple\n")
    (folder / "mended/metadata.csv").write_text("file_name,text\n1.png,apple\n")


def training(folder: Path, *rows: dict) -> None:
    images(folder, *(f"d/{name}.png" for name in ("red/1", "red/2", "blue/3", "blue/4")))
    if rows:
        table = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / "d/metadata.jsonl").write_text(table)
    quick_model().save(folder / "m")
    sizes = {"channels": 8, "channel_multipliers": [1], "num_res_blocks": 1, "norm_groups": 4}
    config = {
        **LDM_CONFIG,
        "data": {"resolution": 32, "validation_fraction": 0},
        "unet": {**sizes, "attention_levels": [], "num_heads": 1},
        "training": {**LDM_CONFIG["training"], "num_steps": 1, "batch_size": 2},
        "samples": {"prompts": ["a"], "images_per_prompt": 1, "num_steps": 1},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))


def described(folder: Path) -> None:
    training(folder, {"file_name": "red/1.png", "description": "a red boat"})


TRAIN = "train-diffusion --config c.yaml --vae m --data d --out run --quiet"

REMEDIES = [
    Remedy(
        "shards in a folder of another",
        shards_below,
        "doctor d",
        ("no image in it", "train/s-0.tar", "--data", "'NAME-{0000..0099}.tar'"),
        ("doctor d/train/s-0.tar", "doctor 'd/train/s-{0..1}.tar'"),
    ),
    Remedy(
        "a comma without quotes",
        unquoted,
        "pack --data d --out packed",
        ("d/metadata.csv line 2", "3 cells", "stands in quotes"),
        ("pack --data mended --out packed",),
    ),
    Remedy(
        "a table without names of images",
        nameless,
        "pack --data d --out packed",
        ("no 'file_name'", "'item'", "call the one that names the images file_name"),
        ("pack --data mended --out packed",),
    ),
    Remedy(
        "captions in an unknown column",
        described,
        TRAIN,
        ("no column 'text'", 'data.caption_templates=["{description}"]'),
        (f"""{TRAIN} --set 'data.caption_templates=["{{description}}"]'""",),
    ),
    Remedy(
        "a folder of class folders",
        training,
        TRAIN,
        ("no captions", 'data.caption_templates=["a photo of {folder}"]'),
        (f"""{TRAIN} --set 'data.caption_templates=["a photo of {{folder}}"]'""",),
    ),
]
