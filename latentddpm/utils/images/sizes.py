"""Sizes in pixels: multiples that networks divide, and heights of strips; without Keras."""

from __future__ import annotations

from typing import Any

from latentddpm.errors import UserError

AUTO, OFF = "auto", "off"
Tile = str | int


def check_multiple(name: str, size: int, multiple: int, of: str) -> int:
    """Check that a size is a positive multiple of a number, and return it.

    Args:
        name: of the size, such as "height".
        size: in pixels.
        multiple: the number.
        of: what the number is, such as "the autoencoder's downsample factor".

    Raises:
        UserError: it is not; the message has the nearest valid sizes.
    """
    if size < multiple or size % multiple:
        low = size // multiple * multiple
        near = sorted({max(side, multiple) for side in (low, low + multiple)})
        raise UserError(
            f"{name} {size} is not a multiple of {multiple}, {of}; "
            f"nearest valid: {' or '.join(map(str, near))}"
        )
    return size


def check_tile(tile: Any, factor: int | None = None) -> Tile:
    """Check a `tile` of an autoencoder, which may be text, and return it as a word or a number.

    Args:
        tile: "auto", "off", or the height of a strip in pixels.
        factor: the autoencoder's downsample factor, which divides the height; None where it is
            not known.

    Raises:
        UserError: neither "auto", "off" nor a positive whole number, or not a multiple of
            `factor`.
    """
    if isinstance(tile, str) and tile in (AUTO, OFF):
        return tile
    try:
        height = int(str(tile))  # by its text, so that 64.5 is refused
    except ValueError:
        height = 0
    if height < 1:
        raise UserError(
            f"tile: {tile!r}, expected 'auto', 'off' or the height of a strip in pixels"
        )
    if factor is not None:
        check_multiple("tile", height, factor, "the autoencoder's downsample factor")
    return height
