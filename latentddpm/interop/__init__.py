"""Interoperability: weights of diffusers, CompVis, CLIP, LoRA, embeddings and VGG16.

The public names load on first use, because their modules import Keras.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "load_diffusers": "latentddpm.interop.diffusers.folder",
    "save_diffusers": "latentddpm.interop.diffusers.folder",
    "load_embedding": "latentddpm.interop.embedding",
    "merge_lora": "latentddpm.interop.lora_merge",
}

__all__ = ["load_diffusers", "load_embedding", "merge_lora", "save_diffusers"]

if TYPE_CHECKING:
    from latentddpm.interop.diffusers.folder import load_diffusers, save_diffusers
    from latentddpm.interop.embedding import load_embedding
    from latentddpm.interop.lora_merge import merge_lora


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value
