"""Kernels that TensorFlow computes with on a processor: oneDNN's, or its own (Eigen's).

TensorFlow takes oneDNN's by itself only where the processor has instructions for neural networks
(`NATIVE`). Elsewhere `TF_ENABLE_ONEDNN_OPTS` in the environment decides, which is read when
TensorFlow is imported. With AVX2 alone a training step takes half the time with oneDNN, and a
decode twice the time (`docs/benchmarks.md`), so the right choice depends on the command:

    training   oneDNN's
    all else   TensorFlow's own

A variable that the user has set stays as it is. Both compute the same numbers up to rounding.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from pathlib import Path

VARIABLE = "TF_ENABLE_ONEDNN_OPTS"
NATIVE = frozenset(("avx512_vnni", "avx512_bf16", "avx_vnni", "amx_tile", "amx_int8", "amx_bf16"))
"""Flags of a processor, any of which makes TensorFlow switch oneDNN on by itself."""
MEASURED = "avx2"
"""Flag of the processors for which the choice is known to pay."""
CPUINFO = Path("/proc/cpuinfo")


def choose_kernels(
    training: bool, flags: Collection[str], environment: Mapping[str, str]
) -> dict[str, str]:
    """Variables to add to the environment before TensorFlow is imported.

    Args:
        training: gradients will be computed.
        flags: of the processor, see `processor_flags`; none where they are not known.
        environment: so far.
    """
    if VARIABLE in environment or MEASURED not in flags or not NATIVE.isdisjoint(flags):
        return {}
    return {VARIABLE: "1"} if training else {}


def processor_flags() -> frozenset[str]:
    """Flags of this machine's processor, such as "avx2"; none where Linux does not name them."""
    return frozenset(_cpuinfo("flags").split())


def processor_name() -> str:
    """Name of this machine's processor, such as "AMD EPYC", or of its kind, such as "arm64"."""
    return _cpuinfo("model name") or platform.processor() or platform.machine() or "processor"


def _cpuinfo(key: str) -> str:
    """Value of the first line of `CPUINFO` with a key; "" where there is none."""
    try:
        lines = CPUINFO.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ""
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and name.strip() == key:
            return value.strip()
    return ""
