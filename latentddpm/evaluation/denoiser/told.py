"""Inputs of a denoiser from images themselves: first captions and conditions, without guidance."""

from __future__ import annotations

from typing import Any

import numpy as np

from latentddpm.evaluation.images import ImageSet
from latentddpm.models.precision import finite
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

BATCH = 32


class ImagesTold:
    """Images as a denoiser is told of them: the encoded captions, and the conditions.

    Args:
        model: whose text encoder is used; one without words ignores the captions.
        images: with their first captions and their conditions.

    Attributes:
        values: for a report: "caption_templates", None for a model without words,
            "without_caption", the number of images, and for a model with conditions "conditions":
            the name of each with the number of images that do not tell it.

    Raises:
        UserError: caption templates that do not fit.
    """

    def __init__(self, model: LatentDiffusion, images: ImageSet) -> None:
        self._states: np.ndarray | None = None
        self._images, told = images, images.told()
        self.values = {"caption_templates": None, "without_caption": len(images)}
        if model.text_encoder is not None:
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
        if names := [source.condition.name for source in images.conditions]:
            bare = {name: sum(name not in one for one in told) for name in names}
            self.values["conditions"] = bare

    def inputs(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        """Inputs of the denoiser beside noisy latents and timesteps.

        Args:
            numbers: of images in the set, int64 (n,).

        Returns:
            "context", float32 (n, L, d), for a model that takes words; and the inputs of the
            conditions, float32 (n, size) by name.
        """
        found = {} if self._states is None else {"context": self._states[numbers]}
        rows, none = self._images.rows[numbers], np.zeros(len(numbers), np.int64)
        for source in self._images.conditions:
            arrays = source.batch(rows, none > 0, none > 0, none)
            names = (entry.name for entry in source.condition.inputs())
            found |= dict(zip(names, arrays, strict=True))
        return found


def untold(values: dict[str, Any]) -> str:
    """Words for a report on how many images have no caption, and do not tell a condition.

    Args:
        values: of the report: "without_caption", "images" and, where there are any, "conditions".
    """
    bare = values.get("conditions", {})
    counts = (
        {}
        if bare and values["caption_templates"] is None
        else {"a caption": values["without_caption"]}
    )
    counts |= bare
    words = (
        f"{count or 'none'} of {values['images']} images without {what}"
        for what, count in counts.items()
    )
    return ", ".join(words)
