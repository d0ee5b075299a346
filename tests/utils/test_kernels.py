"""oneDNN or not, as a function of the command, the processor and the environment."""

import pytest

from latentddpm.utils.machine import kernels

AVX2 = {"fpu", "sse4_2", "avx", "avx2", "fma"}
AVX512 = {*AVX2, "avx512f", "avx512bw"}  # without instructions for neural networks


@pytest.mark.parametrize("flags", [AVX2, AVX512])
def test_training_switches_it_on_where_tensorflow_would_not(flags):
    added = kernels.choose_kernels(True, flags, {"PATH": "/bin"})
    assert added == {"TF_ENABLE_ONEDNN_OPTS": "1"}, f"{added}"
    assert kernels.choose_kernels(False, flags, {}) == {}, "expected TensorFlow's own to draw"


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("flags", "environment"),
    [
        *(({*AVX2, flag}, {}) for flag in sorted(kernels.NATIVE)),
        ({*AVX512, "avx512_vnni", "amx_bf16"}, {}),
        (AVX2, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
        (AVX2, {"TF_ENABLE_ONEDNN_OPTS": "1"}),
        (AVX2, {"TF_ENABLE_ONEDNN_OPTS": ""}),
        ({"fpu", "sse4_2"}, {}),
        (set(), {}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_else_nothing_is_changed(training, flags, environment):
    added = kernels.choose_kernels(training, flags, environment)
    assert added == {}, f"expected TensorFlow's choice, or the user's: {added}"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    monkeypatch.setattr(kernels, "CPUINFO", tmp_path / "cpuinfo")
    return tmp_path / "cpuinfo"


def test_flags_and_name_are_linux_s(cpuinfo):
    cpuinfo.write_text(
        "processor\t: 0\nmodel name\t: AMD EPYC 7B12: x\nvmx flags\t: amx\nflags\t\t: fpu avx2\n"
        "processor\t: 1\nflags\t\t: other\n",
        "utf-8",
    )
    assert kernels.processor_flags() == {"fpu", "avx2"}
    assert kernels.processor_name() == "AMD EPYC 7B12: x"


@pytest.mark.parametrize("text", [None, "", "Features\t: fp asimd bf16\n", "flags", "\x00\n"])
def test_where_linux_does_not_name_them_there_are_none(text, cpuinfo):
    if text is not None:
        cpuinfo.write_text(text, "utf-8")
    assert kernels.processor_flags() == frozenset(), f"{text!r}"
    assert kernels.processor_name(), "expected some name for messages"


def test_a_folder_in_its_place_is_no_error(cpuinfo):
    cpuinfo.mkdir()
    assert kernels.processor_flags() == frozenset()
