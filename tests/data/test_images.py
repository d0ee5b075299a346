"""Every kind of image gives the right pixels, or one reason why not; the folder stays as it is."""

import hashlib
import os
import subprocess
import sys
import zlib

import nasty
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.doctor.doctor import describe_file
from latentddpm.data.images import UnreadableImage, composite, read_image
from latentddpm.data.pictures import decode
from latentddpm.data.sources.open import open_source
from latentddpm.data.sources.survey import survey
from latentddpm.errors import UserError

READABLE, UNREADABLE = nasty.readable(), nasty.unreadable()


def save(path, pixels, **options):
    """Write an array or an image; returns the path."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def disc(height, width, radius):
    """A black disc in the middle of white, uint8 (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    inside = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 <= radius**2
    return np.where(inside[..., None], 0, 255).astype(np.uint8).repeat(3, axis=2)


# --- Kinds of files ------------------------------------------------------------------------


@pytest.mark.parametrize("name", READABLE)
def test_every_kind_gives_its_colour(tmp_path, name):
    nasty.write(tmp_path, {name: READABLE[name]})
    pixels = read_image(tmp_path / name, 16)
    assert pixels.shape == (16, 16, 3), f"{name}: shape {pixels.shape}"
    assert pixels.dtype == np.uint8, f"{name}: dtype {pixels.dtype}"
    error = np.abs(pixels.astype(int) - READABLE[name][1]).max()
    assert error <= 2, f"{name}: {pixels[8, 8]} is not {READABLE[name][1]}"
    assert read_image(tmp_path / name, 16, None).shape == (16, 16, 4), f"{name}: no RGBA"


@pytest.mark.parametrize("name", UNREADABLE)
def test_every_broken_file_says_why(tmp_path, name):
    nasty.write(tmp_path, {name: UNREADABLE[name]})
    with pytest.raises(UnreadableImage) as caught:
        read_image(tmp_path / name, 16)
    reason = caught.value.reason
    assert UNREADABLE[name][1] in reason, f"{name}: the reason is {reason!r}"
    assert "\n" not in reason, f"{name}: the reason has several lines"
    assert name in str(caught.value), f"{name}: the message does not name the file"


def test_a_missing_file_and_a_folder_are_unreadable_not_another_error(tmp_path):
    for path in (tmp_path / "none.png", tmp_path):
        with pytest.raises(UnreadableImage, match="no such file"):
            read_image(path, 16)


@pytest.mark.filterwarnings("ignore:::PIL")
def test_random_damage_never_raises_anything_else(tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "damaged"
    for name, (data, _) in READABLE.items():
        for _ in range(15):
            damaged = bytearray(data)
            for position in rng.integers(0, len(damaged), 3):
                damaged[position] = rng.integers(256)
            path.write_bytes(damaged)
            try:
                pixels = read_image(path, 8)
            except UnreadableImage:
                continue
            assert pixels.shape == (8, 8, 3), f"damaged {name}: shape {pixels.shape}"


def test_gigantic_header_is_refused_even_when_pillow_has_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    (tmp_path / "bomb.png").write_bytes(nasty.bomb())
    with pytest.raises(UnreadableImage, match="20000x20000 pixels is over the limit"):
        read_image(tmp_path / "bomb.png", 16)
    assert decode.MAX_PIXELS < 20_000**2, "the limit lets 20,000×20,000 through"


# --- Orientation, depth, alpha -------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize(
    ("orientation", "place"),
    [
        *[(1, "top left"), (2, "top right"), (3, "bottom right"), (4, "bottom left")],
        *[(5, "top left"), (6, "top right"), (7, "bottom right"), (8, "bottom left")],
    ],
)
def test_exif_rotation_moves_the_red_corner(tmp_path, kind, orientation, place):
    corner = nasty.corner()
    path = save(tmp_path / f"a.{kind}", corner, quality=95, **nasty.turned(corner, orientation))
    pixels = read_image(path, 32).astype(int)
    row = 4 if "top" in place else 27
    column = 4 if "left" in place else 27
    assert np.abs(pixels[row, column] - nasty.RED).max() < 16, f"red is not {place}"
    red = np.abs(pixels - nasty.RED).max(axis=2) < 128
    assert abs(red.mean() - 0.25) < 0.02, f"{red.mean():.2f} of the picture is red"
    catalog = open_catalog(tmp_path, tmp_path / "catalog", quiet=True)
    found = int(catalog.images["width"][0]), int(catalog.images["height"][0])
    assert found == ((48, 32) if orientation < 5 else (32, 48)), f"the scan says {found}"


def test_16_bit_gray_keeps_its_ramp(tmp_path):
    ramp = np.linspace(0, 65535, 64).round().astype(np.uint16)
    path = save(tmp_path / "ramp.png", np.tile(ramp, (64, 1)))
    wanted = np.rint(ramp / 257)
    got = read_image(path, 64)[0, :, 0]
    assert np.abs(got - wanted).max() <= 1, "16-bit gray is not scaled by 1/257"


def test_alpha_lies_over_the_chosen_background(tmp_path):
    path = save(tmp_path / "a.png", nasty.solid("RGBA", (255, 0, 0, 128)))
    for background, wanted in (((255, 255, 255), (255, 127, 127)), ((0, 0, 255), (128, 0, 127))):
        pixel = read_image(path, 8, background)[4, 4]
        assert np.abs(pixel.astype(int) - wanted).max() <= 1, f"{pixel} over {background}"
    assert read_image(path, 8, None)[4, 4].tolist() == [255, 0, 0, 128], "RGBA is not kept"


def test_resizing_leaves_no_dark_fringe(tmp_path):
    """White on transparent black, over white, must be white everywhere."""
    rgba = np.zeros((128, 128, 4), np.uint8)
    rgba[(disc(128, 128, 45) == 0).all(axis=2)] = 255
    path = save(tmp_path / "disc.png", rgba)
    for resolution in (33, 64, 200):
        pixels = read_image(path, resolution)
        assert pixels.min() >= 254, f"fringe of {pixels.min()} at {resolution}"
        kept = read_image(path, resolution, None)
        visible = kept[..., 3] > 16
        assert kept[..., :3][visible].min() >= 235, f"dark colour under alpha at {resolution}"
        assert 0 < visible.mean() < 1, "the test picture has no border"


def test_rgba_then_composite_equals_direct(tmp_path):
    rgba = np.random.default_rng(0).integers(0, 256, (50, 70, 4), np.uint8)
    path = save(tmp_path / "a.png", rgba)
    direct = read_image(path, (24, 32), (10, 200, 90))
    later = composite(read_image(path, (24, 32), None), (10, 200, 90))
    np.testing.assert_array_equal(direct, later, err_msg="two ways to one picture differ")


def test_composite_broadcasts_and_matches_exact_arithmetic():
    rgba = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 4), np.uint8)
    background = np.array([[1, 2, 3], [250, 0, 99]]).reshape(2, 1, 1, 3)
    alpha = rgba[..., 3:] / 255
    exact = rgba[..., :3] * alpha + background * (1 - alpha)
    got = composite(rgba, background)
    assert got.dtype == np.uint8, "uint8 in, uint8 out"
    assert np.abs(got - exact).max() <= 0.5 + 1e-9, "uint8 composite is not rounded to nearest"
    unit = composite((rgba / 255).astype(np.float32), (background / 255).astype(np.float32))
    assert unit.dtype == np.float32, "float32 in, float32 out"
    np.testing.assert_allclose(unit * 255, exact, atol=1e-3, err_msg="float composite")


# --- Geometry ------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(100, 300), (300, 100), (211, 100)])
@pytest.mark.parametrize("resolution", [50, 180])
def test_centre_crop_keeps_a_circle_a_circle(tmp_path, size, resolution):
    path = save(tmp_path / "disc.png", disc(*size, radius=40))
    black = read_image(path, resolution)[..., 0] < 128
    wide, high = black.any(axis=0).sum(), black.any(axis=1).sum()
    wanted = 81 * resolution / 100
    assert abs(wide - high) <= 2, f"the circle became {wide}x{high}"
    assert abs(wide - wanted) <= 2, f"diameter {wide}, expected {wanted:.0f}"
    y, x = np.argwhere(black).mean(axis=0) - (resolution - 1) / 2
    assert max(abs(y), abs(x)) <= 1, f"off centre by {y:.1f}, {x:.1f}"


def test_oblong_target_is_height_by_width(tmp_path):
    path = save(tmp_path / "disc.png", disc(200, 200, radius=30))
    black = read_image(path, (50, 100))[..., 0] < 128
    assert black.shape == (50, 100), f"(height, width) gave {black.shape}"
    wide, high = black.any(axis=0).sum(), black.any(axis=1).sum()
    assert abs(wide - high) <= 2, f"the circle became {wide}x{high}"


def test_pixels_are_untouched_when_only_cropped(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (64, 81, 3), np.uint8)
    path = save(tmp_path / "a.png", pixels)
    np.testing.assert_array_equal(
        read_image(path, 64), pixels[:, 8:72], err_msg="a pure crop changed pixels"
    )


def test_a_fine_checkerboard_averages_to_gray(tmp_path):
    board = (np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)
    for name in ("a.png", "a.jpg"):
        path = save(tmp_path / name, board, quality=95)
        pixels = read_image(path, 64).astype(int)
        assert np.abs(pixels - 127.5).max() <= 3, (
            f"{name}: aliasing {pixels.min()}..{pixels.max()}"
        )


@pytest.mark.parametrize("height", [320, 960])  # whole pixels at 1/8 too
def test_fast_jpeg_decoding_equals_the_full_decoding(tmp_path, height):
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1.5 : height * 1.5j]
    waves = 127.5 + 127 * np.sin(60 * x) * np.cos(50 * y)  # gray: chroma is stored coarser anyway
    path = save(tmp_path / "a.jpg", waves.astype(np.uint8), quality=95)
    reference = save(tmp_path / "a.png", Image.open(path))
    difference = np.abs(read_image(path, 64).astype(int) - read_image(reference, 64)).max()
    assert difference <= 4, f"draft mode changes pixels by {difference}"


@pytest.mark.parametrize("resolution", [0, -1, 2.5, (64,), (64, 0), "64"])
def test_a_wrong_resolution_is_said(tmp_path, resolution):
    with pytest.raises(UserError, match="resolution"):
        read_image(save(tmp_path / "a.png", nasty.corner()), resolution)


@pytest.mark.parametrize("background", [(256, 0, 0), (-1, 0, 0), (1, 2)])
def test_a_wrong_background_is_said(tmp_path, background):
    with pytest.raises(UserError, match="background"):
        read_image(save(tmp_path / "a.png", nasty.corner()), 8, background)


# --- Folders -------------------------------------------------------------------------------


def test_scan_sorts_good_from_bad_and_changes_nothing(tmp_path):
    folder, cache = tmp_path / "data", tmp_path / "catalog"
    nasty.write(folder, READABLE | UNREADABLE)
    (folder / "notes.txt").write_text("not looked at")

    def state():
        return {
            path: (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).digest())
            for path in folder.rglob("*")
            if path.is_file()
        }

    before = state()
    catalog = open_catalog(folder, cache, quiet=True)
    names = [catalog.name(i) for i in range(len(catalog))]
    assert names == sorted(READABLE), "images: wrong files or order"
    assert [p for p, _ in catalog.unreadable()] == sorted(UNREADABLE), "unreadable: wrong files"
    for name, reason in catalog.unreadable():
        assert UNREADABLE[name][1] in reason, f"{name}: the reason is {reason!r}"
    line = catalog.images.row(names.index("line.png"))
    assert (line["width"], line["height"]) == (1000, 1), f"{line}"
    see_through = {names[i] for i in np.flatnonzero(catalog.images["transparent"])}
    wanted = {"gray-alpha.png", "gray16-hidden.png", "palette-alpha.png", "rgba.webp"}
    assert see_through == wanted, f"transparent: {see_through}"
    for i, name in enumerate(names):
        digest = hashlib.sha256(READABLE[name][0]).digest()
        assert catalog.images["sha256"][i].tobytes() == digest, f"{name}: another digest"
        assert catalog.read(i) == READABLE[name][0], f"{name}: other bytes"
    assert state() == before, "the scan changed the user's folder"
    with pytest.raises(UserError, match=f"{len(UNREADABLE)} of .*bit-flipped.png: broken"):
        open_catalog(folder, cache, strict=True, quiet=True)


def test_scan_of_nothing_but_broken_files_is_an_error(tmp_path):
    nasty.write(tmp_path, UNREADABLE)
    with pytest.raises(UserError, match="9 of 9 images cannot be read"):
        open_catalog(tmp_path, tmp_path / "catalog", quiet=True)


def listed(folder):
    return [unit.name for unit in open_source(folder).units()]


def test_images_are_listed_in_order_without_what_is_hidden(tmp_path):
    names = ["b.png", "a/z.JPEG", "a.png", "a/b/c.Gif", "a-b/d.png", "ab.png", "ü/e.png", "z.png"]
    for name in [*names, ".hidden.png", ".git/x.png", "a/.thumbs/y.png", "a/readme.md"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    assert listed(tmp_path) == sorted(names), "not in the order of whole paths"


def large_text(kind):
    """A chunk that is larger than Pillow reads, and the place of its keyword."""
    packed = zlib.compress(b"a" * (3 << 20))
    heads = {b"tEXt": b"k\0" + b"a" * (2 << 20), b"iTXt": b"k\0\1\0\0\0" + packed}
    return kind, heads.get(kind, b"k\0\0" + packed)


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("last", [False, True])
def test_the_pixels_beside_a_large_text_are_read(tmp_path, kind, last):
    rows = (b"\0" + bytes(nasty.RED) * 4) * 4
    if last:
        data = nasty.png(4, 4, 8, 2, rows)
        data = data[:-12] + nasty.chunk(*large_text(kind)) + data[-12:]
    else:
        data = nasty.png(4, 4, 8, 2, rows, large_text(kind))
    (tmp_path / "a.png").write_bytes(data)
    for file in (data, tmp_path / "a.png"):
        np.testing.assert_array_equal(read_image(file, 4), np.full((4, 4, 3), nasty.RED))
    assert describe_file(data, "a.png") == ("PNG", []), "doctor reads it too"


def test_a_large_text_does_not_let_a_bomb_in():
    limits = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    data = nasty.png(20_000, 20_000, 8, 2, b"", large_text(b"zTXt"))
    with pytest.raises(UnreadableImage, match="pixels"):
        read_image(data, 8)
    assert limits == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_links_stay_inside_the_folder(tmp_path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    save(outside / "secret.png", nasty.corner())
    save(inside / "a.png", nasty.corner())
    (inside / "b.png").symlink_to("a.png")
    (inside / "out.png").symlink_to(outside / "secret.png")
    (inside / "gone.png").symlink_to("nowhere.png")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    (tmp_path / "alias").symlink_to(inside)
    for place in (inside, tmp_path / "alias"):  # the folder itself may be a link
        assert listed(place) == ["a.png"], "expected each picture of the folder once"
        found = survey(str(place))
        named = {name for name, _ in found["link_not_followed"].items}
        assert named == {"out.png", "gone.png", "folder"}, f"named {named}"
        assert {name for name, _ in found["link_once"].items} == {"b.png", "loop"}


def test_a_wrong_folder_is_said_in_one_line(tmp_path):
    (tmp_path / "notes.txt").touch()
    cases = {
        tmp_path / "none": "no such folder",
        tmp_path / "notes.txt": "is a file",
        tmp_path: r"no image in it \(looked for \.png .*\.gif.*\); .*notes\.txt",
    }
    for folder, words in cases.items():
        with pytest.raises(UserError, match=words) as caught:
            listed(folder)
        assert "\n" not in str(caught.value), f"several lines: {caught.value}"


def test_importing_needs_no_tensorflow():
    code = (
        "import latentddpm.data.catalog.scan, latentddpm.data.captions, sys;"
        "sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0, "TensorFlow is imported"
