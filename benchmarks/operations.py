"""Forms of the same operation, under the kernels that TensorFlow may have.

    python benchmarks/operations.py [--repeats 9] [--kernels onednn avx2 eigen] [--only norm]

    upsample    nearest ×2 and a 3×3 convolution: one transposed convolution (ours), both as they
                are, or four 2×2 convolutions
    norm        group norm: ours, Keras's
    attention   ours, Keras's einsum, ours in blocks of 16 Mi scores; the gradient that keeps the
                scores, and the one that does not (both of ours)
    heads       queries, keys and values by three products (ours), or by one
    row         dense layer of one row: a product (ours), or the sum of a product by element

Each set of kernels is a process of its own, for TensorFlow reads its switches once: oneDNN as it
comes; oneDNN without AVX-512 (`ONEDNN_MAX_CPU_ISA=AVX2`); and TensorFlow's own Eigen kernels
(`TF_ENABLE_ONEDNN_OPTS=0`), which have no such switch and are compiled for AVX and choose no
others at run time. The forms take turns; times are the best of all repeats in CPU milliseconds of
the process, which other work on the machine disturbs least, and in brackets by the clock.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

KERNELS = {
    "onednn": {"TF_ENABLE_ONEDNN_OPTS": "1"},
    "avx2": {"TF_ENABLE_ONEDNN_OPTS": "1", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "eigen": {"TF_ENABLE_ONEDNN_OPTS": "0"},
}
Form = Callable[..., Any]


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def upsample(side: int, channels: int, batch: int) -> tuple[dict[str, Form], list[np.ndarray]]:
    import tensorflow as tf
    from keras import ops

    from latentddpm.models.resample import Upsample

    layer = Upsample(channels)
    layer.build((batch, side, side, channels))

    def separate(inputs: Any) -> Any:
        return layer.conv(ops.repeat(ops.repeat(inputs, 2, axis=1), 2, axis=2))

    def four(inputs: Any) -> Any:
        kernel = layer.conv.conv.kernel
        first = (
            tf.stack([kernel[0], kernel[1] + kernel[2]]),
            tf.stack([kernel[0] + kernel[1], kernel[2]]),
        )
        parts = []
        for row in (0, 1):
            for column in (0, 1):
                rows = first[row]
                both = (
                    tf.stack([rows[:, 0], rows[:, 1] + rows[:, 2]], 1),
                    tf.stack([rows[:, 0] + rows[:, 1], rows[:, 2]], 1),
                )[column]
                pads = ((0, 0), (1 - row, row), (1 - column, column), (0, 0))
                parts.append(tf.nn.conv2d(tf.pad(inputs, pads), both, 1, "VALID"))
        return tf.nn.depth_to_space(tf.concat(parts, -1), 2) + layer.conv.conv.bias

    forms = {"transposed": layer, "repeat + convolution": separate, "four 2×2": four}
    return forms, [normal(batch, side, side, channels)]


def norm(side: int, channels: int, batch: int) -> tuple[dict[str, Form], list[np.ndarray]]:
    import keras

    from latentddpm.models.layers import GroupNormalization

    forms = {
        "moments of channels": GroupNormalization(32, epsilon=1e-5),
        "Keras": keras.layers.GroupNormalization(32, epsilon=1e-5),
    }
    for layer in forms.values():
        layer.build((batch, side, side, channels))
    return forms, [normal(batch, side, side, channels)]


def attention(length: int, keys: int, width: int, batch: int) -> tuple[dict, list[np.ndarray]]:
    from keras import ops

    from latentddpm.models import attention as module

    heads = 8

    def limited(kept: int, most: int) -> Form:
        def run(*inputs: Any) -> Any:  # the limits count while tracing
            module.KEPT_SCORES, module.MOST_SCORES = kept, most
            return module.attention(*inputs, heads)

        return run

    def einsum(*inputs: Any) -> Any:
        query, key, value = (
            ops.reshape(one, (batch, one.shape[1], heads, width // heads)) for one in inputs
        )
        mixed = ops.dot_product_attention(query, key, value)
        return ops.reshape(mixed, (batch, length, width))

    forms = {
        "keeps scores": limited(1 << 60, 1 << 60),
        "keeps none": limited(0, 1 << 60),
        "blocks of 16 Mi": limited(0, 1 << 24),
        "einsum": einsum,
    }
    if batch * heads * length * keys <= 1 << 24:
        del forms["blocks of 16 Mi"]
    return forms, [normal(batch, size, width) for size in (length, keys, keys)]


def heads(length: int, width: int, batch: int) -> tuple[dict[str, Form], list[np.ndarray]]:
    from keras import ops

    kernels = [normal(width, width) for _ in range(3)]

    def three(tokens: Any, *kernels: Any) -> Any:
        return sum(ops.square(ops.matmul(tokens, kernel)) for kernel in kernels)

    def one(tokens: Any, *kernels: Any) -> Any:
        products = ops.matmul(tokens, ops.concatenate(kernels, axis=-1))
        return sum(map(ops.square, ops.split(products, 3, axis=-1)))

    return {"three products": three, "one product": one}, [normal(batch, length, width), *kernels]


def row(width: int, units: int) -> tuple[dict[str, Form], list[np.ndarray]]:
    from keras import ops

    def product(inputs: Any, kernel: Any) -> Any:
        return ops.matmul(inputs, kernel)

    def elements(inputs: Any, kernel: Any) -> Any:
        return ops.sum(ops.transpose(inputs) * kernel, axis=0, keepdims=True)

    return {"product": product, "sum by element": elements}, [
        normal(1, width),
        normal(width, units),
    ]


CASES = {
    "upsample": (upsample, [(64, 256, 1), (32, 512, 1), (16, 64, 16)]),
    "norm": (norm, [(256, 128, 1), (64, 320, 2), (16, 64, 16)]),
    "attention": (attention, [(256, 256, 64, 16), (256, 77, 64, 16), (4096, 4096, 320, 1)]),
    "heads": (heads, [(256, 64, 16), (4096, 320, 2), (64, 256, 16)]),
    "row": (row, [(320, 1280), (1280, 1280)]),
}


def times(forms: dict[str, Form], inputs: list[np.ndarray], gradient: bool, repeats: int) -> str:
    """Best CPU milliseconds of each form, which take turns; by the clock in brackets."""
    import tensorflow as tf

    inputs = [tf.constant(array) for array in inputs]

    def compiled(form: Form) -> Form:
        def run(*inputs: Any) -> Any:
            if not gradient:
                return form(*inputs)
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                loss = tf.reduce_sum(tf.square(form(*inputs)))
            return tape.gradient(loss, [*inputs, *tape.watched_variables()])

        return tf.function(run, autograph=False)

    functions = {name: compiled(form) for name, form in forms.items()}
    outputs = {name: function(*inputs) for name, function in functions.items()}
    if not gradient:
        expected, *others = outputs.values()
        for one in others:
            scale = float(tf.reduce_max(tf.abs(expected)))
            assert float(tf.reduce_max(tf.abs(one - expected))) <= 2e-4 * scale, "forms differ"
    best = {name: [float("inf")] * 2 for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            before = time.process_time(), time.perf_counter()
            function(*inputs)
            spent = time.process_time() - before[0], time.perf_counter() - before[1]
            best[name] = [min(pair) for pair in zip(best[name], spent, strict=True)]
    return " | ".join(
        f"{name} {1e3 * cpu:.4g} ({1e3 * wall:.4g})" for name, (cpu, wall) in best.items()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--cell", choices=KERNELS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.cell:
        for kernels in options.kernels:
            environment = {**os.environ, **KERNELS[kernels], "TF_CPP_MIN_LOG_LEVEL": "3"}
            command = [sys.executable, __file__, *sys.argv[1:], "--cell", kernels]
            subprocess.run(command, env=environment, check=True)
        return
    os.environ["KERAS_BACKEND"] = "tensorflow"
    for name in options.only:
        make, cases = CASES[name]
        for case in cases:
            for gradient in (False, True):
                what = "with gradients" if gradient else "forward"
                line = times(*make(*case), gradient, options.repeats)
                size = "×".join(map(str, case))
                print(f"{options.cell:6} {name} {size}, {what}: {line}", flush=True)


if __name__ == "__main__":
    main()
