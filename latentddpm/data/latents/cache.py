"""Latents cache: every image is encoded once, not once per epoch.

Encoding takes longer than a training step of a small UNet, and the encoder does not change while
the UNet is trained. So its output is kept on disk, for each image:

    image bytes ─► read_image over white ─► Encoder ─► moments = mean, logvar  (h, w, 2c)

Random choices are not in the cache: flips, posterior samples mean + exp(logvar / 2) · noise and
the scaling factor are applied at each use. The moments of a mirrored image are not the mirrored
moments, so a mirrored image has a second row. A cache folder has the files

    moments.npy   (rows, h, w, 2c): image i of the catalog is row i, its mirrored copy row n + i;
                  h × w is the size of a square's latents. The moments of an image of another
                  shape (see `data.buckets`), of size h' × w', are the first h' · w' of its row
    contents.npy  (n, 32): the SHA-256 of each image
    index.json    what the rows were made from, and size and digest of moments.npy; written last

and while it is made partial.npy, partial.json and progress-*.json, from which an interrupted
encoding resumes. Files are replaced one by one. Other files in the folder are left alone, and the
old cache stays valid until the new moments are complete.

Importing this module loads neither Keras nor TensorFlow, and a valid cache is opened without an
autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.data.buckets import Buckets
from latentddpm.data.catalog.catalog import Catalog
from latentddpm.data.latents.contents import Contents, difference
from latentddpm.data.latents.encode import ReusableMoments, RowRange, begin, encode_rows, finish
from latentddpm.data.latents.manifest import Index, Key, misfit, open_cache, read_contents
from latentddpm.distribution.processes import ONE_PROCESS, ProcessGroup
from latentddpm.errors import UserError, check_choice
from latentddpm.utils.console import say
from latentddpm.utils.images.pixel_format import RGB, PixelFormat
from latentddpm.utils.locks import wait_for_lock

if TYPE_CHECKING:
    from latentddpm.models.autoencoder.autoencoder import Autoencoder

TRANSFORM_VERSION = 1
"""Version of `read_image`: to be increased when it gives other pixels for the same file."""

DTYPES = ("float16", "float32")


@dataclass(frozen=True, eq=False)
class LatentsCache:
    """Latents cache: moments of all images of a catalog, with random access.

    Attributes:
        count: number of images; image i is row i, its mirrored copy row count + i.
        moments: read-only memory map (rows, h, w, 2c), mean before logvar. Rows of images of
            another shape than h × w are not valid; see `shaped`.
        mirrored: True if every image has a second row, of its mirrored copy.
        transparent: False, since images are encoded over white.
        note: line for people; "" for none.
    """

    count: int
    moments: np.ndarray
    mirrored: bool

    transparent = False
    note = ""

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape (h, w, c) of the latents of an image."""
        *size, channels = self.moments.shape[1:]
        return *size, channels // 2

    def shaped(self, height: int, width: int) -> LatentsCache:
        """Cache with the same rows, for images whose latents are of size `height` × `width`."""
        rows, channels = len(self.moments), self.moments.shape[-1]
        flat = self.moments.reshape(rows, -1)[:, : height * width * channels]
        return replace(self, moments=flat.reshape(rows, height, width, channels))

    def gather(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Moments of `rows`, int64 (B,).

        Returns:
            mean and logvar, float32 (B, h, w, c) each, unscaled.
        """
        moments = np.asarray(self.moments[rows], np.float32)
        mean, logvar = np.split(moments, 2, axis=-1)
        return mean, logvar


def prepare_latents(
    catalog: Catalog,
    cache: Path,
    *,
    vae_digest: str,
    load_autoencoder: Callable[[], Autoencoder],
    resolution: int | Buckets,
    pixels: PixelFormat = RGB,
    mirrored: bool = False,
    dtype: str = "float16",
    precision: str = "float32",
    batch_size: int = 32,
    quiet: bool = False,
    processes: ProcessGroup = ONE_PROCESS,
    pictures: str = "",
) -> LatentsCache:
    """Latents cache of a catalog: opened if it is valid, otherwise made, with a message why.

    Images are identified by the SHA-256 of their bytes. If only images have changed, the rows of
    the others, also of renamed ones, are copied. A process waits while another one writes the
    same cache.

    Args:
        catalog: of the images, or of pictures of them (`data.conditions.catalogs`).
        cache: folder of the cache, made when missing.
        vae_digest: `weights_digest` of the autoencoder.
        load_autoencoder: called only if an image has to be encoded.
        resolution: side of the square that images are cropped to, or the buckets of their shapes.
        pixels: format that the images are read in.
        mirrored: encode a mirrored copy of every image too.
        dtype: "float16" rounds each number by less than 0.05 %; a million 32×32×4 latents
            then take 16 GB, in "float32" twice as much.
        precision: that the autoencoder computes in.
        batch_size: images that are encoded at a time.
        quiet: show no messages and no progress bar.
        processes: of one job, which all call this and encode a range of rows each.
        pictures: what the pictures are, with the version of how they are made; "" for images.

    Raises:
        UserError: a file is missing or cannot be read, the resolution does not fit the
            autoencoder, or moments are not finite or exceed the range of `dtype`.
        OSError: disk full, no permission; the old cache is still valid.
    """
    cache = Path(cache)
    check_choice("dtype", dtype, DTYPES)
    if cache.exists() and not cache.is_dir():
        raise UserError(f"{cache}: is a file, not a folder for the latents cache")
    buckets = resolution if isinstance(resolution, Buckets) else Buckets(resolution)
    key = Key(
        vae_digest=vae_digest,
        resolution=buckets.resolution,
        buckets=buckets.others,
        transform=TRANSFORM_VERSION,
        dtype=dtype,
        mirrored=mirrored,
        pixels=None if pixels.is_default else pixels.to_json(),
        precision=precision,
        pictures=pictures,
    )
    wanted = Index(key=key, images=len(catalog), contents=catalog.digest)
    index, moments, problem = open_cache(cache)
    if problem or misfit(index, wanted):
        quiet = quiet or not processes.is_chief
        settings = (load_autoencoder, batch_size, quiet, processes)
        cache.mkdir(parents=True, exist_ok=True)
        if processes.is_chief:
            with wait_for_lock(cache, "latents cache", quiet):
                _make(catalog, cache, wanted, *settings)
        else:
            _make(catalog, cache, wanted, *settings)
        index, moments, problem = open_cache(cache)
        if problem:
            raise OSError(f"{cache}: {problem}, right after it was written")
    return LatentsCache(len(catalog), moments, mirrored)


def _make(
    catalog: Catalog,
    cache: Path,
    wanted: Index,
    load_autoencoder: Callable[[], Autoencoder],
    batch_size: int,
    quiet: bool,
    processes: ProcessGroup,
) -> None:
    """Encode the wanted moments, unless another process has just done so.

    Several processes of one job always encode, because all of them have to do the same.
    """
    index, moments, problem = open_cache(cache)
    problem = problem or misfit(index, wanted)
    if not problem and processes.count == 1:
        return
    old = None
    if moments is not None and index.key == wanted.key:
        contents = read_contents(cache, index)
        if contents is not None:
            old = ReusableMoments(moments, Contents(contents, cache))
            problem = difference(catalog, contents, cache)
    rows = RowRange(cache, catalog, wanted, processes.share(len(catalog)), old)
    say(f"latents cache {cache}: {problem}; {rows}", quiet)
    if processes.is_chief:
        begin(cache, wanted, old, load_autoencoder)
    processes.barrier()
    encode_rows(rows, load_autoencoder, batch_size, quiet)
    processes.barrier()
    if processes.is_chief:
        finish(cache, catalog, wanted)
    processes.barrier()
