"""CLIP score of images with their captions (Hessel et al. 2021, with weight 100).

    score = 100 · max(cos(image, caption), 0)

of CLIP's embeddings of both, without a prefix to the caption. The score depends on the CLIP
model as much as on the images, so report it with the model's name and digest. Real images with
their own captions show which score is high.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from tqdm import tqdm

from latentddpm.evaluation.clip_towers import BATCH, ClipTowers
from latentddpm.evaluation.features import Images


def clip_score(towers: ClipTowers, images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """CLIP score of each image with the caption of the same number.

    Args:
        towers: of CLIP.
        images: uint8 (N, H, W, 3).
        captions: N texts; those too long for CLIP are cut with a warning.

    Returns:
        float64 (N,), from 0 to 100.

    Raises:
        ValueError: not as many captions as images.
    """
    if len(images) != len(captions):
        raise ValueError(f"clip_score: {len(images)} images and {len(captions)} captions")
    rows = {text: row for row, text in enumerate(dict.fromkeys(captions))}
    texts = towers.embed_texts(list(rows))
    seen, said = towers.embed_images(images), texts[[rows[caption] for caption in captions]]
    return 100 * np.maximum(np.sum(seen * said, axis=1, dtype="float64"), 0)


def clip_scores(
    towers: ClipTowers, images: Images, captions: Sequence[str], label: str, quiet: bool = False
) -> np.ndarray:
    """CLIP scores of a set of images, which are read in batches.

    Args:
        towers: of CLIP.
        images: the set, of N images.
        captions: N texts; an image with the empty text gets no score.
        label: of the progress bar, which is shown after two seconds.
        quiet: show no progress.

    Returns:
        float64 (N,), from 0 to 100; NaN where the caption is empty.
    """
    scores = np.full(len(captions), np.nan)
    captioned = np.flatnonzero([bool(caption) for caption in captions])
    options = {"unit": "image", "delay": 2, "leave": False, "disable": quiet}
    with tqdm(desc=label, total=len(captioned), **options) as bar:
        for start in range(0, len(captioned), BATCH):
            batch = captioned[start : start + BATCH]
            said = [captions[k] for k in batch]
            scores[batch] = clip_score(towers, images.read(batch), said)
            bar.update(len(batch))
    return scores
