"""Digits as they are asked for: by label, by attributes never seen together, by a number, by tags.

    python examples/labelled_digits.py OUT                  data to train on
    python examples/labelled_digits.py OUT --judge MODEL    digits of a model, drawn and judged
    … --never 3                                             the digit that is never inverted
    … --guidance-scale 16 --inverted-scale 3                a scale for each condition

OUT/labels       the gray digits, in a folder for each label
OUT/attributes   each digit white on black and inverted, but one that is never inverted; its
                 metadata has the columns digit, inverted, and ink, the mean of the white pixels
OUT/tags         each digit four times, with any of the tags inverted, mirrored and framed

A judge knows real digits: a logistic regression reads the label, the colour of the ground says
whether a digit is inverted, and so on. What the model can be told decides what it is asked for.
OUT then holds the answers, `judged.json`, and pictures. `docs/guides/labelled-digits.md` goes
through them.
"""

import argparse
import functools
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import digits as course
import numpy as np
from digits import SAMPLES, SIDE
from PIL import Image
from sklearn.linear_model import LogisticRegression

import latentddpm

LABELS = range(10)
NEVER = 3  # the digit that no training picture shows inverted
TAGS = ("inverted", "mirrored", "framed")
COPIES = 4  # of a digit, each with tags of its own
INK = (0.24, 0.38)  # two standard deviations around the mean of the digits
WORDS = ("digit", "inverted")  # conditions of one word
RING = np.pad(np.zeros((SIDE - 2, SIDE - 2), bool), 1, constant_values=True)

Rows = list[dict[str, Any]]


def tagged(image: np.ndarray, tags: Sequence[str]) -> np.ndarray:
    """Digit (SIDE, SIDE, 1) in [0, 1] with some of `TAGS`."""
    image = image[:, ::-1] if "mirrored" in tags else image
    image = np.where(RING[..., None], 1.0, image) if "framed" in tags else image
    return 1 - image if "inverted" in tags else image


# --- Data ----------------------------------------------------------------------------------------


def write_data(out: Path, never: int = NEVER) -> None:
    """The three data sets, of the digits that are not held back; `never` is never inverted."""
    course.write_images(out / "labels", SIDE)
    images, labels, held_back = course.digits(SIDE)
    numbers, attributes, tags = np.random.default_rng(0), [], []
    for image, label in zip(images[~held_back], labels[~held_back], strict=True):
        for inverted in (False, True):
            if not (inverted and label == never):
                columns = {
                    "digit": int(label),
                    "inverted": inverted,
                    "ink": round(image.mean(), 4),
                }
                attributes.append((tagged(image, TAGS[:inverted]), columns))
        for drawn in numbers.random((COPIES, len(TAGS))) < 0.5:
            own = list(itertools.compress(TAGS, drawn))
            tags.append((tagged(image, own), {"digit": int(label), "tags": own}))
    write_table(out / "attributes", attributes)
    write_table(out / "tags", tags)


def write_table(folder: Path, pictures: Sequence[tuple[np.ndarray, Mapping[str, Any]]]) -> None:
    """PNG files, and a table of their columns, `metadata.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (image, columns) in enumerate(pictures):
        name = f"{number:05}.png"
        Image.fromarray(np.uint8(np.rint(255 * image[..., 0]))).save(folder / name)
        lines.append(json.dumps({"file_name": name, **columns}))
    (folder / "metadata.jsonl").write_text("\n".join([*lines, ""]), "utf-8")


# --- Questions, and answers drawn ----------------------------------------------------------------


def questions(names: Sequence[str], never: int = NEVER) -> dict[str, Rows]:
    """Conditions of the digits that a model is asked for, by the names of those that it has."""
    new = {"digit": never, "inverted": True}
    found: dict[str, Rows] = {"nothing told": [{}] * SAMPLES}
    found["labels"] = [{"digit": k * 10 // SAMPLES} for k in range(SAMPLES)]
    if "inverted" in names:
        pairs = [{"digit": d, "inverted": i} for d in LABELS for i in (False, True)]
        seen = [one for one in pairs if one != new]
        found["seen together"] = [seen[k * len(seen) // SAMPLES] for k in range(SAMPLES)]
        found["never seen together"] = [new] * (SAMPLES // 2)
    if "ink" in names:
        row = {"inverted": False} if "inverted" in names else {}
        amounts = np.linspace(*INK, SAMPLES // 10).tolist()
        found["ink"] = [{"digit": d, **row, "ink": ink} for d in LABELS for ink in amounts]
    if "tags" in names:
        subsets = [s for n in range(len(TAGS) + 1) for s in itertools.combinations(TAGS, n)]
        pairs = [{"digit": d, "tags": tags} for tags in subsets for d in LABELS]
        found["tags"] = [pairs[k * len(pairs) // SAMPLES] for k in range(SAMPLES)]
    return found


def real(rows: Rows) -> np.ndarray:
    """Digits that were held back, (N, SIDE, SIDE), with the label, colour and tags of each row."""
    images, labels, held_back = course.digits(SIDE)
    numbers, found = np.random.default_rng(0), []
    for row in rows:
        known = held_back & (labels == row["digit"])
        tags = row.get("tags", TAGS[: row.get("inverted", False)])
        found.append(tagged(images[numbers.choice(np.flatnonzero(known))], tags))
    return np.stack(found)[..., 0]


# --- Judge ---------------------------------------------------------------------------------------


class Judge:
    """Judge: what pictures of digits show, by what it has learned of real ones."""

    @functools.cached_property
    def label(self) -> LogisticRegression:
        """Regression that reads the label of a digit, white on black."""
        return course.regression()

    @functools.cached_property
    def mirrored_label(self) -> LogisticRegression:
        """Regression that reads the label, and 10 more of a mirrored digit, inside of a frame."""
        images, labels, held_back = course.digits(SIDE)
        images, labels = images[~held_back, 1:-1, 1:-1], labels[~held_back]
        both = np.concatenate([images, images[:, :, ::-1]])
        return LogisticRegression(C=10, max_iter=5000).fit(
            both.reshape(len(both), -1), np.concatenate([labels, labels + len(LABELS)])
        )

    def __call__(self, pictures: np.ndarray, has_tags: bool = False) -> dict[str, np.ndarray]:
        """What pictures (N, SIDE, SIDE) in [0, 1] show, (N,) each: of tags those of `TAGS`."""
        inverted = pictures[:, 1:-1, [1, -2]].mean(axis=(1, 2)) > 0.5
        plain = np.where(inverted[:, None, None], 1 - pictures, pictures)
        found = {"inverted": inverted, "ink": plain.mean(axis=(1, 2))}
        if not has_tags:
            return found | {"digit": self.label.predict(plain.reshape(len(plain), -1))}
        label = self.mirrored_label.predict(plain[:, 1:-1, 1:-1].reshape(len(plain), -1))
        digit, mirrored = label % len(LABELS), label >= len(LABELS)
        return found | {
            "digit": digit,
            "mirrored": mirrored,
            "framed": plain[:, RING].mean(axis=1) > 0.5,
        }


def answered(rows: Rows, shown: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Shares of pictures that show what their rows ask for, of each thing and of all things.

    Of ink it is the correlation of what is asked and shown. Where nothing is asked, how often each
    label occurs.
    """
    if not rows[0]:
        return {"labels": np.bincount(shown["digit"], minlength=len(LABELS)).tolist()}
    right = {name: shown[name] == [row[name] for row in rows] for name in rows[0] if name in WORDS}
    for tag in TAGS if "tags" in rows[0] else ():
        right[tag] = shown[tag] == [tag in row["tags"] for row in rows]
    found = {name: float(one.mean()) for name, one in right.items()}
    found["all"] = float(np.all(list(right.values()), axis=0).mean())
    if "ink" in rows[0]:
        asked = [row["ink"] for row in rows]
        found["correlation"] = float(np.corrcoef(asked, shown["ink"])[0, 1])
    return found


def drawn(model: latentddpm.LatentDiffusion, rows: Rows, **settings: Any) -> np.ndarray:
    """Digits (N, SIDE, SIDE) in [0, 1] that a model draws for rows of conditions."""
    pixels = model.generate(conditions=rows, seed=0, batch_size=100, **settings)
    return pixels.reshape(-1, SIDE, SIDE) / 255


def judged(
    out: Path, place: str, judge: Judge, never: int = NEVER, **settings: Any
) -> dict[str, Any]:
    """Answers of a model to all questions, and of real digits to those of words and tags."""
    model = latentddpm.LatentDiffusion.load(place)
    names, numbers = model.conditions.names, {}
    for name, rows in questions(names, never).items():
        pictures = drawn(model, rows, **settings)
        shown = judge(pictures, "tags" in names)
        numbers[name] = answered(rows, shown)
        print(f"{name:20} {short(numbers[name])}")
        if rows[0] and name != "ink":
            numbers[f"{name}, real"] = answered(rows, judge(real(rows), "tags" in names))
            print(f"{'    real digits':20} {short(numbers[f'{name}, real'])}")
        place = out / name.replace(" ", "-")
        show_rows(place.with_suffix(".png"), rows, pictures)
        if name == "ink":
            plot(out / "ink-plot.png", [row["ink"] for row in rows], shown["ink"])
    (out / "judged.json").write_text(json.dumps(numbers, indent=1), "utf-8")
    return numbers


def short(numbers: Mapping[str, Any]) -> str:
    """Numbers in one line."""
    return ", ".join(
        f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in numbers.items()
    )


def show_rows(file: Path, rows: Rows, pictures: np.ndarray) -> None:
    """Picture with a row for each thing asked; ink, and the digits with tags, go along a row."""
    along = ("ink", "digit") if "tags" in rows[0] else ("ink",)
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows):
        words = [f"{key} {value}" for key, value in row.items() if key not in along]
        groups.setdefault(", ".join(words), []).append(number)
    spread = {
        name: np.take(numbers, np.linspace(0, len(numbers) - 1, 10).astype(int))
        for name, numbers in groups.items()
    }
    course.show(file, {name: pictures[some, ..., None] for name, some in spread.items()})


def plot(file: Path, asked: Sequence[float], shown: np.ndarray) -> None:
    """Picture of the ink asked for and drawn."""
    from matplotlib.figure import Figure

    figure = Figure((4, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(INK, INK, color="gray", linewidth=1)
    axes.scatter(asked, shown, s=9)
    axes.set(xlabel="ink asked for", ylabel="ink drawn", aspect="equal")
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--judge", metavar="MODEL", help="model folder, whose digits are judged")
    parser.add_argument(
        "--never", type=int, choices=LABELS, default=NEVER, help="digit that is never inverted"
    )
    parser.add_argument("--guidance-scale", type=float, help="default: the model's")
    parser.add_argument(
        "--inverted-scale", type=float, help="of that condition alone [default: the same]"
    )
    parser.add_argument("--steps", type=int, help="default: the model's")
    given = parser.parse_args()
    if given.judge:
        given.out.mkdir(parents=True, exist_ok=True)
        settings = {"guidance_scale": given.guidance_scale, "num_steps": given.steps}
        if given.inverted_scale is not None:
            settings["condition_scales"] = {"inverted": given.inverted_scale}
        judged(given.out, given.judge, Judge(), given.never, **settings)
    else:
        write_data(given.out, given.never)
