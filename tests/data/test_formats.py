"""Gray, 16 bits, floating point, many channels, arrays: read as they are, or refused by name."""

import io
import tarfile
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.doctor.doctor import examine
from latentddpm.data.images import UnreadableImage, read_image
from latentddpm.data.pack import pack
from latentddpm.data.pictures.stored import look, read_stored
from latentddpm.data.sources.open import open_source
from latentddpm.utils.images.pixel_format import PixelFormat
from latentddpm.utils.pixels import read_metadata, save_array, save_png

RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
GRAY16 = PixelFormat(1, 16)


def as_bytes(save, *args, **kwargs):
    stream = io.BytesIO()
    save(stream, *args, **kwargs)
    return stream.getvalue()


def npy(array, **kwargs):
    return as_bytes(np.save, array, **kwargs)


def tiff(*pages):
    first, *rest = map(Image.fromarray, pages)
    return as_bytes(first.save, "TIFF", save_all=True, append_images=rest)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(as_bytes(Image.fromarray(RAMP).save, "PNG"), id="png"),
        pytest.param(tiff(RAMP), id="tiff"),
        pytest.param(npy(RAMP), id="npy"),
        pytest.param(npy(np.asfortranarray(RAMP.astype(">u2"))), id="npy of another order"),
        pytest.param(as_bytes(np.savez_compressed, RAMP[..., None]), id="npz"),
    ],
)
def test_every_16_bit_value_is_read_and_written_again(data, tmp_path):
    values = read_image(data, 256, pixels=GRAY16)
    np.testing.assert_array_equal(values[..., 0], RAMP)
    found = GRAY16.from_images(GRAY16.to_images(values))
    save_png(tmp_path / "again.png", found, {"seed": 1})
    with Image.open(tmp_path / "again.png") as image:
        assert image.mode.startswith("I")
        np.testing.assert_array_equal(np.asarray(image).astype(int), RAMP)


def test_array_of_five_channels_is_written_with_its_metadata_beside_it(tmp_path):
    pixels = PixelFormat(5, "float", (-2, 3))
    values = np.random.default_rng(0).uniform(-2, 3, (8, 8, 5)).astype(np.float32)
    save_array(tmp_path / "a.npy", pixels.from_images(pixels.to_images(values)), {"latentddpm": 1})
    again = read_image(tmp_path / "a.npy", 8, pixels=pixels)
    np.testing.assert_allclose(again, values, atol=1e-6)
    assert read_metadata(tmp_path / "a.npy") == {"latentddpm": 1}


def test_pages_of_a_tiff_are_channels_unless_they_differ():
    pages = [np.full((4, 6), k, np.uint8) for k in range(5)]
    values = read_image(tiff(*pages), (4, 6), pixels=PixelFormat(5))
    assert values.shape == (4, 6, 5)
    assert values[0, 0].tolist() == [0, 1, 2, 3, 4]
    thumbnail = tiff(np.full((4, 6), 9, np.uint8), np.zeros((2, 3), np.uint8))
    assert look(thumbnail)[0].channels == 1, "a page of another size is no channel"
    assert read_image(tiff(*pages), (4, 6))[0, 0].tolist() == [0, 0, 0], "RGB takes the first page"


def test_transparency_is_kept_by_four_channels_and_lies_over_white_for_fewer():
    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:2] = 10, 20, 30, 255
    data = as_bytes(Image.fromarray(rgba).save, "PNG")
    np.testing.assert_array_equal(read_image(data, 4, pixels=PixelFormat(4)), rgba)
    gray = read_image(data, 4, pixels=PixelFormat(1))
    assert gray.shape == (4, 4, 1)
    assert gray[3].max() == gray[3].min() == 255
    deep = read_image(data, 4, pixels=PixelFormat(4, 16))
    np.testing.assert_array_equal(deep, rgba * np.uint16(257))


def test_gray_of_8_bits_is_what_rgb_reads_of_it():
    gray = np.random.default_rng(1).integers(0, 256, (9, 13), np.uint8)
    data = as_bytes(Image.fromarray(gray).save, "PNG")
    rgb = read_image(data, (5, 7))
    np.testing.assert_array_equal(read_image(data, (5, 7), pixels=PixelFormat(1)), rgb[..., :1])


def test_scaling_of_16_bits_agrees_with_that_of_8_bits():
    rows, columns = np.mgrid[:40, :30]
    gray = np.rint(127 + 100 * np.sin(rows / 5) * np.cos(columns / 6)).astype(np.uint8)
    small = read_image(as_bytes(Image.fromarray(gray).save, "PNG"), 16)[..., :1]
    deep = as_bytes(Image.fromarray(gray * np.uint16(257)).save, "PNG")
    found = read_image(deep, 16, pixels=GRAY16) / 257
    assert abs(found - small).max() <= 1.01, "rounded twice in 8 bits, once in 16"


def test_a_window_clips_and_floats_without_one_are_0_to_1():
    values = np.float32([[-2000, -1000], [0, 500]])
    window = PixelFormat(1, "float", (-1000, 400))
    found = read_image(npy(values), 2, pixels=window)[..., 0]
    np.testing.assert_array_equal(found, [[-1000, -1000], [0, 400]])
    unit = np.float32([[0, 0.25], [0.5, 1]])
    assert read_image(npy(unit), 2)[..., 0].tolist() == [[0, 64], [128, 255]], "8-bit RGB of it"
    for pixels in (PixelFormat(), PixelFormat(1, "float")):
        with pytest.raises(UnreadableImage, match=r"from -2000 to 500, expected \[0, 1\].*window"):
            read_image(npy(values), 2, pixels=pixels)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (npy(np.float32([[1, np.nan]])), "nan among the values"),
        (npy(np.float64([[1, 1e300]])), "infinite or too large"),
        (npy(np.zeros(4)), "a signal of 4 samples, expected an image"),
        (npy(np.zeros((2, 3, 4, 1))), r"shape \(2, 3, 4, 1\)"),
        (npy(np.zeros((0, 4))), r"shape \(0, 4\)"),
        (npy(np.zeros((2, 2)) + 1j), "an array of complex128, expected numbers"),
        (npy(np.array([[{}]]), allow_pickle=True), "an array of object, expected numbers"),
        (npy(np.zeros((4, 4)))[:-1], "127 bytes of values, expected 128"),
        (
            npy(np.zeros((1, 1))).replace(b"(1, 1), }", b"(9**9,1)}"),
            "Cannot parse|invalid|malformed",
        ),
        (as_bytes(np.savez, a=RAMP, b=RAMP), r"2 arrays \(a, b\), expected one"),
        (as_bytes(np.savez, a=RAMP)[:200], "not a zip file"),
    ],
    ids=[
        *("nan", "huge", "one axis", "four axes", "empty", "complex", "pickled", "cut off"),
        *("odd header", "two arrays", "cut off zip"),
    ],
)
def test_bad_arrays_are_unreadable_images_with_a_reason(data, reason):
    with pytest.raises(UnreadableImage, match=reason):
        read_image(data, 4, name="a.npy")


def test_channels_that_do_not_fit_are_named():
    with pytest.raises(UnreadableImage, match="5 channels, expected 3"):
        read_image(npy(np.zeros((2, 2, 5), np.uint8)), 2)


def test_whole_numbers_with_a_sign_are_floating_point():
    values = np.int16([[-1000, 3000]])
    assert read_stored(npy(values)).values.dtype == np.float32
    assert asdict(look(npy(values))[0]) == {
        **{"width": 2, "height": 1, "transparent": False, "channels": 1},
        **{"bits": 32, "low": -1000, "high": 3000, "signal": False, "rate": 0},
    }


def test_the_catalog_knows_channels_depth_and_values(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.png").write_bytes(as_bytes(Image.new("L", (4, 4)).save, "PNG"))
    (folder / "b.png").write_bytes(as_bytes(Image.new("RGB", (4, 4)).save, "PNG"))
    (folder / "c.png").write_bytes(as_bytes(Image.fromarray(RAMP).save, "PNG"))
    (folder / "d.tif").write_bytes(tiff(np.float32([[-3, 9]])))
    images = open_catalog(folder, tmp_path / "catalog", quiet=True).images
    assert images["channels"].tolist() == [1, 3, 1, 1]
    assert images["bits"].tolist() == [8, 8, 16, 32]
    assert images["low"].tolist() == [0, 0, 0, -3]
    assert images["high"].tolist() == [255, 255, 65535, 9]


def test_arrays_are_images_only_where_there_is_no_picture(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "a.npy", RAMP)
    assert [unit.name for unit in open_source(folder).units()] == ["a.npy"]
    assert "picture_not_read" not in open_source(folder).survey()
    report = examine(folder, quiet=True)
    assert (report.images, report.values.low, report.values.high) == (1, 0, 65535)
    assert report.values.suggested() == (65, 65470), "all but the outermost 0.1 % on either side"
    Image.new("L", (4, 4)).save(folder / "b.png")
    assert [unit.name for unit in open_source(folder).units()] == ["b.png"]
    [found] = open_source(folder).survey()["picture_not_read"].items
    assert found[0] == "a.npy"
    assert "a folder of their own" in found[1]


def test_an_array_beside_a_picture_in_a_tar_is_another_member(tmp_path):
    picture, array = as_bytes(Image.new("L", (4, 4)).save, "PNG"), npy(RAMP)
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name, data in (("1.png", picture), ("1.npy", array), ("2.npy", array)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    source = open_source(tmp_path / "s.tar")
    unit = next(iter(source.units()))
    assert [e.name for e in source.entries(unit, source.open_metadata())] == ["1.png", "2.npy"]


def test_arrays_are_packed_as_they_are(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "a.npy", RAMP)
    np.savez(folder / "b.npz", RAMP[:9])
    assert pack(folder, tmp_path / "shards", quiet=True) == (2, 1)
    before, after = (
        open_catalog(place, tmp_path / f"catalog of {place.name}", quiet=True)
        for place in (folder, tmp_path / "shards")
    )
    assert (after.digest, after.name_digest) == (before.digest, before.name_digest)
    assert after.images["bits"].tolist() == [16, 16]
