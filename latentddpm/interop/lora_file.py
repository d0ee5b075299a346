"""LoRA files: which linear map each tensor changes, and how strongly.

    change of W = s · up · down,    s = α/r,    s = α/√r if rank-stabilised (Kalajdzievski 2023)

`down` is (r, in), `up` (out, r). A convolution is linear too (LoCon): `down` is (r, in, h, w),
`up` (out, r, 1, 1), and with a `mid` (r, r, h, w) between them both are 1×1. r is that of the
tensors. α is, in this order:

    NAME.alpha, a tensor                    kohya's scripts, LyCORIS
    the header, `lora_adapter_metadata`     diffusers: `unet.lora_alpha`, `unet.alpha_pattern`,
                                            `unet.use_rslora`; the same for `text_encoder`
    adapter_config.json beside the file     PEFT's `save_pretrained`
    r                                       else

Names are those of kohya's scripts, of PEFT, of three versions of diffusers, and CompVis's for the
layers of Stable Diffusion. What is no LoRA (DoRA, LoHa, LoKr) is refused by its own name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

from latentddpm.errors import UserError, check_choice, check_type, nearest
from latentddpm.interop.tensors import FLOATS, NUMBERS, TensorFiles, check_dtype
from latentddpm.pipeline.model_folder import check_lora
from latentddpm.pipeline.settings import FIELDS
from latentddpm.utils.files import read_json
from latentddpm.utils.stored_weights import check_finite

OF_UNET, OF_TEXT = "lora_unet_", "lora_te_"
ROLES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
"""End of a tensor's name → its role: A ("down"), B ("up"), the matrix between them, or α."""

STYLES = {
    "kohya's scripts": r"lora_(unet|te1?)_.*\.(lora_(down|up|mid)\.weight|alpha)$",
    "LyCORIS": r"lora_(unet|te1?)_.*\.lora_mid",
    "diffusers' attention processors": r".*\.processor\.to_\w+_lora\.",
    "diffusers up to 0.20": r"(unet|text_encoder)\..*\.(lora|lora_linear_layer)\.(down|up)\.",
    "PEFT": r"base_model\.model\.",
    "diffusers": r"(unet|text_encoder)\..*\.lora_[AB]\.",
    "CompVis' layers": r"(model\.)?diffusion_model\.|lora_unet_(input|middle|output)_block",
    "PEFT, of the UNet alone": r"(down_blocks|mid_block|up_blocks|conv_|time_)",
}
"""Style of names that is read → regular expression of the beginning of such a name."""

STRANGERS = {
    "dora_scale": "DoRA (a direction and a length of its own)",
    "lora_magnitude_vector": "DoRA (a direction and a length of its own)",
    "hada_": "LoHa (products of elements)",
    "lokr_": "LoKr (Kronecker products)",
    "oft_": "OFT (rotations)",
    "lora_B.bias": "a LoRA with biases",
    "lora_te2_": "a LoRA of a second text encoder (SDXL)",
}
"""Part of a tensor's name → what its file is."""

PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.")
ADAPTER = re.compile(r"\.lora_(A|B)\.[^.]+\.weight$")
HEADER, CONFIG = "lora_adapter_metadata", "adapter_config.json"
SETTINGS = "generation_settings"
"""Key of the metadata for the settings, as JSON, that a LoRA's images are drawn with."""
PARTS = {OF_UNET: "unet", OF_TEXT: "text_encoder"}
LARGEST = 1e38  # the largest float32 is 3.4e38
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Change:
    """Change of one linear map.

    Attributes:
        keys: role ("down", "up", "mid", "alpha") → name of the tensor.
        strength: factor of up · down.
    """

    keys: Mapping[str, str]
    strength: float


class LoraFile:
    """LoRA file, all of it checked: names, shapes, types, finite numbers.

    Args:
        path: of the file (`.safetensors`).
        shapes: linear maps of the model: kohya's name, such as "lora_unet_conv_in" → shape in
            PyTorch, (out, in) or (out, in, h, w).
        aliases: other names of these maps → kohya's name.

    Attributes:
        metadata: of the header, name → text.
        changes: kohya's name of a linear map → its change.

    Raises:
        UserError: no safetensors file or no LoRA; a tensor that belongs to nothing, has a wrong
            shape or type, or a number that is not finite.
    """

    def __init__(
        self, path: str | Path, shapes: Mapping[str, Shape], aliases: Mapping[str, str]
    ) -> None:
        check_lora(path)
        self._tensors = TensorFiles([path])
        self._shapes = dict(shapes)
        self.metadata = read_lora_metadata(path)
        adapters = _adapters(Path(path), self.metadata)
        self.changes: dict[str, Change] = {}
        for stem, names in self._grouped(aliases).items():
            keys = {role: key for role, (key, _) in names.items()}
            self._check_shapes(stem, keys)
            module = _module(names["down"][1])
            self.changes[stem] = Change(keys, self._strength(stem, keys, adapters, module))
        if not self.changes:
            raise UserError(f"{self._tensors.name}: holds nothing")

    def change(self, stem: str) -> np.ndarray:
        """Change of the linear map `stem` at full strength, float32, in its shape in PyTorch."""
        change, shape = self.changes[stem], self._shapes[stem]
        matrices = {role: self._read(key) for role, key in change.keys.items() if role != "alpha"}
        up = matrices["up"].reshape(len(matrices["up"]), -1)
        down = matrices["down"].reshape(len(matrices["down"]), -1)
        if "mid" in matrices:
            product = np.einsum("or,rshw,si->oihw", up, matrices["mid"], down, optimize=True)
        else:
            product = up @ down
        return (change.strength * product).astype("float32").reshape(shape)

    def check_scale(self, scale: float) -> None:
        """Check that no change, times `scale`, is too large for float32.

        Args:
            scale: factor of all changes.

        Raises:
            UserError: one is; the message names its tensor.
        """
        for stem, change in self.changes.items():
            factors = [abs(scale * change.strength), self._tensors.shape(change.keys["down"])[0]]
            for role, key in change.keys.items():
                if role != "alpha":
                    factors.append(float(np.abs(self._read(key)).max()))
            if math.prod(factors) < LARGEST:  # a bound that is cheap to compute
                continue
            with np.errstate(over="ignore", invalid="ignore"):
                if not np.isfinite(scale * self.change(stem)).all():
                    raise UserError(
                        f"{self._tensors.name}: at scale {scale:g} the change of "
                        f"{change.keys['up']!r} is too large for float32"
                    )

    def _read(self, key: str) -> np.ndarray:
        return self._tensors.read(key, NUMBERS).astype("float32")

    def _grouped(self, aliases: Mapping[str, str]) -> dict[str, dict[str, tuple[str, str]]]:
        """Tensors by linear map and role: their names, and these names without their role."""
        found: dict[str, dict[str, tuple[str, str]]] = {}
        for key in self._tensors.keys():  # noqa: SIM118 (it is no mapping)
            name, role = _role(key)
            kind = next((what for word, what in STRANGERS.items() if word in key), None)
            if kind is not None:
                raise UserError(f"{self._tensors.name}: {key!r} is of {kind}, which is not read")
            if role is None:
                raise UserError(f"{self._tensors.name}: {key!r} is not of a LoRA")
            stem = _stem(name, aliases)
            if stem not in self._shapes:
                hint = nearest(stem, self._shapes) if len(stem) < 200 else ""
                raise UserError(
                    f"{self._tensors.name}: {key!r} changes what this model does not have{hint}"
                )
            roles = found.setdefault(stem, {})
            if role in roles:
                raise UserError(
                    f"{self._tensors.name}: {roles[role][0]!r} and {key!r} are the same"
                )
            roles[role] = key, name
        for roles in found.values():
            for role in ("down", "up"):
                if role not in roles:
                    given = next(iter(roles.values()))[0]
                    raise UserError(f"{self._tensors.name}: {given!r}: no {role} to it")
        return found

    def _check_shapes(self, stem: str, keys: Mapping[str, str]) -> None:
        """Refuse shapes that do not fit the linear map, types, and numbers that are not finite."""
        name, tensors = self._tensors.name, self._tensors
        outputs, inputs, *kernel = self._shapes[stem]
        shapes = {role: tensors.shape(key) for role, key in keys.items()}
        rank, last = (shapes["down"] or (0,))[0], (shapes["up"][1:2] or (0,))[0]
        square = tuple(kernel) or (1, 1)
        if "mid" in keys:
            wanted = {"down": (rank, inputs), "up": (outputs, last), "mid": (last, rank, *square)}
        else:
            wanted = {"down": (rank, inputs, *kernel), "up": (outputs, rank)}
        for role, shape in wanted.items():
            flat = shape if len(shape) == 2 else shape[:2] if square == (1, 1) else None
            if shapes[role] not in (shape, flat, (*(flat or ()), 1, 1)) or 0 in shapes[role]:
                raise UserError(
                    f"{name}: {keys[role]!r} is {shapes[role]}, this model makes it {shape}"
                )
        for role, key in keys.items():
            types = NUMBERS if role == "alpha" else FLOATS
            check_dtype(tensors, key, types)
            if role == "alpha" and math.prod(shapes[role]) != 1:
                raise UserError(f"{name}: {key!r} is {shapes[role]}, expected one number")
            check_finite(self._read(key), name, key)

    def _strength(
        self, stem: str, keys: Mapping[str, str], adapters: Mapping[str, Any], module: str
    ) -> float:
        rank = self._tensors.shape(keys["down"])[0]
        if "alpha" in keys:
            return float(self._read(keys["alpha"]).reshape(())) / rank
        part = next(part for start, part in PARTS.items() if stem.startswith(start))
        adapter = adapters.get(part)
        if adapter is None:
            return 1.0
        try:
            patterns = adapter.get("alpha_pattern") or {}
            pattern = next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)
            alpha = adapter.get("lora_alpha", rank) if pattern is None else patterns[pattern]
            strength = float(alpha) / (math.sqrt(rank) if adapter.get("use_rslora") else rank)
        except (ValueError, TypeError, AttributeError, re.error):
            strength = math.nan
        if not math.isfinite(strength):
            source = f"{HEADER} in its header" if HEADER in self.metadata else CONFIG
            raise UserError(f"{self._tensors.name}: {source} is malformed")
        return strength


def style_of(names: Iterable[str]) -> str:
    """Style of the names in a LoRA file, one of `STYLES`.

    Args:
        names: of its tensors.
    """
    names = list(names)
    ranked = ("LyCORIS", "CompVis' layers", *STYLES)
    return next((s for s in ranked if any(re.match(STYLES[s], name) for name in names)), "others")


def read_lora_metadata(path: str | Path) -> dict[str, str]:
    """Metadata in the header of the safetensors file at `path`: name → text."""
    with safe_open(path, framework="numpy") as file:
        return file.metadata() or {}


def lora_settings(path: str | Path) -> dict[str, Any]:
    """Generation settings that a LoRA file asks for, by name; {} for most files.

    Args:
        path: of the file.

    Raises:
        UserError: they are malformed, or have an unknown name.
    """
    text = read_lora_metadata(path).get(SETTINGS, "{}")
    where = f"{path}: {SETTINGS} in its header"
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{where} is no JSON object: {text!r:.80}")
    for name, value in settings.items():
        check_type(f"{where}: {name}", value, FIELDS[check_choice(where, name, FIELDS)])
    return settings


def _role(key: str) -> tuple[str, str | None]:
    """Name of a linear map, and the role of the tensor `key` in its change."""
    key = ADAPTER.sub(r".lora_\1.weight", key)  # with the adapter's name, such as "default"
    key = PROCESSOR.sub(lambda m: f".to_{m[1]}{'.0' if m[1] == 'out' else ''}.lora.", key)
    for end, role in ROLES.items():
        if key.endswith(f".{end}"):
            return key[: -len(end) - 1], role
    return key, None


def _module(name: str) -> str:
    """Name of a linear map below its network, as PEFT's patterns know it."""
    return re.sub(r"^(base_model\.model\.)?(unet\.|text_encoder\.|diffusion_model\.)?", "", name)


def _stem(name: str, aliases: Mapping[str, str]) -> str:
    """Name in kohya's files of the linear map `name`."""
    name = name.removeprefix("base_model.model.")
    flat = name.replace(".", "_")
    if flat.startswith((OF_UNET, OF_TEXT)):
        return aliases.get(flat, flat)
    if flat.startswith("lora_te1_"):
        return OF_TEXT + flat.removeprefix("lora_te1_")
    if name.startswith("text_encoder."):
        inner = flat.removeprefix("text_encoder_").removeprefix("text_model_")
        return f"{OF_TEXT}text_model_{inner}"
    if name.startswith("text_model."):
        return OF_TEXT + flat
    stem = OF_UNET + re.sub(r"^(unet_|(model_)?diffusion_model_)", "", flat)
    return aliases.get(stem, stem)


def _adapters(path: Path, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """PEFT's configuration of each network of a file: "unet", "text_encoder"."""
    beside = path.with_name(CONFIG)
    if HEADER not in metadata:
        if path.stem != "adapter_model" or not beside.is_file():
            return {}
        config = read_json(beside)
        return dict.fromkeys(PARTS.values(), config)
    try:
        header = json.loads(metadata[HEADER])
        found: dict[str, dict[str, Any]] = {}
        for key, value in header.items():
            part, dot, name = key.partition(".")
            found.setdefault(part if dot else "unet", {})[name if dot else key] = value
        return found
    except (ValueError, AttributeError):
        raise UserError(f"{path}: {HEADER} in its header is malformed") from None
