"""The latents cache: every image goes through the encoder once, not once per epoch.

Encoding costs more than a training step of a small UNet, and the encoder never changes while
the UNet trains. So its answer is kept, per image:

    image bytes ─► read_image over white ─► Encoder ─► moments = mean, logvar  (h, w, 2c)

Only what is certain is kept. A flip, a posterior sample mean + exp(logvar / 2) · noise and the
scaling factor are applied at each use; a mirrored copy, whose moments are not the mirrored
moments, is a second row. A cache folder holds

    moments.npy   (rows, h, w, 2c): image i of the catalog is row i, its mirrored copy row n + i;
                  h × w is the square's, of which an image of another shape (see `data.buckets`)
                  fills the first h' · w' places, in its own order
    contents.npy  (n, 32): the SHA-256 of each image
    index.json    what the rows are made of, and size and digest of moments.npy; written last

and while it is made partial.npy, partial.json and progress-*.json, from which an interrupted
encoding goes on. Files are replaced one by one: nothing else in the folder is touched, and
what stood there stays usable until the new moments are complete.

Importing this loads neither Keras nor TensorFlow, and a cache that fits is opened without
an autoencoder.
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
from latentddpm.utils.locks import wait_for_lock

if TYPE_CHECKING:
    from latentddpm.models.autoencoder.autoencoder import Autoencoder

TRANSFORM_VERSION = 1
"""Of `read_image`: raise it when the same file comes to give other pixels."""

DTYPES = ("float16", "float32")


@dataclass(frozen=True, eq=False)
class LatentsCache:
    """Moments of images, random access.

    Attributes:
        count: images; image i of the catalog is row i, its mirrored copy row count + i.
        moments: read-only memory map (rows, h, w, 2c), mean before logvar. Of all rows those
            mean something whose image has that shape: see `shaped`.
        mirrored: whether every image has a second row, of its mirrored copy.
    """

    count: int
    moments: np.ndarray
    mirrored: bool

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        height, width, channels = self.moments.shape[1:]
        return height, width, channels // 2

    def shaped(self, height: int, width: int) -> LatentsCache:
        """The same rows, for the images whose latents are height × width."""
        rows, channels = len(self.moments), self.moments.shape[-1]
        flat = self.moments.reshape(rows, -1)[:, : height * width * channels]
        return replace(self, moments=flat.reshape(rows, height, width, channels))

    def gather(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and logvar of rows (B,), float32 (B, h, w, c) each, unscaled."""
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
    mirrored: bool = False,
    dtype: str = "float16",
    batch_size: int = 32,
    quiet: bool = False,
    processes: ProcessGroup = ONE_PROCESS,
) -> LatentsCache:
    """The moments of a catalog's images: opened when the cache fits, else encoded and said why.

    Images are told apart by the SHA-256 of their bytes. When only images changed, rows of
    unchanged (or renamed) images are copied. Two processes that want one cache take turns.

    Args:
        cache: folder of the cache, made when missing.
        vae_digest: `weights_digest` of the autoencoder.
        load_autoencoder: called only when something must be encoded.
        resolution: side of the square that images are cropped to, or the shapes they may take.
        dtype: "float16" rounds each number by less than 0.05 %; a million 32×32×4 latents
            then take 16 GB, in "float32" twice as much.
        quiet: no messages, no progress bars.
        processes: processes that all call this and encode a range of rows each.

    Raises:
        UserError: a file that is missing or unreadable, a resolution that the autoencoder
            cannot take, an encoding that is not finite or exceeds the range of `dtype`.
        OSError: disk full, no permission; nothing unfinished stands under a final name.
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
    """Encode the wanted moments, unless another process has done so meanwhile.

    Of several processes of one job all go on, or none.
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
