"""Labels: text above images, and grids of images with a caption above each row.

The letters are those of Pillow's built-in font, which knows ASCII alone: accents are left out, and
another character shows as "?". The metadata of the PNG holds every caption as it is.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from latentddpm.utils.pixels import grid

FONT_SIZE = 11
NARROWEST = 160
"""Width of a grid in pixels, at least: room for some words above small images."""
LINES = 2
"""Lines of a caption, at most."""
MARGIN = 2


def labelled_grid(rows: Sequence[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """Grid of images with a line of text above each row, uint8 (H', W', 3), black on white.

    Args:
        rows: images of each row, uint8 (N, H, W, 3), with the same H and W.
        labels: text of each row; none is written where it is "".
    """
    parts = []
    width = max(grid(rows).shape[1], NARROWEST)
    for row, label in zip(rows, labels, strict=True):
        if parts:
            parts.append(np.full((MARGIN, width, 3), 255, np.uint8))
        if label:
            parts.append(written(label, width))
        picture = grid([row])
        right = np.full((picture.shape[0], width - picture.shape[1], 3), 255, np.uint8)
        parts.append(np.concatenate([picture, right], axis=1))
    return np.concatenate(parts)


def written(text: str, width: int) -> np.ndarray:
    """Text on white, uint8 (H, width, 3), in as many lines as it needs, at most `LINES`.

    Args:
        text: "" for an empty line.
        width: in pixels.
    """
    font = _font()
    parts = unicodedata.normalize("NFKD", text.replace("ß", "ss"))
    plain = "".join(one for one in parts if not unicodedata.combining(one))
    lines = _wrapped(plain.encode("ascii", "replace").decode(), width - 2 * MARGIN, font)
    top, bottom = font.getbbox("Apy|")[1::2]
    height = int(bottom - top) + 2
    canvas = Image.new("RGB", (width, height * len(lines) + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for number, line in enumerate(lines):
        draw.text((MARGIN, number * height - top + 1), line, fill="black", font=font)
    return np.asarray(canvas)


def _wrapped(text: str, width: int, font: ImageFont.ImageFont) -> list[str]:
    """Lines of a text that are no wider than `width` pixels; "..." ends one that is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif len(lines) < LINES and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = f"{longer} ..."
            break
    while font.getlength(lines[-1]) > width:
        lines[-1] = lines[-1].removesuffix("...").rstrip()[:-1].rstrip() + "..."
    return lines


def _font() -> ImageFont.ImageFont:
    if features.check("freetype2"):
        return ImageFont.load_default(FONT_SIZE)
    return ImageFont.load_default()
