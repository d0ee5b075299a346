"""LoRA, low-rank adaptation (Hu 2022): a small change of the weights of a large network.

    y = x (W + α/r · A B),   A (in, r), B (r, out),   W is frozen

Training adds A and B to the projections of the UNet's attention, with `enable_lora` of Keras's
Dense layers. B starts at zero, so the network is unchanged at first. A is drawn from ±1/√in, as in
PEFT and kohya's scripts, so that their learning rates can be used (Keras's default is 2.4 times as
wide).

Files are safetensors with kohya's names, which diffusers and the common user interfaces read:

    lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight  (r, in)
    … .lora_up.weight  (out, r)       … .alpha  ()

These names are read, and those of PEFT and diffusers (`unet.….lora_A.weight`), also for the text
encoder. Merging adds α/r · A B to the weights once, so a merged network is as fast as before.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save

from latentddpm.errors import UserError, check_choice, nearest
from latentddpm.interop.clip import linear_maps
from latentddpm.interop.diffusers.networks import rows_of
from latentddpm.interop.diffusers.weights import variable
from latentddpm.interop.tensors import DTYPES, TensorFiles, Tensors
from latentddpm.models.functional import freeze
from latentddpm.models.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils.files import atomic_path, file_digest

OF_UNET, OF_TEXT = "lora_unet_", "lora_te_"
LAYOUTS = ("dense", "pointwise")
ROLES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
"""End of a tensor's name → its role: A ("down"), B ("up") or α. The names are those of kohya, of
PEFT, and two earlier ones of diffusers."""
PEFT_METADATA = "lora_adapter_metadata"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Projection:
    """Projection: a linear map of a UNet.

    Attributes:
        stem: its name in kohya's files.
        path: of its variables, see `interop.diffusers.weight_map`.
        shape: (out, in), as in PyTorch; (out, in, 1, 1) if it is a convolution there.
        layer: the Dense layer.
    """

    stem: str
    path: str
    shape: Shape
    layer: keras.layers.Dense

    @property
    def name(self) -> str:
        """Last part of the path, such as "query"."""
        return self.path.rpartition("/")[2]


# --- Training ------------------------------------------------------------------------------


def add_lora(unet: UNet, rank: int, alpha: float, targets: Sequence[str]) -> None:
    """Freeze a UNet, and add A and B to projections of its attention.

    A is drawn with Keras's global seed.

    Args:
        unet: to be trained.
        rank: r, at least 1.
        alpha: α.
        targets: names of projections: "query", "key", "value", "out"; in a conditional UNet also
            "proj_in", "proj_out", "ff_in", "ff_out" of its transformer blocks.

    Raises:
        UserError: the UNet has no projection of one of these names.
    """
    freeze(unet)
    attention = [one for one in _projections(unet) if "attention" in one.path.partition("/")[0]]
    names = list(dict.fromkeys(one.name for one in attention))
    for target in targets:
        check_choice("lora.targets", target, names)
    for one in attention:
        if one.name in targets:
            uniform = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")  # ± 1/√in
            one.layer.enable_lora(rank, lora_alpha=alpha, a_initializer=uniform)


def save_lora(unet: UNet, path: str | Path, metadata: Mapping[str, Any]) -> None:
    """Write the A and B of a UNet to a LoRA file, atomically; equal weights give equal bytes.

    Args:
        unet: after `add_lora`.
        path: of the file.
        metadata: name → value, for the header of the file.

    Raises:
        OSError: the file cannot be written.
    """
    tensors = {}
    for one in _projections(unet):
        if one.layer.lora_enabled:
            halves = {"lora_down": one.layer.lora_kernel_a, "lora_up": one.layer.lora_kernel_b}
            for half, kernel in halves.items():
                matrix = np.ascontiguousarray(keras.ops.convert_to_numpy(kernel).T, "float32")
                tensors[f"{one.stem}.{half}.weight"] = matrix.reshape(matrix.shape + one.shape[2:])
            tensors[f"{one.stem}.alpha"] = np.array(one.layer.lora_alpha, "float32")
    header = {key: str(value) for key, value in metadata.items()}
    with atomic_path(path) as temporary:
        temporary.write_bytes(_in_order(save(tensors, {"format": "pt", **header})))


def _in_order(file: bytes) -> bytes:
    """Bytes of a safetensors file with a sorted header; the library does not sort metadata."""
    size = int.from_bytes(file[:8], "little")
    header = json.dumps(json.loads(file[8 : 8 + size]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # tensors start at a multiple of 8
    return len(header).to_bytes(8, "little") + header + file[8 + size :]


# --- Using ---------------------------------------------------------------------------------


def merge_lora(model: LatentDiffusion, path: str | Path, scale: float = 1.0) -> None:
    """Add scale · α/r · A B of a LoRA file to the weights of a model.

    A file that was trained on another model with the same shapes is used with a warning, because
    LoRAs of Stable Diffusion are meant for fine-tuned versions of it too. Shapes are checked
    before any weight is changed.

    Args:
        model: whose weights are changed; `model.loras` gets an entry for the file.
        path: of the LoRA file (`.safetensors`).
        scale: of the change; 0 is none, 1 that of the training.

    Raises:
        UserError: no LoRA file, or one for other layers or shapes than those of the model.
    """
    tensors = TensorFiles([path])
    metadata = read_lora_metadata(path)
    kernels = {one.stem: (one.shape[:2], one.layer.kernel) for one in _projections(model.unet)}
    if model.text_encoder is not None:
        for name, shape, kernel in linear_maps(model.text_encoder):
            kernels[OF_TEXT + f"text_model.{name}".replace(".", "_")] = shape, kernel
    changes = _match_tensors(tensors, {stem: shape for stem, (shape, _) in kernels.items()})
    made_for = metadata.get("base_digest")
    if made_for and model.digest and made_for != model.digest:
        name = metadata.get("base_model", "?")
        warnings.warn(
            f"{path}: was trained on another model, {name} ({made_for}), than this one "
            f"({model.digest})",
            stacklevel=2,
        )
    for stem, keys in changes.items():
        down, up = (
            tensors.read(keys[role]).astype("float32").reshape(tensors.shape(keys[role])[:2])
            for role in ("down", "up")
        )
        factor = scale * _alpha(tensors, keys, metadata, len(down)) / len(down)
        kernel = kernels[stem][1]
        kernel.assign_add(factor * (up @ down).T.reshape(kernel.shape))
    name = Path(path).name
    model.loras.append({"file": name, "sha256": file_digest(path), "scale": scale})


def read_lora_metadata(path: str | Path) -> dict[str, str]:
    """Metadata in the header of the safetensors file at `path`: name → text."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def _match_tensors(tensors: Tensors, shapes: Mapping[str, Shape]) -> dict[str, dict[str, str]]:
    """Names of the tensors of a LoRA file: linear map → role → name.

    Raises:
        UserError: a name that is not of a LoRA, or of an unknown linear map; a missing A or B;
            a wrong shape or type.
    """
    found: dict[str, dict[str, str]] = {}
    for key in tensors.keys():  # noqa: SIM118 (it is no mapping)
        stem, role = _parse(key)
        if role is None:
            raise UserError(f"{tensors.name}: {key!r} is not of a LoRA of linear layers")
        if stem not in shapes:
            hint = nearest(stem, shapes) if len(stem) < 200 else ""
            raise UserError(f"{tensors.name}: {key!r} changes what this model does not have{hint}")
        found.setdefault(stem, {})[role] = key
    for stem, keys in found.items():
        for role in ("down", "up"):
            if role not in keys:
                raise UserError(f"{tensors.name}: {next(iter(keys.values()))!r}: no {role} to it")
            if tensors.dtype(keys[role]) not in DTYPES:
                raise UserError(
                    f"{tensors.name}: {keys[role]!r} is {tensors.dtype(keys[role])}, expected "
                    f"one of {', '.join(DTYPES)}"
                )
        outputs, inputs = shapes[stem]
        down, up = (tensors.shape(keys[role]) for role in ("down", "up"))
        rank = down[0] if down else 0
        for role, shape, wanted in (("down", down, (rank, inputs)), ("up", up, (outputs, rank))):
            if shape not in (wanted, (*wanted, 1, 1)) or not rank:
                raise UserError(
                    f"{tensors.name}: {keys[role]!r} is {shape}, this model makes it {wanted}"
                )
    if not found:
        raise UserError(f"{tensors.name}: holds nothing")
    return found


def _parse(key: str) -> tuple[str, str | None]:
    """Kohya's name of the linear map that a tensor belongs to, and the tensor's role."""
    for end, role in ROLES.items():
        if key.endswith(f".{end}"):
            stem = key[: -len(end) - 1]
            stem = re.sub(r"^text_encoder\.(?!text_model\.)", "text_encoder.text_model.", stem)
            stem = re.sub(r"^unet\.", OF_UNET, re.sub(r"^text_encoder\.", OF_TEXT, stem))
            return stem.replace(".", "_"), role
    return key, None


def _alpha(
    tensors: Tensors, keys: Mapping[str, str], metadata: Mapping[str, str], rank: int
) -> float:
    """Scale α: from its own tensor (kohya), from PEFT's metadata, or else the rank."""
    if "alpha" in keys:
        return float(tensors.read(keys["alpha"]).reshape(()))
    part = keys["down"].partition(".")[0]
    try:
        adapter = json.loads(metadata.get(PEFT_METADATA, "{}"))
        return float(adapter.get(f"{part}.lora_alpha", rank))
    except (ValueError, TypeError, AttributeError):
        raise UserError(f"{tensors.name}: {PEFT_METADATA} in its header is malformed") from None


def _projections(unet: UNet) -> Iterator[Projection]:
    """Projections of a UNet: all its linear maps."""
    for row in rows_of(unet):
        if row.layout in LAYOUTS:
            stem = OF_UNET + row.key.removesuffix(".weight").replace(".", "_")
            path = row.path.removesuffix("/kernel")
            yield Projection(stem, path, row.shape, variable(unet, path))
