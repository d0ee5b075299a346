"""First stage of a `train-diffusion` run: what turns its images into what the UNet is trained on.

    AutoencoderStage   images ─► encoder, once ─► latents cache          (--vae FOLDER)
    PixelStage         images are their own latents (Ho et al. 2020)     (--vae none)

Both have the same attributes and functions, so that a run of pixels takes the way of all runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentddpm.choices import FIRST_STAGES
from latentddpm.config import DataConfig
from latentddpm.data.buckets import buckets_of
from latentddpm.data.conditions.augmented import augmented_images
from latentddpm.data.dataset import Dataset
from latentddpm.data.latents.cache import LatentsCache, prepare_latents
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.errors import UserError
from latentddpm.models.precision import settle_precision
from latentddpm.pipeline.model_folder import ModelFolder, read_model_folder
from latentddpm.training.plan.inherit import check_autoencoder
from latentddpm.training.plan.sizes import factor_of
from latentddpm.utils.files import AUTOENCODER, read_arguments
from latentddpm.utils.images.pixel_format import PixelFormat

if TYPE_CHECKING:
    from latentddpm.data.catalog.catalog import Catalog
    from latentddpm.data.conditions.catalogs import PictureCatalog
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.autoencoder.latent_space import LatentSpace
    from latentddpm.models.autoencoder.pixel_space import PixelSpace
    from latentddpm.training.run.run import Run

NONE = FIRST_STAGES[1]
"""Word for no first stage, of `--vae` and in the contract of a run."""


@dataclass(frozen=True)
class AutoencoderStage:
    """First stage of a run on latents: a finished autoencoder.

    Attributes:
        folder: that holds the autoencoder.
        arguments: of the `Autoencoder` in it.
    """

    folder: ModelFolder
    arguments: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Digest of the autoencoder's weights, which identifies its latents."""
        return self.folder.parts["vae"]["digest"]

    def latent_channels(self, data: DataConfig) -> int:
        """Channels of the latents.

        Args:
            data: of the run, complete.
        """
        return self.arguments["latent_channels"]

    @property
    def downsample_factor(self) -> int:
        """Pixels per position of the latents, along a side."""
        return factor_of(self.arguments["channel_multipliers"])

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Size (height, width), in pixels, that the autoencoder was trained at, if it is known."""
        return self.folder.image_size

    def latents_folder(self, out: Path, latents: Path | None) -> Path:
        """Folder of the latents cache.

        Args:
            out: run folder.
            latents: that was asked for; None for one in the run folder.
        """
        return latents or out / "latents"

    def load(self, data: DataConfig, precision: str = "float32") -> Autoencoder:
        """Autoencoder.

        Args:
            data: of the run, complete.
            precision: see `models.archive.load_archive`.
        """
        from latentddpm.models.archive import load_archive
        from latentddpm.models.autoencoder.autoencoder import Autoencoder

        return load_archive(self.folder.file("vae"), Autoencoder, precision=precision)

    def latent_space(self) -> LatentSpace:
        """Scaling of the latents."""
        from latentddpm.models.autoencoder.latent_space import LatentSpace

        return LatentSpace.of(self.arguments)

    def latents(self, dataset: Dataset, run: Run, folder: Path | None) -> LatentsCache:
        """Latents cache of a run's images, made where it is missing.

        Args:
            dataset: of the run.
            run: with its settings and processes.
            folder: returned by `latents_folder`.

        Raises:
            UserError, OSError: see `data.latents.cache.prepare_latents`.
        """
        return self.encoded(run, augmented_images(dataset.catalog, run.config), folder)

    def encoded(
        self, run: Run, catalog: Catalog | PictureCatalog, folder: Path, pictures: str = ""
    ) -> LatentsCache:
        """Latents cache of the images of a run, or of pictures of them.

        Args:
            run: with its settings and processes.
            catalog: of the images or pictures.
            folder: of the cache.
            pictures: see `data.latents.cache.prepare_latents`.

        Raises:
            UserError, OSError: see `data.latents.cache.prepare_latents`.
        """
        precision = settle_precision(run.config.data.latents_precision)
        return prepare_latents(
            catalog,
            folder,
            vae_digest=self.digest,
            load_autoencoder=partial(self.load, run.config.data, precision),
            resolution=buckets_of(run.config.data),
            pixels=PixelFormat.of(run.config.data),
            mirrored=run.config.data.flip,
            precision=precision,
            quiet=run.silent,
            processes=run.processes,
            pictures=pictures,
        )


@dataclass(frozen=True)
class PixelStage:
    """First stage of a run on pixels: none, so images are their own latents."""

    folder = None
    digest = NONE
    downsample_factor = 1
    image_size = None
    encoded = None

    def latents_folder(self, out: Path, latents: Path | None) -> None:
        """Folder of a latents cache: there is none.

        Args:
            out: run folder.
            latents: that was asked for.

        Raises:
            UserError: a folder was asked for.
        """
        if latents is not None:
            raise UserError(
                f"--latents {latents}: this run trains on pixels, which are not cached; leave it "
                "out (--catalog names the folder of the catalog)"
            )

    def latent_channels(self, data: DataConfig) -> int:
        """Channels of the images.

        Args:
            data: of the run, complete.
        """
        return PixelFormat.of(data).channels

    def load(self, data: DataConfig) -> PixelSpace:
        """Identity, with the interface of an autoencoder.

        Args:
            data: of the run, complete.
        """
        from latentddpm.models.autoencoder.pixel_space import PixelSpace

        return PixelSpace(self.latent_channels(data))

    def latent_space(self) -> LatentSpace:
        """Scaling of the latents: by 1."""
        from latentddpm.models.autoencoder.latent_space import LatentSpace

        return LatentSpace(1.0)

    def latents(self, dataset: Dataset, run: Run, folder: Path | None) -> PixelLatents:
        """Images of a run, as latents; read when they are used.

        Args:
            dataset: of the run.
            run: with its settings.
            folder: not used.
        """
        data = run.config.data
        return PixelLatents.of(
            augmented_images(dataset.catalog, run.config),
            (data.resolution,) * data.spatial_dims,
            PixelFormat.of(data),
            mirrored=data.flip,
            transparent=data.background == "random",
        )


FirstStage = AutoencoderStage | PixelStage


def read_first_stage(vae: str | Path | None, base: ModelFolder | None) -> FirstStage:
    """First stage of a run.

    Args:
        vae: folder that holds an autoencoder; the text "none" for pixels (a folder of that name
            is "./none" or a `Path`); None for that of `base`.
        base: model to start from; None to train from scratch.

    Raises:
        UserError: neither is given, the folder has no autoencoder, or both do not fit each other.
    """
    if vae is None and base is None:
        raise UserError(
            "--vae: needed, unless --init names a model that has its autoencoder; --vae none "
            "trains on pixels"
        )
    of_pixels = base is not None and base.first_stage == NONE
    if vae == NONE and base is not None and not of_pixels:
        raise UserError(
            f"--vae none: {base.path}, which the run starts from, was trained on latents; leave "
            "--vae out to take its own autoencoder"
        )
    if of_pixels and vae not in (None, NONE):
        raise UserError(
            f"--vae {vae}: {base.path}, which the run starts from, was trained on pixels, without "
            "an autoencoder; leave --vae out"
        )
    if vae == NONE or of_pixels:
        return PixelStage()
    folder = base if vae is None else read_model_folder(vae)
    if folder.first_stage == NONE:
        raise UserError(
            f"--vae {vae}: a model of pixels, which has no autoencoder; --vae none trains on "
            f"pixels from scratch, --init {vae} goes on from this model"
        )
    arguments = read_arguments(folder.file("vae"), AUTOENCODER)
    if base is not None:
        check_autoencoder(base, folder)
    return AutoencoderStage(folder, arguments)
