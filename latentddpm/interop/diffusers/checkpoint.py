"""Parts of a Stable Diffusion checkpoint, whichever way it is stored.

A diffusers folder and a single file are both read into a `Checkpoint`: configurations in
diffusers' keys, tensors under diffusers' names. Nothing is read from the tensors yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.interop.tensors import Tensors


@dataclass(frozen=True)
class CheckpointPart:
    """One network.

    Attributes:
        source: the file its configuration comes from, for messages.
        config: in diffusers' keys, with `_class_name`.
        tensors: its weights under diffusers' names; opened when first asked for, so that a
            configuration is judged before a weight is touched.
    """

    source: str
    config: dict[str, Any]
    tensors: Callable[[], Tensors]


@dataclass(frozen=True)
class Checkpoint:
    """The pieces of a checkpoint; what it does not hold is None.

    Attributes:
        source: the folder or file, for messages.
        vae, unet: the networks.
        scheduler: `scheduler_config.json`, or the like of it.
        scheduler_source: its file, for messages.
        text: reads the text encoder and its tokenizer.
    """

    source: str
    vae: CheckpointPart | None = None
    unet: CheckpointPart | None = None
    scheduler: dict[str, Any] | None = None
    scheduler_source: str = "scheduler"
    text: Callable[[], tuple[TextEncoder, CLIPTokenizer]] | None = None
