"""Signals in files: WAV of all kinds and arrays, read to closed forms, or refused by name."""

import io
import struct
import wave

import numpy as np
import pytest

from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.doctor.report import as_text
from latentddpm.data.images import UnreadableImage, read_image, read_signal
from latentddpm.data.pack import pack
from latentddpm.data.pictures.stored import look, read_stored
from latentddpm.data.pictures.wav import FULL_SCALE, read_wav, save_wav
from latentddpm.utils.images.pixel_format import PixelFormat

WAVES = PixelFormat(1, "float", (-1, 1), spatial_dims=1, rate=8000)


def riff(form, samples, extra=b""):
    """Bytes of a WAV file of a format chunk and samples."""
    parts = [(b"LIST", b"odd"), (b"fmt ", form), (b"data", samples)]
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in parts
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body + extra


def header(kind, channels, bits, rate=8000, sub=None):
    width = channels * bits // 8
    form = struct.pack(
        "<HHIIHH", 0xFFFE if sub is not None else kind, channels, rate, rate * width, width, bits
    )
    if sub is not None:
        form += struct.pack("<HHIH", 22, bits, 0, sub) + b"\0" * 14
    return form


@pytest.mark.parametrize("bits", [8, 16, 24, 32])
@pytest.mark.parametrize("channels", [1, 2])
def test_whole_numbers_are_those_that_the_wave_module_wrote(bits, channels):
    """The ends of the range are −1 and 1 − 2^(1−b), and 0 is 0."""
    top = 1 << (bits - 1)
    whole = np.array([-top, top - 1, 0, 1, -1, top // 2], np.int64).repeat(channels)
    raw = whole + (128 if bits == 8 else 0)
    frames = b"".join(int(n).to_bytes(bits // 8, "little", signed=bits > 8) for n in raw.tolist())
    stream = io.BytesIO()
    with wave.open(stream, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(22050)
        file.writeframes(frames)
    values, rate = read_wav(stream.getvalue())
    assert rate == 22050
    expected = (whole / top).astype(np.float32).reshape(-1, channels)
    np.testing.assert_array_equal(values, expected)


def test_floating_point_and_the_newer_header():
    numbers = np.float32([[-2.5, 0.25], [1, -1]])
    for dtype, sub in (("<f4", None), ("<f8", None), ("<f4", 3)):
        bits = 8 * np.dtype(dtype).itemsize
        data = riff(header(3, 2, bits, sub=sub), numbers.astype(dtype).tobytes())
        np.testing.assert_array_equal(read_wav(data).values, numbers)
    data = riff(header(1, 1, 16, sub=1), struct.pack("<2h", -32768, 16384), b"\0")
    assert read_wav(data).values[:, 0].tolist() == [-1, 0.5], "expected whole numbers of kind 1"


def test_every_value_of_16_bits_is_written_as_it_was_read(tmp_path):
    every = np.arange(-32768, 32768) / FULL_SCALE
    save_wav(tmp_path / "a.wav", every[:, None], 44100)
    values, rate = read_wav((tmp_path / "a.wav").read_bytes())
    assert rate == 44100
    np.testing.assert_array_equal(values[:, 0], every)
    again = WAVES.from_images(WAVES.to_images(values))
    np.testing.assert_array_equal(np.rint(again * FULL_SCALE) / FULL_SCALE, values)
    save_wav(tmp_path / "loud.wav", np.array([[-3.0], [3.0]]), 8000)
    loud = read_wav((tmp_path / "loud.wav").read_bytes()).values[:, 0]
    assert loud.tolist() == [-1, 32767 / 32768], "expected clipped ends"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (riff(header(1, 1, 12), b"\0" * 6), "kind 1 and 12 bits, expected whole numbers of 8"),
        (riff(header(7, 1, 8), b"\0"), "kind 7 and 8 bits"),
        (riff(header(1, 0, 16), b""), "0 channels at 8000"),
        (riff(header(1, 2, 16), b"\0" * 6), "6 bytes of samples, expected a multiple of 4"),
        (riff(header(1, 1, 16), b""), "0 bytes of samples"),
        (riff(b"\1\0", b"\0\0"), "header of 2 bytes, expected at least 16"),
        (riff(header(1, 1, 16), b"\0" * 8)[:-2], "lacks 2 bytes of 8"),
        (b"RIFF\4\0\0\0WAVE", "without the part 'fmt '"),
        (riff(header(3, 1, 32), struct.pack("<f", np.nan)), "NaN or an infinite number"),
    ],
    ids=["12 bits", "kind", "no channel", "half", "empty", "short", "cut", "no header", "nan"],
)
def test_a_damaged_file_is_refused_by_what_is_wrong(data, message):
    with pytest.raises(UnreadableImage, match=message):
        read_signal(data, 1, WAVES, "a.wav")


def test_signals_are_cut_to_their_middle_and_never_padded(tmp_path):
    ramp = np.arange(11, dtype=np.float32) / 16
    np.save(tmp_path / "a.npy", ramp)
    np.save(tmp_path / "b.npy", ramp[:, None])
    save_wav(tmp_path / "c.wav", ramp[:, None], 8000)
    for name in ("a.npy", "b.npy", "c.wav"):
        found = read_signal(tmp_path / name, 5, WAVES)
        np.testing.assert_array_equal(found[:, 0], ramp[3:8], name)
        with pytest.raises(UnreadableImage, match=f"{name}: 11 samples, expected at least 12"):
            read_signal(tmp_path / name, 12, WAVES)
        with pytest.raises(UnreadableImage, match="1 channels, expected 2"):
            read_signal(tmp_path / name, 5, PixelFormat(2, "float", (-1, 1), spatial_dims=1))
    for name in ("a.npy", "c.wav"):
        with pytest.raises(UnreadableImage, match="a signal of 11 samples, expected an image"):
            read_image(tmp_path / name, 4)
    np.save(tmp_path / "d.npy", np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(UnreadableImage, match=r"shape \(4, 4, 3\), expected a signal"):
        read_signal(tmp_path / "d.npy", 2, WAVES)


def test_facts_of_signals_reach_the_catalog_the_doctor_and_shards(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    draw = np.random.default_rng(0)
    for number in range(3):
        save_wav(data / f"{number}.wav", draw.uniform(-0.5, 0.5, (20 + number, 2)), 16000)
    (data / "1.txt").write_text("a noise", "utf-8")
    facts, values = look((data / "2.wav").read_bytes())
    assert (facts.height, facts.width, facts.channels, facts.bits) == (22, 2, 1, 32)
    assert (facts.signal, facts.rate, values.shape) == (True, 16000, (22, 2, 1))

    catalog = open_catalog(data, tmp_path / "catalog", quiet=True)
    assert catalog.images["rate"].tolist() == [16000] * 3
    assert catalog.images["height"].tolist() == [20, 21, 22]
    pixels = PixelFormat(2, "float", (-1, 1), spatial_dims=1, rate=16000)
    expected = read_stored(data / "1.wav").values[:20]
    np.testing.assert_array_equal(catalog.image(1, (20,), pixels), expected)

    report = examine(data, resolution=21)
    lines = as_text(report)
    assert "length   20 to 22 samples" in lines, lines
    assert "16,000 3 (signals" in lines, lines
    assert "look alike" not in lines, "as pictures they would"
    assert [one[0] for one in report.findings["too_small"].items] == ["0.wav"]

    pack(data, tmp_path / "packed", quiet=True)
    shards = open_catalog(tmp_path / "packed", tmp_path / "again", quiet=True)
    np.testing.assert_array_equal(shards.image(1, (20,), pixels), expected)
    assert shards.images["signal"].all()
