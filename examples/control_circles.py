"""Circles through a ControlNet: small pictures drawn here, a model of them, and how well it obeys.

    python examples/control_circles.py draw   circles            # pictures, outlines, captions
    python examples/control_circles.py train  circles runs       # the model, then its ControlNet
    python examples/control_circles.py check  circles runs       # IoU on the pictures held out

The data are those of Zhang 2023's tutorial (fill50k), small: a filled circle of one colour on a
background of another one, at a random place with a random radius. Its outline lies in `.outlines`,
hidden from the model's own training, and is named in the column `outline` of the metadata. The
caption names both colours; only the outline says where the circle is.

`check` draws each outline that was held out with its caption. The disc in a picture is where its
pixels are nearer to the circle's colour than to the background's; the score is its intersection
over union with the disc that the outline stands for. The same with another picture's outline says
what chance is.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SIDE, SMOOTH, OUTLINES = 32, 4, ".outlines"
COLOURS = {
    "black": (0, 0, 0),
    "white": (255, 255, 255),
    "red": (220, 30, 30),
    "green": (30, 160, 60),
    "blue": (40, 70, 210),
    "yellow": (240, 210, 40),
    "pink": (240, 130, 190),
    "gray": (128, 128, 128),
}
HELD_OUT = 100
MODEL = (
    *("--vae", "none", "--set", f"data.resolution={SIDE}", "--set", "unet.channels=32"),
    *("--set", "unet.channel_multipliers=[1,2,2]", "--set", "unet.attention_levels=[2]"),
    *("--set", "unet.num_res_blocks=1", "--set", "unet.num_heads=4"),
    *("--set", "unet.norm_groups=8", "--set", "text.hidden_dim=64", "--set", "text.num_layers=2"),
    *("--set", "schedule.prediction_type=v_prediction", "--set", "schedule.beta_schedule=cosine"),
)
TRAINING = (
    *("--set", "training.batch_size=32", "--set", "training.learning_rate=5e-4"),
    *("--set", "training.warmup_steps=100", "--set", "training.ema_momentum=0.99"),
)
CONTROL = (
    *("--set", "control.column=outline", "--set", "training.condition_dropout=0.3"),
    *("--set", "training.learning_rate=1e-3"),
)


def disc(x: float, y: float, radius: float, fill: str | None, outline: str | None) -> Image.Image:
    """Disc or outline of a circle, antialiased, as a mask."""
    large = Image.new("L", (SIDE * SMOOTH, SIDE * SMOOTH))
    box = [SMOOTH * one for one in (x - radius, y - radius, x + radius, y + radius)]
    ImageDraw.Draw(large).ellipse(box, fill, outline, SMOOTH if outline else 0)
    return large.resize((SIDE, SIDE), Image.Resampling.BOX)


def draw(folder: Path, count: int, seed: int) -> list[dict]:
    """Circles in a folder with their outlines and captions; the facts of each."""
    (folder / OUTLINES).mkdir(parents=True, exist_ok=True)
    numbers, rows = np.random.default_rng(seed), []
    for number in range(count):
        radius = numbers.uniform(4, 11)
        x, y = numbers.uniform(radius + 1, SIDE - radius - 1, 2)
        circle, ground = numbers.choice(list(COLOURS), 2, replace=False)
        mask = disc(x, y, radius, "white", None)
        picture = Image.composite(
            Image.new("RGB", mask.size, COLOURS[circle]),
            Image.new("RGB", mask.size, COLOURS[ground]),
            mask,
        )
        name = f"{number:05d}.png"
        picture.save(folder / name)
        disc(x, y, radius, None, "white").convert("RGB").save(folder / OUTLINES / name)
        text = f"{circle} circle on {ground} background"
        facts = {"x": x, "y": y, "radius": radius, "circle": str(circle), "ground": str(ground)}
        named = {"file_name": name, "text": text, "outline": f"{OUTLINES}/{name}"}
        rows.append({**named, **facts})
    lines = "\n".join(map(json.dumps, rows))
    (folder / "metadata.jsonl").write_text(lines + "\n", "utf-8")
    return rows


def train(data: Path, runs: Path, steps: int, control_steps: int) -> None:
    """The model of the pictures, then its ControlNet, by the commands that are printed."""
    command = [
        sys.executable,
        "-m",
        "latentddpm",
        "train-diffusion",
        "--data",
        str(data / "train"),
    ]
    model, control = runs / "model", runs / "control"
    for extra in (
        (*MODEL, *TRAINING, "--out", str(model), "--set", f"training.num_steps={steps}"),
        (
            *("--init", str(model), "--out", str(control), *TRAINING, *CONTROL),
            *("--set", f"training.num_steps={control_steps}"),
        ),
    ):
        print(" ".join(["latentddpm", *map(shlex.quote, [*command[3:], *extra])]), flush=True)
        subprocess.run([*command, *extra, "--resume"], check=True)


def found_disc(picture: np.ndarray, row: dict) -> np.ndarray:
    """Pixels of a picture, bool (H, W), that are nearer to the circle's colour."""
    circle, ground = (np.array(COLOURS[row[key]], float) for key in ("circle", "ground"))
    pixels = picture.astype(float)
    return ((pixels - circle) ** 2).sum(-1) < ((pixels - ground) ** 2).sum(-1)


def iou(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks, in [0, 1]."""
    return float((one & other).sum() / max((one | other).sum(), 1))


def check(data: Path, runs: Path, out: Path | None, seed: int) -> dict[str, float]:
    """IoU of the discs drawn with those asked for, and with those of other pictures."""
    from latentddpm import Control, LatentDiffusion
    from latentddpm.pipeline.control.folder import load_control

    folder = data / "held-out"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    outlines = [folder / row["outline"] for row in rows]
    model, network = LatentDiffusion.load(runs / "model"), load_control(runs / "control")
    pictures = model.generate(
        [row["text"] for row in rows],
        seed=seed,
        controls=[Control(network, outlines)],
        batch_size=50,
    )
    wanted = [
        np.asarray(disc(row["x"], row["y"], row["radius"], "white", None)) > 127 for row in rows
    ]
    drawn = [found_disc(picture, row) for picture, row in zip(pictures, rows, strict=True)]
    own = [iou(one, other) for one, other in zip(drawn, wanted, strict=True)]
    others = [iou(one, other) for one, other in zip(drawn, wanted[1:] + wanted[:1], strict=True)]
    if out is not None:
        lines = [np.asarray(Image.open(path).convert("RGB")) for path in outlines]
        strips = [np.concatenate(list(each[:12]), axis=1) for each in (lines, pictures)]
        Image.fromarray(np.concatenate(strips)).save(out)
    return {
        "pictures": len(rows),
        "iou": float(np.mean(own)),
        "share of at least 0.8": float(np.mean(np.array(own) >= 0.8)),
        "iou with another outline": float(np.mean(others)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["draw", "train", "check"])
    parser.add_argument("data", type=Path, help="folder of the pictures: train/, held-out/")
    parser.add_argument("runs", type=Path, nargs="?", help="folder of the runs: model/, control/")
    parser.add_argument("--count", type=int, default=3000, help="pictures to train on")
    parser.add_argument("--held-out", type=int, default=HELD_OUT, help="pictures to check with")
    parser.add_argument("--steps", type=int, default=4000, help="of the model")
    parser.add_argument("--control-steps", type=int, default=3000, help="of the ControlNet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="of outlines and what was drawn, a PNG")
    given = parser.parse_args()
    if given.what == "draw":
        draw(given.data / "train", given.count, given.seed)
        draw(given.data / "held-out", given.held_out, given.seed + 1)
        return
    if given.runs is None:
        parser.error("name the folder of the runs too")
    if given.what == "train":
        train(given.data, given.runs, given.steps, given.control_steps)
        return
    print(json.dumps(check(given.data, given.runs, given.picture, given.seed), indent=2))


if __name__ == "__main__":
    main()
