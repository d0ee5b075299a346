"""Arrays as images: the bytes of an .npy or .npz file to values (H, W, C), checked, not pickled.

    .npy   one array, (H, W) or (H, W, C), in NumPy's format 1.0 to 3.0; (L,) is a signal
    .npz   a zip archive with one such array

The header says shape and type, and both are checked before the values are read: their size is that
of the file. Booleans become 0 and 255; all but 8 and 16 bits without a sign become float32.
"""

from __future__ import annotations

import io
import zipfile
from math import prod

import numpy as np

from latentddpm.data.pictures.decode import MAX_BYTES, check_pixels
from latentddpm.utils.images.pixel_format import MAX_CHANNELS

NPY_MAGIC, ZIP_MAGIC = b"\x93NUMPY", b"PK\x03\x04"
MAGIC_BYTES = 6
NUMBERS = "biuf"
"""Kinds of NumPy's types that are read: booleans, whole numbers, floating point."""
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # 2.0 with names in UTF-8, which numbers lack
}


def is_array_file(head: bytes) -> bool:
    """True for a file with these first `MAGIC_BYTES` bytes."""
    return head.startswith((NPY_MAGIC, ZIP_MAGIC))


def read_array(data: bytes) -> np.ndarray:
    """Values of an image that is stored as an array.

    Args:
        data: bytes of an .npy or .npz file.

    Returns:
        uint8, uint16 or float32, (H, W, C); of an array (L,), which is a signal, (L, 1). All are
        finite.

    Raises:
        ValueError: damaged, several arrays, or one that is no image and no signal.
    """
    array = _load(_only_member(data) if data.startswith(ZIP_MAGIC) else data)
    return as_values(array[:, None])[..., 0] if array.ndim == 1 else as_values(array)


def as_values(array: np.ndarray) -> np.ndarray:
    """Values (H, W, C) of an array.

    Args:
        array: of numbers, (H, W) or (H, W, C).

    Returns:
        uint8, uint16 or float32.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or not array.size or array.shape[2] > MAX_CHANNELS:
        raise ValueError(
            f"an array of shape {shape}, expected (H, W) or (H, W, C) with at most "
            f"{MAX_CHANNELS} channels"
        )
    if array.dtype == bool:
        return array * np.uint8(255)
    if array.dtype.newbyteorder("=") in (np.uint8, np.uint16):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    with np.errstate(over="ignore"):
        values = array.astype(np.float32)
    if not np.isfinite(values).all():
        bad = "nan" if np.isnan(values).any() else "an infinite or too large number"
        raise ValueError(f"{bad} among the values, expected finite ones")
    return values


def _load(data: bytes) -> np.ndarray:
    """Array of an .npy file, of numbers."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"version {version} of NumPy's format, expected 1.0, 2.0 or 3.0")
    shape, fortran, dtype = HEADERS[version](stream)
    if dtype.kind not in NUMBERS:
        raise ValueError(f"an array of {dtype}, expected numbers")
    check_pixels(*(shape[:2] if len(shape) > 1 else (1, 1)))
    start, needed = stream.tell(), prod(shape) * dtype.itemsize
    if len(data) - start != needed:
        raise ValueError(f"{len(data) - start:,} bytes of values, expected {needed:,}")
    flat = np.frombuffer(data, dtype, offset=start)
    return flat.reshape(shape, order="F" if fortran else "C")


def _only_member(data: bytes) -> bytes:
    """Bytes of the array of an .npz file that holds one."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
        names = [member.filename.removesuffix(".npy") for member in members]
        if len(members) != 1:
            raise ValueError(f"{len(names)} arrays ({', '.join(names[:5])}), expected one")
        if members[0].file_size > MAX_BYTES:
            raise ValueError(f"{members[0].file_size:,} bytes, expected at most {MAX_BYTES:,}")
        return archive.read(members[0])
