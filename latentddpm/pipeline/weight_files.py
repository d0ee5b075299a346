"""Weight files of others: what a file is, told by its first bytes and the names of its tensors.

    header of a safetensors file ──► `LAYOUTS`, the first that one of its tensors has
    no safetensors file          ──► `CONTENTS`, by the first bytes, and `UNFINISHED`, by the name

No weight is read, so an answer takes milliseconds whatever the size. `interop` reads those layouts
whose `command` is "convert"; everything else is named, with the command or the way that takes it.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from latentddpm.errors import UserError

SUFFIX = ".safetensors"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""Suffixes of pickles, which can run code and are never opened."""

NEVER = "can run code and is never opened"
TRUSTED = (
    "convert it where you trust it: load it with diffusers and save_pretrained(folder, "
    "safe_serialization=True)"
)

UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2")
"""Suffixes of downloads that are under way or were broken off."""

MAX_HEADER = 100_000_000  # bytes; the library has the same limit
DOWNLOAD = "download it again"
CONTENTS = (
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS in place of the file",
        "get it with git lfs pull",
    ),
    (rb"\s*(\xef\xbb\xbf)?<(!doctype|html|\?xml)", "a web page, saved under this name", DOWNLOAD),
    (rb"GGUF", "GGUF, quantised weights, which are not read", "take its .safetensors version"),
    (rb"PK\x03\x04", "a ZIP archive, as torch.save writes its pickles", TRUSTED),
    (rb"\x80[\x02-\x05]", "a pickle, which is never opened", TRUSTED),
    (rb"\x89HDF", "HDF5", "take its .safetensors version"),
    (rb"(\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP)", "a picture", "name a weight file"),
    (rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!", "a compressed archive", "unpack it first"),
    (rb"\x00{64}", "all zeros: space for a download that was not filled", DOWNLOAD),
)
"""First bytes (a regular expression, in any case) → what such a file is, and what to do."""

READ = "convert"
LORA = "lora"


@dataclass(frozen=True)
class Layout:
    """Layout of a safetensors file.

    Attributes:
        tensor: regular expression of the beginning of a tensor's name; a file that has such a
            tensor has this layout.
        what: such a file is, with its article.
        command: that takes it: "convert", "lora" (`generate --lora`), or "" for none.
        advice: what to do with it where no command takes it.
        sizes: axis → size, that the tensor has to have besides.
    """

    tensor: str
    what: str
    command: str = ""
    advice: str = "it is not supported"
    sizes: Mapping[int, int] = field(default_factory=dict)


WORD = "generate takes it with --embedding"
PLAIN = "take the text-to-image model that it was made from"
FOLDER = "save it as a folder with diffusers (save_pretrained) and convert that"
INPUT = r"(model\.diffusion_model\.)?input_blocks\.0\.0\.weight"
LAYOUTS = (
    # LoRA and its kin, before the networks whose names theirs contain.
    Layout(r".*\b(hada_|lokr_|oft_|dora_scale|lora_magnitude)", "DoRA, LoHa, LoKr or OFT"),
    Layout(r"(lora_te2_|lora_prior_)", "a LoRA of Stable Diffusion XL", advice="take one of 1.x"),
    Layout(r".*(double_blocks|single_transformer_blocks).*lora", "a LoRA of Flux"),
    Layout(r"lora_(unet|te\d?)_", "a LoRA", LORA),
    Layout(r".*(\.lora_?(A|B|up|down|mid|linear_layer)?\b|_lora\.)", "a LoRA", LORA),
    # Other models.
    Layout(r"conditioner\.embedders\.", "Stable Diffusion XL"),
    Layout(r"cond_stage_model\.model\.", "Stable Diffusion 2.x", advice=FOLDER),
    Layout(r"(model\.diffusion_model\.)?joint_blocks\.", "Stable Diffusion 3"),
    Layout(r"(model\.diffusion_model\.)?(double_blocks|single_transformer_blocks)\.", "Flux"),
    Layout(r"transformer_blocks\.\d+\.attn\.add_", "a transformer of Stable Diffusion 3 or Flux"),
    Layout(r"(control_model|controlnet_cond_embedding|input_hint_block)\.", "a ControlNet"),
    Layout(r"(image_proj|ip_adapter)\.", "an IP-Adapter"),
    Layout(r"(adapter\.)?body\.\d+\.(block1|resnets)\b", "a T2I-adapter"),
    Layout(r".*motion_modules\.", "a motion module of AnimateDiff"),
    Layout(r"clip_[lg]$", "a textual inversion of Stable Diffusion XL"),
    Layout(
        r"(emb_params|string_to_param|<[^<>]+>)$",
        "a textual inversion (an embedding)",
        advice=WORD,
    ),
    Layout(r"(conv_first|RRDB_trunk)\b", "an upscaler (ESRGAN)"),
    Layout(r"(model\.diffusion_model\.)?label_emb\.", "a UNet with label_emb (as SDXL's)"),
    Layout(
        r"(model\.diffusion_model\.)?middle_block\.1\.qkv\.",
        "an unconditional UNet of latent-diffusion",
        advice="only those with cross-attention are read",
    ),
    Layout(INPUT, "a depth-guided UNet, with 5 input channels", advice=PLAIN, sizes={1: 5}),
    Layout(INPUT, "an upscaling UNet, with 7 input channels", advice=PLAIN, sizes={1: 7}),
    Layout(
        r"(model\.diffusion_model\.)?middle_block\.1\.transformer_blocks\.0\.attn2\.to_k\.weight",
        "the UNet of Stable Diffusion 2.x",
        advice=FOLDER,
        sizes={1: 1024},
    ),
    # Stable Diffusion 1.x in CompVis' names, whole or in parts.
    Layout(r"model\.diffusion_model\.", "a Stable Diffusion 1.x checkpoint", READ),
    Layout(r"(model_ema|ema|ema_model)\.", "averaged weights of Stable Diffusion 1.x", READ),
    Layout(r"input_blocks\.", "a UNet of Stable Diffusion 1.x", READ),
    Layout(r"first_stage_model\.", "an autoencoder of Stable Diffusion 1.x", READ),
    Layout(r"encoder\.down\.\d+\.block\.", "an autoencoder of Stable Diffusion 1.x", READ),
    # Networks of diffusers and transformers: each belongs to a folder with its config.json.
    Layout(
        r"(unet\.)?(down_blocks|encoder\.down_blocks)\.",
        "a network in diffusers' names",
        advice="convert the folder it is from, with its config.json",
    ),
    Layout(
        r"cond_stage_model\.|text_model\.|encoder\.layers\.\d+\.self_attn\.",
        "a text encoder alone",
        advice="train-diffusion takes its folder: --set text.source=clip --set text.path=FOLDER",
    ),
    Layout(r"vision_model\.", "an image encoder of CLIP", advice="it belongs to a CLIP folder"),
    Layout(r"encoder\.block\.\d+\.layer\.", "a text encoder T5"),
    Layout(r"features\.0\.weight$", "a VGG16", advice="evaluate uses it with --perceptual FILE"),
    Layout(r"(model|optimizer)/\d+$", "the state of a training", advice="name its run's folder"),
)
"""Layouts of safetensors files, in the order in which they are looked for."""

NOT_READ = {
    "F8_E4M3": "8-bit floats",
    "F8_E5M2": "8-bit floats",
    "F8_E8M0": "8-bit scales",
    "F4": "4-bit floats",
    "I8": "8-bit integers (quantised)",
    "U8": "8-bit integers (quantised)",
}
"""Type of a tensor → what it is, in words, where networks are not read from it."""


def read_header(path: str | Path) -> dict[str, dict[str, Any]]:
    """Header of a safetensors file: tensor → its `dtype`, `shape` and `data_offsets`.

    Args:
        path: of the file.

    Returns:
        Also `__metadata__`, where the file has it.

    Raises:
        UserError: it is another kind of file, or is cut off; the message says which.
    """
    path = Path(path)
    try:
        return _header(path)
    except ValueError as error:
        raise UserError(f"{path}: not a valid safetensors file: {error}") from None


def _header(path: Path) -> dict[str, dict[str, Any]]:
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(9)
        length = int.from_bytes(start[:8], "little")
        if size < 9 or start[8:] != b"{":
            raise ValueError(_no_safetensors(path))
        if length > MAX_HEADER:
            raise ValueError(f"its header says that it has {length:,} bytes; {DOWNLOAD}")
        if 8 + length > size:
            raise ValueError(f"it is cut off in its header, at {size:,} bytes; {DOWNLOAD}")
        file.seek(8)
        text = file.read(length)
    try:
        header = json.loads(text)
        tensors = [one for name, one in header.items() if name != "__metadata__"]
        end = 8 + length + max((one["data_offsets"][1] for one in tensors), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
        raise ValueError(f"its header is damaged; {DOWNLOAD}") from None
    if end > size:
        raise ValueError(f"it is cut off, at {size:,} of {end:,} bytes; {DOWNLOAD}")
    return header


def content_of(path: Path) -> tuple[str, str] | None:
    """Content of a file by its first bytes, and what to do; None where it is not in `CONTENTS`.

    Args:
        path: of the file.
    """
    with open(path, "rb") as file:
        start = file.read(512)
    if not start:
        return "empty", DOWNLOAD
    for beginning, what, advice in CONTENTS:
        if re.match(beginning, start, re.IGNORECASE | re.DOTALL):
            return what, advice
    return None


def _no_safetensors(path: Path) -> str:
    """Description of a file that only calls itself safetensors, and what to do."""
    if (found := content_of(path)) is not None:
        return f"it is {found[0]}; {found[1]}"
    with open(path, "rb") as file:
        text = file.read(80).decode("ascii", "replace")
    if all(one in string.printable for one in text):
        return f"it is text, which begins {' '.join(text.split())[:60]!r}; {DOWNLOAD}"
    return DOWNLOAD


def layout_of(header: Mapping[str, Mapping[str, Any]]) -> Layout | None:
    """Layout of a safetensors file; None for one that is not known.

    Args:
        header: returned by `read_header`.
    """
    names = "\n".join(name for name in header if name != "__metadata__")
    for layout in LAYOUTS:
        for found in re.finditer(rf"^(?:{layout.tensor}).*", names, re.MULTILINE):
            shape = header[found[0]].get("shape", [])
            if all(shape[axis : axis + 1] == [size] for axis, size in layout.sizes.items()):
                return layout
    return None


def is_pickle(path: str | os.PathLike) -> bool:
    """True for a file name with the suffix of a pickle."""
    return Path(path).suffix in PICKLES


# --- Folders of diffusers and their variants ------------------------------------------------

PIXEL_PIPELINES = ("DDPMPipeline", "DDIMPipeline")
"""Classes of diffusers without an autoencoder: their UNet denoises pixels."""

TEXT, INPAINT = "StableDiffusionPipeline", "StableDiffusionInpaintPipeline"
PIX2PIX, UPSCALE = "StableDiffusionInstructPix2PixPipeline", "StableDiffusionUpscalePipeline"
PIPELINES = (
    *(TEXT, "StableDiffusionImg2ImgPipeline"),
    *(INPAINT, "StableDiffusionInpaintPipelineLegacy", PIX2PIX, UPSCALE),
    *PIXEL_PIPELINES,
)
"""Classes of diffusers in a `model_index.json` that `convert` reads."""

OTHER_PIPELINES = {
    "LDMPipeline": "its autoencoder is a VQ-VAE (vqvae), and only those of the KL kind are read",
    "LDMSuperResolutionPipeline": "its autoencoder is a VQ-VAE (vqvae); its UNet alone is read: "
    "name the folder unet",
    "LDMTextToImagePipeline": "its text encoder is a BERT, and only those of CLIP are read",
    "PNDMPipeline": "save its unet and scheduler as a DDIMPipeline with diffusers",
}
"""Classes of diffusers that are not read → the reason, or what to do."""

NAMES = re.compile(
    r"(?:\.(?P<before>[\w-]+))?\.safetensors(?P<index>\.index(?:\.(?P<after>[\w-]+))?\.json)?"
)
STEMS = {
    "vae": "diffusion_pytorch_model",
    "unet": "diffusion_pytorch_model",
    "text_encoder": "model",
}
"""Part of a pipeline of diffusers → how the names of its weight files begin."""


def variants(folder: str | Path, stem: str) -> dict[str | None, Path]:
    """Variants of the weights in a folder of diffusers or transformers.

    Args:
        folder: of one network.
        stem: how the names of its weight files begin, see `STEMS`.

    Returns:
        Variant, such as "fp16", or None for plain files → its file, or the index of its shards.
    """
    found: dict[str | None, Path] = {}
    for file in sorted(Path(folder).glob(f"{stem}*")):
        match = NAMES.fullmatch(file.name[len(stem) :])
        variant = match and (match["before"] or match["after"])
        is_shard = re.search(r"-\d+-of-\d+$", variant or "")
        if match and not is_shard and (match["index"] is None or variant not in found):
            found[variant] = file
    return found


def convert_line(path: Path) -> str:
    """Command line that makes a model folder of a checkpoint.

    Args:
        path: of a file or folder that `convert` reads.
    """
    place = Path(os.path.abspath(path))  # not where a link leads: the Hub's files are digests
    if place.parent.name == "snapshots":
        place = Path(place.parents[1].name.rpartition("--")[2])
    out = Path("runs", place.name.removesuffix(SUFFIX))
    while out.exists():
        out = out.with_name(f"{out.name}-model")
    variant = ""
    for part, stem in STEMS.items():
        for folder in (path / part, path):
            found = variants(folder, stem) if folder.is_dir() else {}
            if len(found) > 1 and None not in found:
                variant = f" --variant {sorted(found, key=str)[-1]}"
    source, target = shlex.quote(str(path)), shlex.quote(str(out))
    return f"latentddpm convert --from {source}{variant} --out {target}"


def pickled_weights(path: Path) -> Path | None:
    """Pickle that holds the weights of a network in a diffusers folder, without a safe version.

    Args:
        path: of the folder, of a pipeline or of one network.
    """
    for part, stem in STEMS.items():
        for folder in (path / part, path):
            if folder.is_dir() and not variants(folder, stem):
                beginnings = (stem, "pytorch_model")
                for file in sorted(folder.iterdir()):
                    if is_pickle(file) and file.name.startswith(beginnings):
                        return file
    return None
