"""Animation: GIF and WebP files of one length, whatever the number of pictures, with metadata.

GIF counts in hundredths of a second, so the pictures change at whole ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from latentddpm.utils.files import atomic_path

SUFFIXES = (".gif", ".webp")
SECONDS, HOLD = 4.0, 1.5
"""Length of an animation without its last picture, and how long that one is shown."""
MOST = 80
"""Pictures of an animation at most: 20 a second."""


def save_animation(
    path: str | Path,
    pixels: np.ndarray,
    metadata: dict[str, Any],
    replace: bool = True,
) -> None:
    """Write an animation that repeats for ever, atomically.

    Args:
        path: of the file, `.gif` or `.webp`.
        pixels: of the pictures in order, 2 to `MOST`, uint8 (F, H, W, 3).
        metadata: is written as JSON: into the comment of a GIF, or into the Exif description of a
            WebP.
        replace: replace a file that is there.

    Raises:
        FileExistsError: see `utils.files.atomic_path`.
    """
    first, *others = (Image.fromarray(picture) for picture in pixels)
    changes = np.linspace(0, SECONDS * 100, len(pixels)).round()
    durations = [*np.diff(changes) * 10, HOLD * 1000]
    text = json.dumps(metadata)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = text
    of_gif = {"format": "GIF", "comment": text.encode()}
    of_webp = {"format": "WEBP", "exif": exif, "quality": 80}
    with atomic_path(path, replace) as temporary:
        first.save(
            temporary,
            save_all=True,
            append_images=others,
            duration=[int(duration) for duration in durations],
            loop=0,
            **(of_gif if Path(path).suffix.lower() == ".gif" else of_webp),
        )
