"""Duplicates among images: equal files, and near duplicates, found without comparing all pairs.

The hash of an image consists of two parts, made from 36×36 pixels over white:

    gradient hash   9×9 gray g: 64 bits g[y, x+1] > g[y, x] + 1, 64 bits g[y+1, x] > g[y, x] + 1
    thumbnail       4×4 RGB, because the gradients of a red and a blue square are equal

Two images are near duplicates if their gradient hashes differ in at most `BITS` bits, and their
thumbnails on average in at most `LEVELS` of 255. That finds copies that were scaled or compressed
again, not other images of the same thing. (The gradient hash is the "difference hash" of Krawetz
2013, in both directions.)

The 128 bits are divided into `BITS` + 1 bands. Two hashes that differ in at most `BITS` bits are
equal in at least one band. So only images with an equal band are compared, which finds every pair.
"""

from __future__ import annotations

from array import array

import numpy as np
from PIL import Image

BITS = 6
LEVELS = 8.0
SIDE, HASH_SIDE, THUMBNAIL_SIDE = 36, 9, 4
HASH_BYTES = 16 + 3 * THUMBNAIL_SIDE**2
MAX_SHIFT = 1 << 14
"""Largest number of images that an image is compared with in one band."""

ONES = 0xFFFF_FFFF_FFFF_FFFF


def image_hash(image: Image.Image) -> bytes:
    """Perceptual hash of an RGB or RGBA `image`, `HASH_BYTES` bytes."""
    premultiplied = image.convert("RGBa") if image.mode == "RGBA" else image
    small = premultiplied.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    if image.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small.convert("RGBA")).convert("RGB")
    gray = small.convert("L").resize((HASH_SIDE,) * 2, Image.Resampling.BOX)
    g = np.asarray(gray, np.int16)
    bits = g[:-1, 1:] > g[:-1, :-1] + 1, g[1:, :-1] > g[:-1, :-1] + 1
    thumbnail = small.resize((THUMBNAIL_SIDE,) * 2, Image.Resampling.BOX)
    return np.packbits(np.stack(bits)).tobytes() + thumbnail.tobytes()


class ImageHashes:
    """Hashes of images 0, 1, 2, …, with digests of their files; 80 bytes per image."""

    def __init__(self) -> None:
        self._digests, self._hashes = array("B"), array("B")

    def __len__(self) -> int:
        return len(self._digests) // 16

    def add(self, digest: bytes, image_hash: bytes) -> None:
        """Add the next image: the `digest` of its file, of which 16 bytes count, and its hash."""
        self._digests.frombytes(digest[:16])
        self._hashes.frombytes(image_hash)

    def duplicates(self) -> tuple[list[np.ndarray], list[np.ndarray], bool]:
        """Groups of duplicates.

        Only the first of several equal files is compared for near duplicates. A group of those
        can have two images that are near duplicates of a third one only.

        Returns:
            Groups of equal files and groups of near duplicates, each an ascending array of
            images; and False if there were too many images to compare them all.
        """
        digests = np.frombuffer(self._digests, "V16")
        _, inverse = np.unique(digests, return_inverse=True)
        equal = groups(inverse)
        first = np.unique(inverse, return_index=True)[1]
        hashes = np.frombuffer(self._hashes, np.uint8).reshape(-1, HASH_BYTES)[np.sort(first)]
        labels, whole = near_duplicates(hashes)
        return equal, [np.sort(first)[group] for group in groups(labels)], whole


def groups(labels: np.ndarray) -> list[np.ndarray]:
    """Groups of indices with equal `labels`, of two or more: ascending arrays, sorted."""
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    found = [part for part in np.split(order, ends) if len(part) > 1]
    return sorted(found, key=lambda part: part[0])


def near_duplicates(image_hashes: np.ndarray) -> tuple[np.ndarray, bool]:
    """Labels of images, equal for near duplicates.

    Args:
        image_hashes: uint8 (N, HASH_BYTES).

    Returns:
        Labels, int64 (N,); and False if more than `MAX_SHIFT` images have an equal band, so that
        not all of them were compared.
    """
    hashes = np.ascontiguousarray(image_hashes[:, :16]).view(np.uint64)
    thumbnails = image_hashes[:, 16:].astype(np.int16)
    labels = np.arange(len(hashes))
    whole = True
    for band in range(BITS + 1):
        # Every seventh bit, so that no band consists of neighbouring pixels, such as a margin.
        mask = np.uint64(sum(1 << bit for bit in range(band, 64, BITS + 1)))
        shifted = np.uint64(sum(1 << bit for bit in range((band + 3) % (BITS + 1), 64, BITS + 1)))
        keys = (hashes[:, 0] & mask) * np.uint64(0x9E3779B97F4A7C15) ^ (hashes[:, 1] & shifted)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        left = np.arange(len(order))
        for shift in range(1, MAX_SHIFT + 2):
            left = left[left + shift < len(order)]
            left = left[keys[left] == keys[left + shift]]
            if not len(left):
                break
            if shift > MAX_SHIFT:
                whole = False
                break
            a, b = order[left], order[left + shift]
            new = labels[a] != labels[b]
            a, b = a[new], b[new]
            close = bit_count(hashes[a] ^ hashes[b]).sum(axis=1) <= BITS
            a, b = a[close], b[close]
            close = np.abs(thumbnails[a] - thumbnails[b]).mean(axis=1) <= LEVELS
            labels = join(labels, a[close], b[close])
    return labels, whole


def join(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Labels after joining the groups of `a[i]` and `b[i]` for every i.

    Args:
        labels: least index of the group of each image, (N,).
        a, b: images, (M,) each.
    """
    labels = labels.copy()
    while True:
        low, high = np.minimum(labels[a], labels[b]), np.maximum(labels[a], labels[b])
        apart = low < high
        if not apart.any():
            return labels
        np.minimum.at(labels, high[apart], low[apart])
        while (labels[labels] != labels).any():
            labels = labels[labels]


def bit_count(words: np.ndarray) -> np.ndarray:
    """Number of set bits of uint64 `words`. (`np.bitwise_count` needs NumPy 2.)"""
    u = np.uint64
    words = words - ((words >> u(1)) & u(ONES // 3))
    words = (words & u(ONES // 5)) + ((words >> u(2)) & u(ONES // 5))
    words = (words + (words >> u(4))) & u(ONES // 17)
    return (words * u(ONES // 255)) >> u(56)
