"""Masks of the loss: where in an image a network learns, and how much.

    mask (H, W), 0 black … 1 white ─► mean of each f × f block ─► m (h, w) ─► w = u + (1 − u) m

w is the weight of the squared error at a position of the latents, and u that of black
(`data.mask.unmasked_weight`). A mask is the second picture of its image (see `pairs`): it is
scaled and cropped with it, at any size of the same shape, and mirrored with it. An image without a
mask counts everywhere.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from latentddpm.config import ConditionConfig, DataConfig
from latentddpm.config.data import MaskConfig
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.conditions.pairs import Place, examine_pairs, is_absent
from latentddpm.data.images import WHITE, UnreadableImage, read_image
from latentddpm.data.pictures.masks import gray_of
from latentddpm.data.sources.metadata import FOLDER
from latentddpm.errors import UserError

KEPT_BYTES = 1 << 30
"""Memory of the masks that are kept, as they are at the size of the latents."""


@dataclass(frozen=True, eq=False)
class LossMasks:
    """Masks of the images of a catalog, made by `plan_masks`.

    Attributes:
        places: of the mask of each image.
        given: bool (N,), True for images that have one.
        factor: pixels of an image for each position of the latents, along a side.
        unmasked_weight: u, 0 to 1.
        digest: of all masks.
    """

    places: Sequence[Place]
    given: np.ndarray
    factor: int
    unmasked_weight: float
    digest: str
    _kept: dict[tuple[int, tuple[int, ...]], np.ndarray] = field(default_factory=dict, repr=False)

    def batch(self, images: np.ndarray, mirrored: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Weights of the loss of a batch, float32 (B, h, w).

        Args:
            images: rows of the catalog, int64 (B,).
            mirrored: True for those that are mirrored, bool (B,).
            size: (h, w) of the latents.

        Raises:
            UserError: a mask cannot be read any more.
        """
        found = np.ones((len(images), *size), np.float32)
        for place, (image, turned) in enumerate(zip(images, mirrored, strict=True)):
            if self.given[image]:
                white = self._white(int(image), tuple(size)).astype(np.float32) / 255.0
                own = self.unmasked_weight + (1.0 - self.unmasked_weight) * white
                found[place] = own[:, ::-1] if turned else own
        return found

    def _white(self, image: int, size: tuple[int, int]) -> np.ndarray:
        """Mean of the mask over each position, float16 (h, w), 0 to 255."""
        key = image, size
        if key in self._kept:
            return self._kept[key]
        height, width = (side * self.factor for side in size)
        place = self.places[image]
        try:
            picture = read_image(place.read(), (height, width), WHITE, place.name)
        except UnreadableImage as error:
            raise UserError(f"{error}; mend or remove it") from error
        except OSError as error:
            raise UserError(f"{place.name}: {error}; mend or remove it") from error
        gray = gray_of(place.name, picture).astype(np.float32)
        blocks = gray.reshape(size[0], self.factor, size[1], self.factor)
        white = blocks.mean(axis=(1, 3)).astype(np.float16)
        if (len(self._kept) + 1) * white.nbytes <= KEPT_BYTES:
            self._kept[key] = white
        return white

    def lines(self) -> Iterator[str]:
        """Lines for people: how many images have a mask, and what black counts."""
        rest = "" if self.given.all() else "; the others count everywhere"
        yield (
            f"masks      of {int(self.given.sum()):,} of {len(self.given):,} images{rest}; the "
            f"loss counts {self.unmasked_weight:g} where they are black"
        )


def plan_masks(
    data: DataConfig, catalog: Catalog, factor: int, folder: Path | None
) -> LossMasks | None:
    """Masks of a run; None where its settings name none.

    Args:
        data: section of its configuration.
        catalog: of the images.
        factor: see `LossMasks`.
        folder: to keep what was found about masks in, made when missing; None for nowhere.

    Raises:
        UserError: no image has a mask, one cannot be read, or has another shape than its image.
        OSError: the folder cannot be written.
    """
    if not data.mask.given:
        return None
    pairs = examine_pairs(catalog, as_pair(data.mask), folder, optional=True)
    absent = {row for row, problem in pairs.missing if is_absent(problem)}
    broken = [problem for row, problem in pairs.missing if row not in absent]
    how = f"{'column' if data.mask.column else 'suffix'}={data.mask.column or data.mask.suffix}"
    if broken:
        raise UserError(f"data.mask: {len(broken)} masks cannot be read, such as {broken[0]}")
    if len(absent) == len(catalog):
        raise UserError(
            f"data.mask.{how}: none of {len(catalog)} images has a mask, such as "
            f"{pairs.missing[0][1]}; leave data.mask out, or name where they are"
        )
    if pairs.misfits:
        raise UserError(
            f"data.mask: {len(pairs.misfits)} of {len(catalog)} masks have another shape than "
            f"their image, such as {pairs.misfits[0][1]}"
        )
    given = np.ones(len(catalog), bool)
    given[list(absent)] = False
    digest = hashlib.sha256(np.ascontiguousarray(pairs.found["sha256"])).hexdigest()
    return LossMasks(pairs.places, given, factor, data.mask.unmasked_weight, digest)


def as_pair(mask: MaskConfig) -> ConditionConfig:
    """Settings of the second pictures that masks are.

    Args:
        mask: their settings.
    """
    where = {"column": mask.column} if mask.column else {"column": FOLDER, "suffix": mask.suffix}
    return ConditionConfig(kind="picture", **where)
