"""The latents cache: every image goes through the encoder once, not once per epoch.

Encoding costs more than a training step of a small UNet, and the encoder never changes while
the UNet trains. So its answer is kept, per image:

    image bytes ─► read_image over white ─► Encoder ─► moments = mean, logvar  (h, w, 2c)

Only what is certain is kept. A flip, a posterior sample mean + exp(logvar / 2) · noise and the
scaling factor are applied at each use; a mirrored copy, whose moments are not the mirrored
moments, is a second row. A cache folder holds

    moments.npy   (rows, h, w, 2c): image i is row i, its mirrored copy row n + i
    index.json    what the rows are made of, and size and digest of moments.npy; written last

and while it is made partial.npy, partial.json and progress.json, from which an interrupted
encoding goes on. Files are replaced one by one: nothing else in the folder is touched, and
what stood there stays usable until the new moments are complete.

Importing this loads neither Keras nor TensorFlow, and a cache that fits is opened without
an autoencoder.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from latentddpm.data.latents_build import build_cache, make_plan
from latentddpm.data.latents_index import (
    Index,
    Key,
    misfit,
    open_cache,
    read_index,
    stamp_images,
    write_index,
)
from latentddpm.errors import UserError, check_choice

try:
    import fcntl
except ImportError:  # Windows: two processes must not make one cache at the same time
    fcntl = None

if TYPE_CHECKING:
    from latentddpm.models.autoencoder import Autoencoder

TRANSFORM_VERSION = 1
"""Of `read_image`: raise it when the same file comes to give other pixels."""

DTYPES = ("float16", "float32")


@dataclass(frozen=True, eq=False)
class LatentsCache:
    """Moments of images, random access.

    Attributes:
        paths: POSIX paths relative to the image folder; image i is row i.
        moments: read-only memory map (rows, h, w, 2c), mean before logvar.
        mirrored: whether every image has a second row, of its mirrored copy.
    """

    paths: tuple[str, ...]
    moments: np.ndarray
    mirrored: bool

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, c)."""
        height, width, channels = self.moments.shape[1:]
        return height, width, channels // 2

    def row(self, index: int, mirrored: bool = False) -> int:
        """The row of image `index`, or of its mirrored copy."""
        if mirrored and not self.mirrored:
            raise UserError("this latents cache was made without mirrored copies")
        return index + len(self.paths) * mirrored

    def gather(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        """Mean and logvar of rows (B,), float32 (B, h, w, c) each, unscaled."""
        moments = np.asarray(self.moments[rows], np.float32)
        mean, logvar = np.split(moments, 2, axis=-1)
        return mean, logvar


def prepare_latents(
    data: Path,
    paths: Sequence[str],
    cache: Path,
    *,
    vae_digest: str,
    load_autoencoder: Callable[[], Autoencoder],
    resolution: int,
    mirrored: bool = False,
    dtype: str = "float16",
    batch_size: int = 32,
    quiet: bool = False,
) -> LatentsCache:
    """The moments of `paths`: opened when the cache fits, else encoded and said why.

    Images are told apart by the SHA-256 of their bytes; a file whose size and modification
    time are as noted is not read again. When only images changed, rows of unchanged (or
    renamed) images are copied. Two processes that want one cache take turns.

    Args:
        data: the image folder.
        paths: of images relative to `data`; rows come in this order.
        cache: folder of the cache, made when missing.
        vae_digest: `weights_digest` of the autoencoder.
        load_autoencoder: called only when something must be encoded.
        dtype: "float16" rounds each number by less than 0.05 %; a million 32×32×4 latents
            then take 16 GB, in "float32" twice as much.
        quiet: no messages, no progress bars.

    Raises:
        UserError: a file that is missing or unreadable, a resolution that the autoencoder
            cannot take, an encoding that is not finite or exceeds the range of `dtype`.
        OSError: disk full, no permission; nothing unfinished stands under a final name.
    """
    data, cache, paths = Path(data), Path(cache), tuple(paths)
    check_choice("dtype", dtype, DTYPES)
    if not paths:
        raise UserError(f"{data}: no image to encode")
    if cache.exists() and not cache.is_dir():
        raise UserError(f"{cache}: is a file, not a folder for the latents cache")
    key = Key(
        vae_digest=vae_digest,
        resolution=resolution,
        transform=TRANSFORM_VERSION,
        dtype=dtype,
        mirrored=mirrored,
    )
    index, moments, problem = open_cache(cache)
    known = {
        stamp.path: stamp
        for source in (read_index(cache / "partial.json"), index)
        if source is not None
        for stamp in source.images
    }
    wanted = Index(key=key, images=stamp_images(data, paths, known, quiet))
    if problem or misfit(index, wanted):
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache, quiet):
            # Another process may have made it meanwhile.
            index, moments, problem = open_cache(cache)
            problem = problem or misfit(index, wanted)
            if problem:
                fits = moments is not None and index.key == key
                plan = make_plan(cache, wanted, index if fits else None)
                _say(f"latents cache {cache}: {problem}; {plan}", quiet)
                build_cache(
                    data, cache, wanted, plan, moments, load_autoencoder, batch_size, quiet
                )
                index, moments, problem = open_cache(cache)
                if problem:
                    raise OSError(f"{cache}: {problem}, right after it was written")
    elif index.images != wanted.images:
        # Same bytes under new time stamps (a copied folder): noted, so that they are not read
        # again next time. A cache that cannot be written is still a good one.
        with contextlib.suppress(OSError), _alone(cache, quiet):
            if read_index(cache / "index.json") == index:
                write_index(
                    cache / "index.json", index.model_copy(update={"images": wanted.images})
                )
    return LatentsCache(paths, moments, mirrored)


def _say(message: str, quiet: bool) -> None:
    if not quiet:
        print(message, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _alone(cache: Path, quiet: bool) -> Iterator[None]:
    """One process at a time changes a cache; the lock ends with its process, however it ends."""
    if fcntl is None:
        yield
        return
    with open(cache / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say(f"latents cache {cache}: waiting for another process to finish it", quiet)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
