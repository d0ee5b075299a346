"""Messages of `generate`."""

from pathlib import Path

import numpy as np
from PIL import Image
from remedy_models import put_model

from latentddpm.utils.pixels import save_png
from remedies.remedy import Remedy

DRAW = "generate --model m --prompt red --steps 1"


def model(folder: Path) -> None:
    put_model(folder / "m")


def pictures(folder: Path) -> None:
    model(folder)
    picture = np.zeros((32, 32, 3), np.uint8)
    save_png(folder / "photo.png", picture)
    Image.fromarray(np.eye(32, dtype=np.uint8) * 255).save(folder / "mask.png")
    (folder / "file").write_text("not a folder", "utf-8")


REMEDIES = [
    Remedy(
        "a height between two multiples",
        model,
        "generate --model m --prompt red --height 33 --width 32",
        ("--height", "nearest valid: 32 or 34"),
        (f"{DRAW} --height 32 --width 32", f"{DRAW} --height 34"),
    ),
    Remedy(
        "a height below zero",
        model,
        f"{DRAW} --height -16",
        ("--height -16", "nearest valid: 2"),
        (f"{DRAW} --height 2 --width 32",),
    ),
    Remedy(
        "a strip between two multiples",
        model,
        f"{DRAW} --tile 9",
        ("--tile 9", "nearest valid: 8 or 10"),
        (f"{DRAW} --tile 10",),
    ),
    Remedy(
        "no steps",
        model,
        "generate --model m --prompt red --steps 0",
        ("--steps", "from 1 to 1000"),
        ("generate --model m --prompt red --steps 1",),
    ),
    Remedy(
        "a seed below zero",
        model,
        f"{DRAW} --seed -1",
        ("--seed: -1", "leave it out to draw one"),
        (DRAW,),
    ),
    Remedy(
        "levels of another sampler",
        model,
        f"{DRAW} --sampler ddim --sigma-spacing karras",
        ("--sigma-spacing", "euler", "unipc"),
        (f"{DRAW} --sampler euler --sigma-spacing karras",),
    ),
    Remedy(
        "a start beside a picture",
        pictures,
        f"{DRAW} --steps 2 --start-step 1 --init-image photo.png",
        ("--start-step: 1 beside --init-image", "expected --start-step 0"),
        (f"{DRAW} --steps 2 --start-step 0 --init-image photo.png",),
    ),
    Remedy(
        "negative prompts for other prompts",
        model,
        f"{DRAW} --negative-prompt a --negative-prompt b",
        ("--negative-prompt: 2 given for 1 prompt;", "one for all, or one for each"),
        (f"{DRAW} --prompt blue --negative-prompt a --negative-prompt b",),
    ),
    Remedy(
        "one file for several pictures",
        model,
        f"{DRAW} --num-images 2 --out a.png",
        ("a.png", "name a folder, or --grid"),
        (f"{DRAW} --num-images 2 --out a.png --grid",),
    ),
    Remedy(
        "a mask alone",
        pictures,
        f"{DRAW} --mask mask.png",
        ("--mask", "give --init-image too"),
        (f"{DRAW} --mask mask.png --init-image photo.png",),
    ),
    Remedy(
        "a strength that leaves no step",
        pictures,
        f"{DRAW} --init-image photo.png --strength 0.4",
        ("--strength", "expected at least 1, or more steps"),
        (f"{DRAW} --init-image photo.png --strength 0.4 --steps 3",),
    ),
    Remedy(
        "a file in the place of a folder",
        pictures,
        f"{DRAW} --out file/a.png",
        ("--out", "file is not a folder", "another place"),
        (f"{DRAW} --out other/a.png",),
    ),
    Remedy(
        "the picture to start from would be replaced",
        pictures,
        f"{DRAW} --init-image photo.png --strength 1 --out photo.png --overwrite",
        ("--overwrite", "photo.png is read", "--out"),
        (f"{DRAW} --init-image photo.png --strength 1 --out b.png --overwrite",),
    ),
]
