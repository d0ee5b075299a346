"""WAV files as arrays: the samples of all channels, and the sample rate.

    RIFF header, then chunks:   "fmt " kind, channels, rate, bits      "data" samples

Read are whole numbers of 8, 16, 24 and 32 bits (kind 1) and floating point of 32 and 64 bits
(kind 3), also under the newer header (kind 0xFFFE), which names the kind once more. (Python's
`wave` does not read floating point.) Whole numbers of b bits are divided by 2^(b−1), so that they
are in [−1, 1); those of 8 bits have no sign and lie around 128. Written are 16 bits, which are
read again as they were.

The header is checked before samples are read: their size is that of the file.
"""

from __future__ import annotations

import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from latentddpm.utils.files import atomic_path
from latentddpm.utils.images.pixel_format import MAX_CHANNELS

MAGIC_BYTES = 12
PCM, FLOATING, EXTENSIBLE = 1, 3, 0xFFFE
READ = {(PCM, 8), (PCM, 16), (PCM, 24), (PCM, 32), (FLOATING, 32), (FLOATING, 64)}
"""Kinds and bits of the samples that are read."""
SUBFORMAT = slice(24, 26)
"""Place of the kind in a format chunk of the newer header."""
FULL_SCALE = 32768.0
"""Whole number of 16 bits that is 1."""


class Wave(NamedTuple):
    """Samples of a WAV file.

    Attributes:
        values: float32 (L, C).
        rate: samples a second.
    """

    values: np.ndarray
    rate: int


def is_wav(head: bytes) -> bool:
    """True for a file with these first `MAGIC_BYTES` bytes."""
    return head[:4] == b"RIFF" and head[8:12] == b"WAVE"


def read_wav(data: bytes) -> Wave:
    """Samples of a WAV file.

    Args:
        data: bytes of the file.

    Raises:
        ValueError: damaged, of a kind that is not read, without samples, or with a number that is
            not finite.
    """
    chunks = dict(_chunks(data))
    for name in (b"fmt ", b"data"):
        if name not in chunks:
            raise ValueError(f"a WAV file without the part {name.decode()!r}, expected one")
    form = chunks[b"fmt "]
    if len(form) < 16:
        raise ValueError(f"a WAV header of {len(form)} bytes, expected at least 16")
    kind, channels, rate, _, _, bits = struct.unpack("<HHIIHH", form[:16])
    if kind == EXTENSIBLE:
        kind = int.from_bytes(form[SUBFORMAT], "little")
    if (kind, bits) not in READ:
        raise ValueError(
            f"WAV samples of kind {kind} and {bits} bits, expected whole numbers of 8, 16, 24 or "
            "32 bits (kind 1), or floating point of 32 or 64 (kind 3)"
        )
    if not 1 <= channels <= MAX_CHANNELS or not rate:
        raise ValueError(f"{channels} channels at {rate} samples a second, expected at least one")
    samples = chunks[b"data"]
    if not len(samples) or len(samples) % (channels * bits // 8):
        raise ValueError(
            f"{len(samples):,} bytes of samples, expected a multiple of {channels * bits // 8}"
        )
    with np.errstate(over="ignore"):
        values = _numbers(samples, kind, bits).astype(np.float32).reshape(-1, channels)
    if not np.isfinite(values).all():
        raise ValueError("NaN or an infinite number among the samples, expected finite ones")
    return Wave(values, rate)


def save_wav(path: str | Path, values: np.ndarray, rate: int, replace: bool = True) -> None:
    """Write a WAV file of 16 bits, atomically.

    Args:
        path: of the file.
        values: float (L, C); what is outside [−1, 1] is clipped.
        rate: samples a second.
        replace: replace a file that is there.

    Raises:
        FileExistsError: see `utils.files.atomic_path`.
    """
    whole = np.rint(np.asarray(values, np.float64) * FULL_SCALE)
    whole = np.clip(whole, -FULL_SCALE, FULL_SCALE - 1).astype("<i2")
    with atomic_path(path, replace) as temporary, wave.open(str(temporary), "wb") as file:
        file.setnchannels(values.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(whole.tobytes())


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of the chunks of a file; the first of a name counts."""
    at, found = MAGIC_BYTES, set()
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if at + 8 + size > len(data):
            missing = at + 8 + size - len(data)
            raise ValueError(f"the part {name!r} lacks {missing:,} bytes of {size:,}")
        if name not in found:
            found.add(name)
            yield name, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _numbers(samples: bytes, kind: int, bits: int) -> np.ndarray:
    """Samples in [−1, 1), of floating point as they are."""
    if kind == FLOATING:
        return np.frombuffer(samples, f"<f{bits // 8}")
    if bits == 8:
        return (np.frombuffer(samples, np.uint8) - 128.0) / 128
    if bits == 24:  # as the upper three bytes of 32 bits
        padded = np.zeros((len(samples) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(samples, np.uint8).reshape(-1, 3)
        return padded.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(samples, f"<i{bits // 8}") / 2.0 ** (bits - 1)
