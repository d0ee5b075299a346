"""Sample grid of a run: always of the same prompts, conditions and seeds.

samples.prompts, else captions of the data   one row each
conditions                                   what images of the data tell, one for each row
control                                      what a ControlNet sees of them, the first column
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import latentddpm
from latentddpm.conditions.base import VectorCondition
from latentddpm.config import DiffusionRun
from latentddpm.data.captions import CaptionTokens
from latentddpm.data.catalog.split import Selection
from latentddpm.data.conditions.control import ControlPictures
from latentddpm.data.conditions.source import ConditionSource
from latentddpm.data.dataset import Dataset
from latentddpm.pipeline.control.control import Control
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.plan.words import check_captions
from latentddpm.utils.console import say
from latentddpm.utils.images.labels import labelled_grid
from latentddpm.utils.images.pictures import to_uint8

GRID_ROWS = 8
MOST_VALUES = 16
"""Values of a single condition that get a row each."""


class GridRow(NamedTuple):
    """Row of a sample grid.

    Attributes:
        prompt: "" for none.
        values: by the names of the model's conditions.
        picture: that a ControlNet sees, float32 (H, W, 3) in [0, 1]; None without one.
    """

    prompt: str
    values: Mapping[str, Any]
    picture: np.ndarray | None = None


def grid_rows(
    config: DiffusionRun,
    dataset: Dataset,
    tokens: CaptionTokens | None,
    conditions: Sequence[ConditionSource] = (),
    control: ControlPictures | None = None,
) -> list[GridRow]:
    """Rows of the sample grids of a run.

    Args:
        config: of the run.
        dataset: with the captions.
        tokens: of the captions; None for a model without text, whose only prompt is "".
        conditions: that the images tell.
        control: pictures that a ControlNet sees; None without one.

    Raises:
        UserError: none of the images has a caption.
    """
    count, known = len(dataset), Selection(len(dataset))
    if tokens is not None:
        known = _captioned(config, dataset, tokens)
    if conditions:
        numbers = _spread(conditions, known)
    else:
        numbers = np.linspace(0, len(known) - 1, min(GRID_ROWS, len(known))).astype(int)
        numbers = known.rows(numbers)
    if tokens is None:
        prompts = [""]
    else:
        prompts = config.samples.prompts or [dataset.captions[int(row)][0] for row in numbers]
    if not conditions and control is None:
        return [GridRow(prompt, {}) for prompt in prompts]
    rows = range(max(len(numbers), len(prompts))) if count else ()
    found = []
    for k in rows:
        image = int(numbers[k % len(numbers)])
        values = {one.condition.name: one.value(image) for one in conditions}
        picture = None if control is None else control.of_image(image)
        found.append(GridRow(prompts[k % len(prompts)], values, picture))
    return found


def draw_samples(
    model: LatentDiffusion, rows: Sequence[GridRow], config: DiffusionRun
) -> np.ndarray:
    """Samples of the rows one after the other, uint8 (N, H, W, 3), the same seeds in all rows.

    Args:
        model: to draw with.
        rows: of the grid.
        config: of the run; its section `samples:` has the seed and the number of columns.
    """
    settings = config.samples
    count = settings.images_per_prompt
    each = [row for row in rows for _ in range(count)]
    controls = []
    if each[0].picture is not None:
        (network,) = model.unet.controls
        controls = [Control(network, [row.picture for row in each])]
    pixels = model.generate(
        [row.prompt for row in each],
        conditions=[row.values for row in each],
        seed=[settings.seed + k for _ in rows for k in range(count)],
        controls=controls,
    )
    return model.pixels.to_rgb(pixels)


def sample_grid(
    model: LatentDiffusion, rows: Sequence[GridRow], samples: np.ndarray
) -> np.ndarray:
    """Grid of samples, uint8 (H', W', 3): the rows with their texts below.

    Args:
        model: that drew them.
        rows: of the grid.
        samples: returned by `draw_samples`.
    """
    pictures = list(samples.reshape(len(rows), -1, *samples.shape[1:]))
    if rows[0].picture is not None:
        seen = [to_uint8("picture", row.picture)[None] for row in rows]
        pictures = [np.concatenate(pair) for pair in zip(seen, pictures, strict=True)]
    return labelled_grid(pictures, [_title(model, row) for row in rows])


def grid_metadata(
    model: LatentDiffusion, rows: Sequence[GridRow], config: DiffusionRun, step: int
) -> dict[str, Any]:
    """Metadata of a sample grid: how it was made.

    Args:
        model: that drew it.
        rows: of the grid.
        config: of the run.
        step: optimizer steps so far.
    """
    labels = [model.conditions.texts(model.conditions.check(row.values)) for row in rows]
    return {
        "latentddpm": latentddpm.__version__,
        "training_step": step,
        **model.settings().to_json(),
        "num_images": config.samples.images_per_prompt,
        "prompts": [row.prompt for row in rows],
        **({"labels": labels} if any(labels) else {}),
        "seed": config.samples.seed,
        "grid": True,
    }


def _captioned(config: DiffusionRun, dataset: Dataset, tokens: CaptionTokens) -> Selection:
    """Images with a caption; how many have none is said."""
    count, captions = len(dataset), dataset.captions
    known = Selection(count, tokens.captioned)
    bare = count - len(known)
    check_captions(config, dataset, bool(len(known)))
    if bare:
        first = Selection(count, lambda *block: ~tokens.captioned(*block)).row(0)
        reason = captions.reason(first)
        say(
            f"{bare} of {count} images have no caption and train on the empty prompt, "
            f"such as {dataset.catalog.name(first)}" + f" ({reason})" * bool(reason)
        )
    return known


def _spread(conditions: Sequence[ConditionSource], known: Selection) -> np.ndarray:
    """Images for the rows: one of each value of the only condition of words, else a few."""
    images = known.rows(np.arange(len(known)))
    vectors = [one for one in conditions if isinstance(one.condition, VectorCondition)]
    if len(vectors) == len(conditions) == 1:
        (source,) = vectors
        texts = {}
        for image in images:
            value = source.value(int(image))
            if value is not None:
                texts.setdefault(source.condition.to_text(value), int(image))
        if len(texts) <= MOST_VALUES:
            return np.array([texts[text] for text in sorted(texts)])
    spread = np.linspace(0, len(images) - 1, min(GRID_ROWS, len(images))).astype(int)
    return images[spread]


def _title(model: LatentDiffusion, row: GridRow) -> str:
    told = model.conditions.to_text(model.conditions.check(row.values))
    return ", ".join(filter(None, (row.prompt, told)))
