"""Images as the world has them: every kind that breaks image loaders, written by hand."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

RED, BLUE, WHITE, BLACK = (255, 0, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
ORIENTATION = 0x0112
SIZE = 32


def solid(mode: str, colour: object, size: int = SIZE) -> Image.Image:
    return Image.new(mode, (size, size), colour)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """A PNG from its raw parts: `rows` with a filter byte each, `chunks` before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def bomb() -> bytes:
    """A few bytes whose header claims 20,000×20,000 pixels."""
    return png(20_000, 20_000, 8, 2, b"")


def corner(width: int = 48, height: int = 32) -> Image.Image:
    """White with a red top-left quarter."""
    image = Image.new("RGB", (width, height), WHITE)
    image.paste(RED, (0, 0, width // 2, height // 2))
    return image


def turned(image: Image.Image, orientation: int) -> dict:
    """The save options that mark `image` with an EXIF orientation."""
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    return {"exif": exif}


def readable() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Name → bytes, and the colour that every pixel must have over white (±2)."""
    row16 = b"\0" + struct.pack(">H", 32768) * SIZE
    rgb16 = b"\0" + struct.pack(">HHH", 65535, 32768, 0) * SIZE
    palette = solid("P", 1)
    palette.putpalette([*BLUE, *RED])
    red = solid("RGB", RED)
    half = Image.fromarray(np.full((SIZE, SIZE), 0.5, np.float32))
    return {
        "1x1.png": (encoded(solid("RGB", RED, 1), "PNG"), RED),
        "1bit.png": (encoded(solid("1", 0), "PNG"), BLACK),
        "UPPER.JPG": (encoded(red, "JPEG", quality=95), RED),
        "animated.gif": (
            encoded(red, "GIF", save_all=True, append_images=[solid("RGB", BLUE)]),
            RED,
        ),
        "cmyk.jpg": (encoded(solid("CMYK", (0, 255, 255, 0)), "JPEG", quality=95), RED),
        "float.tif": (encoded(half, "TIFF"), (128,) * 3),
        "gray-alpha.png": (encoded(solid("LA", (0, 128)), "PNG"), (127,) * 3),
        "gray16.png": (png(SIZE, SIZE, 16, 0, row16 * SIZE), (128,) * 3),
        "gray16-hidden.png": (
            png(SIZE, SIZE, 16, 0, row16 * SIZE, (b"tRNS", struct.pack(">H", 32768))),
            WHITE,
        ),
        "jpeg-inside.png": (encoded(red, "JPEG", quality=95), RED),
        "line.png": (encoded(Image.new("RGB", (1000, 1), RED), "PNG"), RED),
        "palette.png": (encoded(palette, "PNG"), RED),
        "palette-alpha.png": (encoded(palette, "PNG", transparency=b"\xff\x00"), WHITE),
        "rgb.bmp": (encoded(red, "BMP"), RED),
        "rgb.tiff": (encoded(red, "TIFF", compression="tiff_lzw"), RED),
        "rgb16.png": (png(SIZE, SIZE, 16, 2, rgb16 * SIZE), (255, 128, 0)),
        "rgba.webp": (encoded(solid("RGBA", (*BLACK, 51)), "WEBP", lossless=True), (204,) * 3),
        "sub folder/ünï 🍎.webp": (encoded(red, "WEBP", lossless=True), RED),
    }


def unreadable() -> dict[str, tuple[bytes, str]]:
    """Name → bytes, and a word of the reason that must be given."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    jpeg, png_bytes = encoded(noise, "JPEG"), encoded(noise, "PNG")
    flipped = bytearray(png_bytes)
    flipped[len(flipped) // 2] ^= 1
    nan = Image.fromarray(np.full((4, 4), np.nan, np.float32))
    return {
        "bomb.png": (bomb(), "pixels"),
        "bit-flipped.png": (bytes(flipped), "broken"),
        "empty.png": (b"", "empty"),
        "header-only.png": (png_bytes[:20], "Truncated"),
        "nan.tif": (encoded(nan, "TIFF"), "nan"),
        "postscript.png": (encoded(noise, "EPS"), "another kind"),
        "text.png": (b"this is no image\n", "another kind"),
        "truncated.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "truncated.png": (png_bytes[: len(png_bytes) // 2], "truncated"),
    }


def write(folder: Path, files: dict[str, tuple[bytes, object]]) -> None:
    for name, (data, _) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
