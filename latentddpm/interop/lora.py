"""LoRA, low-rank adaptation (Hu 2022): a small change of the weights of a large network.

    y = x (W + α/r · A B),   A (in, r), B (r, out),   W is frozen

Training adds A and B to the projections of the UNet's attention, and where asked to convolutions
of its residual blocks (LoCon), with `enable_lora` of Keras's layers. A convolution's A is one of
the same size to r channels, its B a 1×1 convolution. B starts at zero, so the network is unchanged
at first. A is drawn from ±1/√in, as in PEFT and kohya's scripts, so that their learning rates can
be used (Keras's default is 2.4 times as wide).

Files are safetensors with kohya's names, which diffusers and the common user interfaces read:

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight  (r, in)
    … .lora_up.weight  (out, r)       … .alpha  ()

What is read besides is in `interop.lora_file`; `interop.lora_merge` merges it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors.numpy import save

from latentddpm.errors import check_choice
from latentddpm.interop.diffusers.networks import rows_of
from latentddpm.interop.diffusers.weight_map import LINEAR, to_theirs
from latentddpm.interop.diffusers.weights import variable
from latentddpm.interop.lora_merge import stem_of
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import freeze
from latentddpm.utils.files import atomic_path

CONVOLUTIONS = ("conv1", "conv2", "shortcut")
"""Convolutions of a residual block that can be trained."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Projection:
    """Projection: a linear map of a UNet, in a layer of Keras.

    Attributes:
        stem: its name in kohya's files.
        path: of its variables, see `interop.diffusers.weight_map`.
        shape: (out, in), as in PyTorch; (out, in, h, w) if it is a convolution there.
        layer: the dense layer or convolution.
    """

    stem: str
    path: str
    shape: Shape
    layer: keras.layers.Layer

    @property
    def name(self) -> str:
        """Last part of the path, such as "query"."""
        return self.path.removesuffix("/conv").rpartition("/")[2]

    @property
    def trainable(self) -> bool:
        """True for what a LoRA may be trained of."""
        return "attention" in self.path.partition("/")[0] or self.name in CONVOLUTIONS

    def halves(self) -> dict[str, np.ndarray]:
        """A and B as in PyTorch, by their roles in kohya's files."""
        down, up = (
            keras.ops.convert_to_numpy(kernel)
            for kernel in (self.layer.lora_kernel_a, self.layer.lora_kernel_b)
        )
        if down.ndim > 2:
            return {"lora_down": to_theirs(down, "conv"), "lora_up": up.T[:, :, None, None]}
        ones = self.shape[2:]
        return {
            "lora_down": down.T.reshape(down.T.shape + ones),
            "lora_up": up.T.reshape(up.T.shape + ones),
        }


def add_lora(unet: UNet, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze a UNet, and add A and B to some of its layers.

    A is drawn with Keras's global seed.

    Args:
        unet: to be trained.
        rank: r, at least 1.
        alpha: α.
        targets: names of projections: "query", "key", "value", "out"; in a conditional UNet also
            "proj_in", "proj_out", "ff_in", "ff_out" of its transformer blocks; "conv1", "conv2",
            "shortcut" of its residual blocks.

    Raises:
        UserError: the UNet has no projection of one of these names.
    """
    freeze(unet)
    known = [one for one in _projections(unet) if one.trainable]
    names = list(dict.fromkeys(one.name for one in known))
    for target in targets:
        check_choice("lora.targets", target, names)
    for one in known:
        if one.name in targets:
            uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")  # ± 1/√in
            one.layer.enable_lora(rank, lora_alpha=alpha, a_initializer=uniform)


def save_lora(
    unet: UNet, path: str | Path, metadata: Mapping[str, Any], storage: str = "float32"
) -> None:
    """Write the A and B of a UNet to a LoRA file, atomically; equal weights give equal bytes.

    Args:
        unet: after `add_lora`.
        path: of the file.
        metadata: name → value, for the header of the file.
        storage: type of A and B in the file, one of `choices.STORAGE`.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {}
    for one in _projections(unet):
        if one.trainable and one.layer.lora_enabled:
            for half, matrix in one.halves().items():
                tensors[f"{one.stem}.{half}.weight"] = np.ascontiguousarray(matrix, storage)
            tensors[f"{one.stem}.alpha"] = np.array(one.layer.lora_alpha, "float32")
    header = {key: str(value) for key, value in metadata.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(in_order(save(tensors, {"format": "pt", **header})))


def in_order(file: bytes) -> bytes:
    """Bytes of a safetensors file with a sorted header; the library does not sort metadata.

    Args:
        file: as the library makes it.
    """
    size = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + file[8 + size :]


def _projections(unet: UNet) -> Iterator[Projection]:
    """Projections of a UNet: all its linear maps."""
    for row in rows_of(unet):
        if row.layout in LINEAR:
            path = row.path.removesuffix("/kernel")
            yield Projection(stem_of(row.key), path, row.shape, variable(unet, path))
