"""Dataset: the images of a place, their split into training and validation, and their captions.

    place ──scan──► catalog ──► training images, validation images
                       └──────► captions ──► token ids

Training, `encode` and `evaluate` all open their data with this module. The split depends only on
the names of the images, or only on their captions (`data.validation_by`). So it is the same in
all of them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.config import DataConfig
from latentddpm.config_file import as_config
from latentddpm.data.captioning.rules import AUTO, settled
from latentddpm.data.captions import Captions, CaptionTokens, prepare_tokens
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection, split_catalog
from latentddpm.data.places.places import Data
from latentddpm.data.places.weighted import weighted
from latentddpm.data.sources.walk import NO_SECOND, Second
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.images.pixel_format import PixelFormat

if TYPE_CHECKING:
    import numpy as np
    import tensorflow as tf

    from latentddpm.clip.tokenizer import CLIPTokenizer

SPLITS = ("all", "training", "validation")


class Dataset:
    """Dataset: the images of a place, their split and their captions; made by `open_dataset`.

    Args:
        catalog: of all readable images.
        config: of the split and the captions.
        processes: that share the preparation.
        quiet: show no progress of it.

    Attributes:
        pixels: format that its images are read in; that of `config`, where null is 8-bit RGB.
    """

    def __init__(
        self,
        catalog: Catalog,
        config: DataConfig,
        processes: ProcessGroup = ONE_PROCESS,
        quiet: bool = False,
    ) -> None:
        self.catalog, self.config = catalog, config
        self.processes, self.quiet = processes, quiet
        self.pixels = PixelFormat.of(config)

    def __len__(self) -> int:
        return len(self.catalog)

    @cached_property
    def _split(self) -> tuple[Selection, Selection]:
        training, validation = split_catalog(self.catalog, self.config)
        return weighted(training, self.catalog, self.config.repeats), validation

    @property
    def training(self) -> Selection:
        """Images to train on, by the weights of their places and folders.

        Raises:
            UserError: no image is left to train on, or the split is by caption and no image has
                one.
        """
        return self._split[0]

    @property
    def validation(self) -> Selection:
        """Images to validate on, about `config.validation_fraction` of all.

        Raises:
            UserError: see `training`.
        """
        return self._split[1]

    @cached_property
    def captions(self) -> Captions:
        """Alternative captions of each image, by `config.captions` and `caption_templates`.

        Raises:
            UserError: a template is malformed or names an unknown column; the table of captions
                is damaged.
        """
        rule = self.config.captions
        return Captions(self.catalog, self.config.caption_templates, self.quiet, rule)

    def tokens(self, tokenizer: CLIPTokenizer) -> CaptionTokens:
        """Token ids of all captions: opened if they exist, otherwise made by the chief process.

        Args:
            tokenizer: turns captions into ids.

        Raises:
            UserError: see `captions`; or a caption cannot be used.
        """
        return prepare_tokens(self.captions, tokenizer, self.quiet, self.processes)

    def image(self, index: int, size: int | tuple[int, int]) -> np.ndarray:
        """Image of the catalog, as networks take it.

        Args:
            index: row of the catalog.
            size: the side of a square, or (height, width), in pixels, that it is cropped to.

        Returns:
            float32 (H, W, C) in [-1, 1].

        Raises:
            UnreadableImage: it cannot be read in the format `pixels`.
            OSError: its file cannot be read any more.
        """
        return self.pixels.to_images(self.catalog.image(index, size, self.pixels))

    def image_batches(
        self,
        split: str,
        resolution: int,
        batch_size: int,
        *,
        seed: int | None = None,
        steps: int | None = None,
        flip: bool = False,
    ) -> tf.data.Dataset:
        """Batches of images, for a network that takes pixels.

        Args:
            split: "all", "training" or "validation".
            resolution: side of the square that images are scaled and cropped to, in pixels.
            batch_size: images of a batch.
            seed: of a new random order in every epoch, and of the flips. None gives every image
                once, in order and without flips.
            steps: number of batches; with a seed, None means without end.
            flip: with a seed, mirror each image with probability ½ per use.

        Returns:
            Batches `{"images": (B, resolution, resolution, C)}`, float32 in [-1, 1].

        Raises:
            UserError: an unknown split, or one without an image.
        """
        import tensorflow as tf

        from latentddpm.data.examples import image_examples
        from latentddpm.data.random import RandomStream

        selection = self.split(split)
        count = len(selection) if seed is None else 2**63 - 1
        if steps is not None:
            count = min(count, steps * batch_size)
        batches = image_examples(
            self.catalog,
            selection,
            resolution=resolution,
            latent_shape=(0,),
            batch_size=batch_size,
            stream=None if seed is None else RandomStream(seed, "images"),
            positions=tf.data.Dataset.range(count),
            flip=flip,
            pixels=self.pixels,
        )
        return batches.map(lambda batch: {"images": batch["images"]})

    def split(self, name: str) -> Selection:
        """Images of a split.

        Args:
            name: "all", "training" or "validation".

        Raises:
            UserError: an unknown split, or one without an image.
        """
        check_choice("split", name, SPLITS)
        if name == "all":
            return Selection(len(self))
        selection = self._split[SPLITS.index(name) - 1]
        if not len(selection):
            raise UserError(
                f"split {name}: validation_fraction {self.config.validation_fraction:g} by "
                f"{self.config.validation_by} leaves it none of {len(self)} images; change it, "
                "or take the split all"
            )
        return selection


def open_dataset(
    place: Data,
    folder: str | Path,
    config: DataConfig | dict[str, Any] | None = None,
    processes: ProcessGroup = ONE_PROCESS,
    *,
    strict: bool = False,
    quiet: bool = False,
    second: Second = NO_SECOND,
) -> Dataset:
    """Open the images of a place: scan those that are new, and read the catalog of the others.

    Files that cannot be read are named on stderr and left out. Nothing at the place is changed.

    Args:
        place: folder of images or of shards, one shard, or a pattern of shards; see
            `data.sources.open.open_source`. Several, with weights or without, in a list:
            `["photos:3", "drawings"]`, `[("photos", 3), "drawings"]`.
        folder: of the catalog, made when missing. A process waits while another one writes it.
        config: of the split and the captions: a `DataConfig`, or a dictionary of the settings
            that differ from its defaults, such as `{"validation_by": "caption"}`.
        processes: of one job, which all call this and scan a part each.
        strict: refuse data with unreadable files.
        quiet: show no progress.
        second: see `data.sources.open.open_source`.

    Returns:
        A `Dataset`.

    Raises:
        UserError: nothing at the place, or nothing readable; with `strict`, not all of it.
        OSError: the catalog cannot be written.

    Example:
        ```python
        dataset = open_dataset("photos", "runs/catalog")
        print(len(dataset.training), len(dataset.validation), dataset.captions[0])
        ```
    """
    config = as_config(DataConfig, config or {})
    mask = config.mask
    if mask.given:
        suffixes, columns = filter(None, [mask.suffix]), filter(None, [mask.column])
        second = Second((*second.suffixes, *suffixes), (*second.columns, *columns))
    catalog = open_catalog(
        place, Path(folder), strict=strict, quiet=quiet, processes=processes, second=second
    )
    if config.captions == AUTO:
        config = config.model_copy(update={"captions": settled(AUTO, catalog)})
    return Dataset(catalog, config, processes, quiet)
