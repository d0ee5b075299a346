"""Captions of images as the prompts of a denoiser: each image's first, without guidance."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.evaluation.images import ImageSet
from latentddpm.models.precision import finite
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

BATCH = 32


class Captions:
    """Captions of images, encoded as a model's context.

    Args:
        model: whose text encoder is used; one without words ignores the captions.
        images: with their first captions.

    Attributes:
        values: for a report: "caption_templates", None for a model without words, and
            "without_caption", the number of images.

    Raises:
        UserError: caption templates that do not fit.
    """

    def __init__(self, model: LatentDiffusion, images: ImageSet) -> None:
        self._states: np.ndarray | None = None
        self.values = {"caption_templates": None, "without_caption": len(images)}
        if model.text_encoder is None:
            return
        prompts = images.captions()
        encode_text = finite(model.text_encoder, "text encoder")
        self._states = np.concatenate(
            [
                encode_text({"token_ids": model.tokenizer(prompts[start : start + BATCH])})
                for start in range(0, len(prompts), BATCH)
            ]
        )
        self.values = {
            "caption_templates": images.dataset.config.caption_templates,
            "without_caption": prompts.count(""),
        }

    def context(self, numbers: Any) -> dict[str, np.ndarray]:
        """Inputs of the denoiser beside noisy latents and timesteps.

        Args:
            numbers: of images in the set, or a slice of them.

        Returns:
            "context", float32 (n, L, d); nothing for a model without words.
        """
        return {} if self._states is None else {"context": self._states[numbers]}


def without_caption(values: dict[str, Any]) -> str:
    """Words for a report on how many images have no caption.

    Args:
        values: of the report: "without_caption" and "images".
    """
    return f"{values['without_caption'] or 'none'} of {values['images']} images without a caption"
