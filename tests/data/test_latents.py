"""The latents cache holds what the encoder says, is opened without it, and is never trusted
when anything about it is not as it should be."""

import json
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from conftest import age
from PIL import Image
from tiny import step_by_step

from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.images import read_image
from latentddpm.data.latents import cache, encode
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.latents.contents import Contents
from latentddpm.distribution.processes import ProcessGroup
from latentddpm.errors import UserError
from latentddpm.utils.files import file_digest
from latentddpm.utils.locks import wait_for_lock

RESOLUTION, COUNT, BATCH = 16, 10, 4
NAMES = tuple(f"part-{i // 5}/{i:02d}.png" for i in range(COUNT))


@pytest.fixture(scope="module")
def autoencoder():
    import keras

    from latentddpm.models.autoencoder.autoencoder import Autoencoder

    keras.utils.set_random_seed(0)
    sizes = {"channels": 4, "channel_multipliers": (1, 1, 2, 2), "num_res_blocks": 1}
    return Autoencoder(**sizes, norm_groups=2)


@pytest.fixture(scope="module")
def compiled(autoencoder):
    """The compiled encoder of each resolution, traced once for all tests."""
    return {resolution: encode._compiled(autoencoder) for resolution in (RESOLUTION, 24)}


def save(path, seed, size=24):
    """Random RGBA pixels, some transparent, in an uncompressed PNG: same size for every seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 4), np.uint8)
    Image.fromarray(pixels).save(path, compress_level=0)


class Bench:
    """A folder of images, its cache, and a count of what was encoded."""

    def __init__(self, folder, autoencoder, compiled, monkeypatch):
        self.data, self.cache, self.autoencoder = folder / "data", folder / "cache", autoencoder
        self.loads, self.encoded, self.fail_after = 0, 0, None
        for seed, name in enumerate(NAMES):
            save(self.data / name, seed)
            age(self.data / name)

        def counted(images):
            self.encoded += 1
            if self.fail_after is not None and self.encoded > self.fail_after:
                raise KeyboardInterrupt
            return compiled[images.shape[1]](images)

        monkeypatch.setattr(encode, "_compiled", lambda model: counted)

    def load(self):
        self.loads += 1
        return self.autoencoder

    def catalog(self):
        """What is in the folder now."""
        return open_catalog(self.data, self.cache.with_name("catalog"), quiet=True)

    def names(self):
        catalog = self.catalog()
        return [catalog.name(i) for i in range(len(catalog))]

    def prepare(self, **changes):
        self.loads = self.encoded = 0
        settings = {"vae_digest": "a", "resolution": RESOLUTION, "batch_size": BATCH} | changes
        settings.setdefault("load_autoencoder", self.load)
        return prepare_latents(self.catalog(), self.cache, **settings)

    def expected(self, names=NAMES, flip=False):
        """mean and logvar straight from `Autoencoder.encode`."""
        pixels = np.stack([read_image(self.data / name, RESOLUTION) for name in names])
        images = pixels.astype(np.float32) / 127.5 - 1
        if flip:
            images = images[:, :, ::-1]
        return [np.asarray(part) for part in self.autoencoder.encode(images)]

    def check(self, cache, mirrored=False):
        """The rows of `cache` are the moments of the images, in the catalog's order."""
        names = self.names()
        assert cache.count == len(names), f"{cache.count} images, expected {len(names)}"
        rows = [i + cache.count * mirrored for i in range(len(names))]
        wanted = self.expected(names, flip=mirrored)
        half = cache.moments.dtype == np.float16
        for part, kept, moments in zip(
            ("mean", "logvar"), cache.gather(rows), wanted, strict=True
        ):
            assert kept.dtype == np.float32, f"{part} comes as float32"
            np.testing.assert_allclose(
                kept,
                moments,
                rtol=1e-3 if half else 1e-5,
                atol=1e-3 if half else 1e-5,
                err_msg=f"the cached {part} differs from Autoencoder.encode",
            )


@pytest.fixture
def bench(tmp_path, autoencoder, compiled, monkeypatch):
    return Bench(tmp_path, autoencoder, compiled, monkeypatch)


def never():
    raise AssertionError("the autoencoder was loaded although nothing had to be encoded")


# --- Making and opening ---------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_moments_are_those_of_the_encoder(bench, dtype, capsys):
    cache = bench.prepare(dtype=dtype)
    bench.check(cache)
    assert cache.moments.dtype == dtype, f"moments are kept as {dtype}"
    assert cache.latent_shape == (2, 2, 4), "latent shape is (h, w, c)"
    assert bench.encoded == 3, "10 images in batches of 4 take 3 calls"
    error = capsys.readouterr().err
    assert "not there yet; 10 of 10 images to encode" in error, f"a miss says why: {error!r}"
    left = sorted(path.name for path in bench.cache.iterdir())
    assert left == [".lock", "contents.npy", "index.json", "moments.npy"], (
        f"nothing temporary remains: {left}"
    )
    with pytest.raises(ValueError, match="read-only"):
        cache.moments[0] = 0


def test_second_run_never_loads_the_autoencoder_and_says_nothing(bench, capsys):
    first = np.array(bench.prepare().moments)
    capsys.readouterr()
    again = bench.prepare(load_autoencoder=never)
    np.testing.assert_array_equal(again.moments, first, "a hit gives the same moments")
    assert capsys.readouterr().err == "", "a hit is silent"


def test_opens_a_cache_that_cannot_be_written(bench, monkeypatch):
    bench.prepare()
    monkeypatch.setattr(encode, "write_json", never)
    monkeypatch.setattr(cache, "wait_for_lock", never)
    bench.check(bench.prepare(load_autoencoder=never))


def test_a_copied_folder_fits(bench):
    bench.prepare()
    for name in NAMES:
        age(bench.data / name, 30)
    bench.check(bench.prepare(load_autoencoder=never))


def test_mirrored_rows_are_encodings_of_mirrored_images(bench):
    cache = bench.prepare(mirrored=True)
    assert len(cache.moments) == 2 * COUNT, "every image has two rows"
    bench.check(cache)
    bench.check(cache, mirrored=True)
    both = cache.gather([0, COUNT])[0]
    assert np.abs(both[0, :, ::-1] - both[1]).max() > 1e-3, (
        "the test must tell mirrored moments from moments of the mirrored image"
    )


def test_gather_serves_tensorflow(bench):
    import tensorflow as tf

    cache = bench.prepare()
    rows = tf.data.Dataset.range(COUNT).shuffle(COUNT, seed=1).batch(3)
    parts = rows.map(
        lambda row: (row, *tf.numpy_function(cache.gather, [row], [tf.float32, tf.float32]))
    )
    for row, mean, logvar in parts:
        kept = cache.moments[row.numpy()].astype(np.float32)
        together = np.concatenate([mean, logvar], -1)
        np.testing.assert_array_equal(together, kept, "rows through tf.data")


# --- Stale ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"vae_digest": "b"}, "made with another autoencoder"),
        ({"resolution": 24}, "made at resolution 16, not 24"),
        ({"dtype": "float32"}, "made in float16, not float32"),
        ({"mirrored": True}, "made without mirrored copies"),
        ({"precision": "bfloat16"}, "encoded in float32, not bfloat16"),
    ],
)
def test_other_settings_are_a_miss(bench, capsys, changes, reason):
    bench.prepare()
    capsys.readouterr()
    bench.prepare(**changes)
    error = capsys.readouterr().err
    assert bench.encoded == 3 * (1 + changes.get("mirrored", False)), "all is encoded again"
    assert f"{bench.cache}: {reason}; 10 of 10 images to encode\n" in error, f"why: {error!r}"
    bench.prepare(**changes, load_autoencoder=never)


@pytest.mark.slow
@step_by_step()
def test_moments_in_half_precision_are_nearly_those_of_float32(bench, autoencoder, monkeypatch):
    """Of float16 too, which goes over to float32 where it overflows."""
    from latentddpm.models.precision import hold_in

    monkeypatch.undo()  # the encoder as it is
    whole = np.array(bench.prepare(dtype="float32").moments)
    loud = hold_in(autoencoder, "float16")
    bias = loud.encoder.get_layer("conv_in").conv.bias
    bias.assign(np.full(bias.shape, 60_000.0))
    loud.encoder.get_layer("conv_in").conv.kernel.assign(np.full((3, 3, 3, 4), 5_000.0))
    half = {"dtype": "float32", "precision": "bfloat16"}
    rounded = bench.prepare(**half, load_autoencoder=lambda: hold_in(autoencoder, "bfloat16"))
    off = np.abs(rounded.moments - whole).max() / np.abs(whole).max()
    assert 0 < off < 0.1, f"off by {off}, expected a rounding"
    half["precision"] = "float16"
    with pytest.warns(UserWarning, match="encode: not finite in float16; encoded again in float"):
        moments = bench.prepare(**half, load_autoencoder=lambda: loud).moments
    assert np.isfinite(moments).all(), "expected float32 to be finite"


def test_another_way_of_reading_images_is_a_miss(bench, capsys, monkeypatch):
    bench.prepare()
    monkeypatch.setattr(cache, "TRANSFORM_VERSION", cache.TRANSFORM_VERSION + 1)
    bench.prepare()
    assert bench.encoded == 3, "all is encoded again"
    assert "reading images" in capsys.readouterr().err, "the reason is told"


@pytest.mark.parametrize("mirrored", [False, True])
def test_changed_images_alone_are_encoded(bench, capsys, mirrored):
    bench.prepare(mirrored=mirrored)
    size = (bench.data / NAMES[5]).stat().st_size
    save(bench.data / NAMES[5], 77)
    save(bench.data / "new.png", 78)
    (bench.data / NAMES[0]).unlink()
    assert (bench.data / NAMES[5]).stat().st_size == size, "the test needs an equal size"
    capsys.readouterr()
    cache = bench.prepare(mirrored=mirrored)
    error = capsys.readouterr().err
    wanted = "images 2 new (new.png, part-1/05.png), 2 gone; 2 of 10 images to encode"
    assert wanted in error, f"every cause is named: {error!r}"
    assert bench.encoded == 1 + mirrored, "the two new images are one batch, the rest is copied"
    bench.check(cache)
    if mirrored:
        bench.check(cache, mirrored=True)
    bench.prepare(mirrored=mirrored, load_autoencoder=never)


def test_removed_renamed_and_reordered_images_need_no_autoencoder(bench, capsys):
    bench.prepare()
    for name in NAMES[:5]:
        (bench.data / name).unlink()
    bench.check(bench.prepare(load_autoencoder=never))
    assert "images 5 gone; 0 of 5 images to encode" in (error := capsys.readouterr().err), error
    (bench.data / NAMES[5]).rename(bench.data / "zz.png")
    assert bench.names()[-1] == "zz.png", "the test needs another order"
    bench.check(bench.prepare(load_autoencoder=never))
    assert "order" in capsys.readouterr().err, "a new order is told"


def test_equal_images_are_copied_from_one_row(bench):
    (bench.data / NAMES[3]).write_bytes((bench.data / NAMES[2]).read_bytes())
    bench.prepare()
    (bench.data / NAMES[7]).write_bytes((bench.data / NAMES[2]).read_bytes())
    bench.check(bench.prepare(load_autoencoder=never))


def test_images_are_found_among_others_whose_digests_begin_alike(tmp_path):
    digests = np.zeros((9000, 32), np.uint8)
    digests[:, 5] = np.random.default_rng(0).integers(0, 50, 9000)
    digests[:, 30:] = np.arange(9000, dtype=">u2").view(np.uint8).reshape(-1, 2)
    contents = Contents(digests, tmp_path)
    wanted = np.array([8999, 4096, 0, 17])
    np.testing.assert_array_equal(contents.rows(digests[wanted]), wanted, "other rows")
    strangers = digests[:2].copy()
    strangers[0, 31], strangers[1, 0] = 99, 1  # 64 bits that some have, and that none has
    strangers[0, 10] = 1
    np.testing.assert_array_equal(contents.rows(strangers), [-1, -1], "a row of another image")
    twice = Contents(digests[[3, 1, 3]], tmp_path)
    np.testing.assert_array_equal(twice.rows(digests[[3]]), [0], "not the first row")
    assert Contents(digests[:0], tmp_path).rows(digests[:1]) == [-1], "found in no rows"
    assert not list(tmp_path.iterdir()), "a file is left"


def test_without_its_contents_a_cache_is_not_copied_from(bench, capsys):
    bench.prepare()
    raw = bytearray((bench.cache / "contents.npy").read_bytes())
    raw[-1] ^= 1
    (bench.cache / "contents.npy").write_bytes(raw)
    bench.prepare(load_autoencoder=never)
    (bench.data / NAMES[0]).unlink()
    capsys.readouterr()
    bench.check(bench.prepare())
    assert "images have changed; 9 of 9 images to encode" in capsys.readouterr().err, "all again"


def test_a_crew_encodes_a_range_of_rows_each(bench):
    whole = np.array(bench.prepare(mirrored=True).moments)
    catalog, cache = bench.catalog(), bench.cache.with_name("crewed")
    barrier, caches = threading.Barrier(3), {}

    def work(index):
        caches[index] = prepare_latents(
            catalog,
            cache,
            vae_digest="a",
            resolution=RESOLUTION,
            batch_size=BATCH,
            mirrored=True,
            load_autoencoder=bench.load,
            quiet=True,
            processes=ProcessGroup(index, 3, barrier.wait),
        )

    workers = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert set(caches) == {0, 1, 2}, f"only {set(caches)} of 3 came back"
    for found in caches.values():
        np.testing.assert_allclose(found.moments, whole, atol=2e-3, err_msg="other moments")
    left = sorted(path.name for path in cache.iterdir())
    assert left == [".lock", "contents.npy", "index.json", "moments.npy"], f"remains: {left}"


# --- Damaged and half-written ---------------------------------------------------------------


def truncate(cache):
    with open(cache / "moments.npy", "r+b") as stream:
        stream.truncate(300)


def flip_bit(cache):
    raw = bytearray((cache / "moments.npy").read_bytes())
    raw[-5] ^= 4
    (cache / "moments.npy").write_bytes(raw)


def another_shape(cache):
    np.save(cache / "moments.npy", np.zeros((COUNT, 2, 4), np.float16))
    index = json.loads((cache / "index.json").read_text())
    index["moments_size"] = (cache / "moments.npy").stat().st_size
    index["moments_sha256"] = file_digest(cache / "moments.npy")
    (cache / "index.json").write_text(json.dumps(index))


def text_instead(cache):
    another_shape(cache)
    index = json.loads((cache / "index.json").read_text())
    (cache / "moments.npy").write_bytes(b"x" * index["moments_size"])
    index["moments_sha256"] = file_digest(cache / "moments.npy")
    (cache / "index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda cache: (cache / "index.json").unlink(), "half-written"),
        (lambda cache: (cache / "moments.npy").unlink(), "half-written (no moments)"),
        (lambda cache: (cache / "index.json").write_bytes(b'{"format": 1, \xff'), "its index is"),
        (lambda cache: (cache / "index.json").write_text("[]"), "its index is damaged"),
        (lambda cache: (cache / "index.json").write_text('{"format": 9}'), "another version"),
        (truncate, "damaged moments file (300 bytes"),
        (flip_bit, "damaged moments file (its bytes have changed)"),
        (another_shape, "damaged moments file (it holds float16 (10, 2, 4))"),
        (text_instead, "damaged moments file"),
    ],
)
def test_damage_is_seen_said_and_mended(bench, capsys, damage, reason):
    bench.prepare()
    damage(bench.cache)
    capsys.readouterr()
    cache = bench.prepare()
    error = capsys.readouterr().err
    assert reason in error, f"the damage is named: {error!r}"
    assert bench.encoded == 3, "nothing of a damaged cache is used"
    bench.check(cache)


def test_interrupted_encoding_is_never_taken_for_complete(bench, capsys):
    bench.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        bench.prepare()
    assert not (bench.cache / "moments.npy").exists(), "no moments under the final name"
    assert not (bench.cache / "index.json").exists(), "no index"
    bench.fail_after = None
    capsys.readouterr()
    bench.check(bench.prepare())
    assert bench.encoded == 3, "without noted progress all is encoded again"
    assert "half-written (an encoding was interrupted)" in capsys.readouterr().err, "why"


@pytest.mark.parametrize("mirrored", [False, True])
def test_interrupted_encoding_goes_on(bench, capsys, monkeypatch, mirrored):
    monkeypatch.setattr(encode, "SAVE_SECONDS", -1)
    bench.fail_after = 2 * (1 + mirrored)
    with pytest.raises(KeyboardInterrupt):
        bench.prepare(mirrored=mirrored)
    bench.fail_after = None
    capsys.readouterr()
    cache = bench.prepare(mirrored=mirrored)
    assert bench.encoded == 1 + mirrored, "one batch was left"
    error = capsys.readouterr().err
    assert "2 of 10 images to encode, 8 were already before" in error, f"it says so: {error!r}"
    bench.check(cache)
    if mirrored:
        bench.check(cache, mirrored=True)


def test_progress_on_other_images_is_not_continued(bench, monkeypatch):
    monkeypatch.setattr(encode, "SAVE_SECONDS", -1)
    bench.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        bench.prepare()
    bench.fail_after = None
    save(bench.data / NAMES[0], 55)
    bench.check(bench.prepare())
    assert bench.encoded == 3, "an image that was encoded has changed: all again"


def test_interrupted_update_leaves_the_old_cache_whole(bench, monkeypatch):
    bench.prepare()
    bench.fail_after = 0
    with pytest.raises(KeyboardInterrupt):
        bench.prepare(vae_digest="b")
    bench.check(bench.prepare(load_autoencoder=never))


KILLED = """
import os, signal, sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np
from latentddpm.data.latents import encode as encoding
from latentddpm.data.latents.cache import prepare_latents
from latentddpm.data.catalog.scan import open_catalog

data, cache, kill_at = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
calls = 0
def encode(images):  # 8 numbers of each quarter; real enough to tell images apart
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    quarters = images.reshape(len(images), 2, 8, 2, 8, 3).mean((2, 4))
    return np.concatenate([quarters, quarters, quarters[..., :2]], -1)
encoding._compiled = lambda autoencoder: encode
encoding.SAVE_SECONDS = -1
model = SimpleNamespace(downsample_factor=8, latent_channels=4, check_size=lambda *size: None)
catalog = open_catalog(data, cache.with_name("catalog"), quiet=True)
prepare_latents(catalog, cache, vae_digest="a", load_autoencoder=lambda: model,
                        resolution=16, batch_size=3, quiet=True)
assert "keras" not in sys.modules and "tensorflow" not in sys.modules, "not needed here"
print(calls)
"""


def test_killed_process_leaves_no_lie(bench):
    def run(cache, kill_at):
        command = [sys.executable, "-c", KILLED, str(bench.data), str(cache), str(kill_at)]
        return subprocess.run(
            command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=600
        )

    whole = bench.cache.with_name("whole")
    done = run(whole, 0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", ""), f"quiet: {done}"
    assert run(bench.cache, 3).returncode == -signal.SIGKILL, "the test kills"
    assert not (bench.cache / "index.json").exists(), "no index before the end"
    done = run(bench.cache, 0)
    assert (done.returncode, done.stdout) == (0, "2\n"), f"two of four batches were left: {done}"
    same = (bench.cache / "moments.npy").read_bytes() == (whole / "moments.npy").read_bytes()
    assert same, "the same bytes as without the kill"


def test_full_disk_is_an_os_error_and_leaves_nothing(bench):
    bench.catalog()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            bench.prepare(quiet=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = [path.name for path in bench.cache.iterdir()]
    assert left == [".lock"], f"nothing unfinished remains: {left}"
    assert bench.encoded == 0, "it is told before anything is encoded"


def test_two_builders_take_turns(bench, capsys):
    results = []
    with wait_for_lock(_made(bench.cache), "latents cache", True):
        thread = threading.Thread(target=lambda: results.append(bench.prepare()))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive(), "the second waits for the first"
        assert bench.encoded == 0, "and touches nothing meanwhile"
    thread.join(30)
    bench.check(results[0])
    assert "waiting for another process" in capsys.readouterr().err, "the wait is told"


def _made(folder):
    folder.mkdir()
    return folder


# --- Bad input ------------------------------------------------------------------------------


def test_bad_input_is_named(bench):
    with pytest.raises(UserError, match=r"dtype: 'float8' .*'float16'"):
        bench.prepare(dtype="float8")
    with pytest.raises(UserError, match="nearest valid: 16 or 24"):
        bench.prepare(resolution=20)
    catalog = bench.catalog()
    settings = {"vae_digest": "a", "load_autoencoder": bench.load, "resolution": RESOLUTION}
    (bench.data / NAMES[2]).write_bytes((bench.data / NAMES[0]).read_bytes()[:200])
    with pytest.raises(UserError, match=rf"{NAMES[2]}: .*mend or remove"):
        prepare_latents(catalog, bench.cache, **settings)
    (bench.data / NAMES[2]).unlink()
    with pytest.raises(UserError, match=rf"{NAMES[2]}.*No such file.*mend or remove"):
        prepare_latents(catalog, bench.cache, **settings)
    bench.cache = bench.data / NAMES[0]
    with pytest.raises(UserError, match="is a file"):
        prepare_latents(catalog, bench.cache, **settings)


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "not finite"), (7e4, "70000 exceed float16")]
)
def test_moments_that_cannot_be_kept_are_refused(bench, monkeypatch, value, reason):
    def spoiled(images):
        moments = np.zeros((len(images), 2, 2, 8), np.float32)
        moments[1, 0, 0, 0] = value
        return moments

    monkeypatch.setattr(encode, "_compiled", lambda model: spoiled)
    with pytest.raises(UserError, match=f"{NAMES[1]}: .*{reason}"):
        bench.prepare()
    assert not (bench.cache / "index.json").exists(), "nothing is left to be trusted"


def test_quiet_is_silent(bench, capsys):
    bench.prepare(quiet=True)
    captured = capsys.readouterr()
    assert captured.out + captured.err == "", f"not a word: {captured}"


def test_user_files_in_the_cache_folder_stay(bench):
    bench.cache = bench.data  # the worst choice
    bench.prepare()
    bench.prepare(vae_digest="b")
    for name in NAMES:
        assert (bench.data / name).is_file(), f"{name} was deleted"
