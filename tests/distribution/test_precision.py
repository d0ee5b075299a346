"""`training.precision: auto`: by the units of GPUs, by the speed of a processor."""

import json
import math
import os

import pytest

from latentddpm.distribution import precision
from latentddpm.distribution.precision import (
    cached_speed,
    check_device,
    choose_on_gpus,
    choose_on_processor,
    choose_precision,
    measure_speed,
    why_not,
)
from latentddpm.errors import UserError


def gpu(*capability, name="NVIDIA A100"):
    return {"device_name": name, **({"compute_capability": capability} if capability else {})}


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ([gpu(8, 0)], "bfloat16"),
        ([gpu(9, 0)], "bfloat16"),
        ([gpu(12, 0)], "bfloat16"),
        ([gpu(8, 6), gpu(8, 9)], "bfloat16"),
        ([gpu(7, 5)], "float32"),
        ([gpu(7, 0)], "float32"),
        ([gpu(8, 0), gpu(7, 5)], "float32"),
        ([gpu()], "float32"),
        ([gpu(9, 0), {}], "float32"),
    ],
    ids=str,
)
def test_gpus_by_their_compute_capability(details, expected):
    choice = choose_on_gpus(details)
    assert choice.precision == expected, f"{details}: {choice}, expected {expected}"


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ([gpu(9, 0)], "float16"),
        ([gpu(7, 5)], "float16"),
        ([gpu(7, 0)], "float16"),
        ([gpu(6, 1)], "float32"),
        ([gpu(9, 0), gpu(6, 1)], "float32"),
        ([gpu()], "float32"),
    ],
    ids=str,
)
def test_without_training_gpus_compute_in_float16(details, expected):
    choice = choose_on_gpus(details, training=False)
    assert choice.precision == expected, f"{details}: {choice}, expected {expected}"


# --- What a device cannot compute in --------------------------------------------------------


def test_what_tensorflow_computes_in_here_is_accepted():
    for half in ("bfloat16", "float16"):
        if not why_not(half):
            assert choose_precision(half) == half
    assert why_not("float32") == "", "expected float32 everywhere"
    if not precision.tf.config.list_physical_devices("GPU"):
        assert choose_precision("auto") == "float32", "expected float32 on a processor"
    assert why_not("int32"), "TensorFlow convolves no whole numbers: expected a reason"


@pytest.mark.parametrize(
    ("asked", "unable", "nearest"),
    [
        ("float16", {"float16"}, "expected bfloat16 or float32"),
        ("bfloat16", {"bfloat16"}, "expected float16 or float32"),
        ("bfloat16", {"bfloat16", "float16"}, "expected float32"),
    ],
)
def test_a_precision_that_a_device_lacks_is_refused_with_the_nearest(asked, unable, nearest):
    def reason(precision):
        return "no kernel" if precision in unable else ""

    with pytest.raises(UserError) as refusal:
        check_device(asked, reason)
    expected = f"precision: this device cannot compute in {asked} (no kernel); {nearest}"
    assert str(refusal.value) == expected
    assert check_device("float32", reason) == "float32"


def test_a_gpu_is_named():
    assert choose_on_gpus([gpu(9, 0, name="H200")]).reason == "compute capability 9.0 (H200)"
    assert choose_on_gpus([{}]).reason == "compute capability unknown (GPU)"


@pytest.mark.parametrize(
    ("speed", "expected"),
    [(1.87, "bfloat16"), (1.1, "bfloat16"), (1.05, "float32"), (0.17, "float32"), (0, "float32")],
)
def test_a_processor_by_its_speed(speed, expected):
    choice = choose_on_processor(speed, "AMD EPYC")
    assert choice.precision == expected, f"{speed}: {choice}, expected {expected}"
    words = f"{speed:.2f}× as fast" if speed else "no bfloat16"
    assert words in choice.reason, f"{choice.reason!r}"
    assert choice.reason.endswith("on this AMD EPYC"), f"{choice.reason!r}"


# --- The cache ------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "latentddpm" / "bfloat16.json"


def never():
    raise AssertionError("measured, expected the cached speed")


def test_it_is_measured_once(cache):
    assert cached_speed(lambda: 1.87654) == 1.877
    assert cached_speed(never) == 1.877, "expected what was measured"
    (key,) = json.loads(cache.read_text("utf-8"))
    assert precision.processor_name() in key, f"{key!r}: names no processor"
    assert precision.tf.__version__ in key, f"{key!r}: names no version"


def test_other_kernels_are_measured_anew(cache, monkeypatch):
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert cached_speed(lambda: 0.1) == 0.1
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    assert cached_speed(lambda: 1.5) == 1.5, "expected other kernels to have a speed of their own"
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert cached_speed(never) == 0.1, "the second answer removed the first"


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "3", "null", '"x"', "\x00", '{"KEY": "fast"}', '{"KEY": null}'),
        *('{"KEY": NaN}', '{"KEY": -1}', '{"KEY": 1e300}', '{"KEY": Infinity}', '{"KEY": [1]}'),
    ],
)
def test_a_bad_cache_is_measured_over(text, cache):
    cache.parent.mkdir()
    cache.write_text(text.replace("KEY", precision._key()), "utf-8")
    assert cached_speed(lambda: 1.5) == 1.5, f"{text!r}: expected a new measurement"
    assert cached_speed(never) == 1.5, f"{text!r}: expected it to be written"


def test_bytes_that_are_no_text(cache):
    cache.parent.mkdir()
    cache.write_bytes(b"\xff\xfe{")
    assert cached_speed(lambda: 1.5) == 1.5


def test_a_cache_that_cannot_be_written_is_as_good_as_none(cache):
    cache.parent.write_text("a file where the folder should be", "utf-8")
    assert [cached_speed(lambda: 1.5), cached_speed(lambda: 1.6)] == [1.5, 1.6]


def test_a_folder_in_its_place(cache):
    cache.mkdir(parents=True)
    assert cached_speed(lambda: 1.5) == 1.5


def test_no_home_at_all(monkeypatch):
    for name in ("XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without a passwd entry
    assert cached_speed(lambda: 1.5) == 1.5


def test_a_relative_cache_folder_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert precision.cache_folder() == tmp_path / "home" / ".cache" / "latentddpm"


# --- The measurement ------------------------------------------------------------------------


def test_the_measurement_is_a_finite_ratio():
    speed = measure_speed()
    assert 0 <= speed < precision.MOST, f"{speed}: expected a ratio"
    assert math.isfinite(speed)


def test_devices_of_this_machine_have_an_answer(cache):
    choice = precision.fastest_precision()
    assert choice.precision in ("float32", "bfloat16"), f"{choice}"
    assert choice == precision.fastest_precision(), "another answer the second time"
