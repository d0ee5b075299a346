"""Settings of prior preservation: images of a class, trained on beside those of a subject."""

from __future__ import annotations

import pydantic
from pydantic import Field
from pydantic_core import PydanticCustomError

from latentddpm.config.section import Section

DRAWN = 100


class PriorConfig(Section):
    """Prior preservation (Ruiz 2023): half of every batch shows what the model of `init` knew."""

    data: str = Field(
        "", description="folder or shards with images of the class, such as other dogs"
    )
    prompt: str = Field(
        "", description='caption of them all, such as "a dog"; without data they are drawn from it'
    )
    num_images: int = Field(
        DRAWN, gt=0, le=100_000, description="that the model draws once, into OUT/prior"
    )
    weight: float = Field(
        1.0, ge=0, description="of these images in the loss, where that of the others is 1"
    )

    @pydantic.model_validator(mode="after")
    def _of_images(self) -> PriorConfig:
        """Refuse settings of images that are not there."""
        found = {"num_images": DRAWN, "weight": 1.0}
        other = next((key for key, value in found.items() if getattr(self, key) != value), None)
        text = ""
        if other and not self.used:
            text = f"{other}: of which images? name them with data, or draw them from a prompt"
        elif self.data and self.num_images != DRAWN:
            text = "num_images: how many are drawn; of data all are used, so leave it out"
        if text:
            raise PydanticCustomError("prior", "{text}", {"text": text})
        return self

    @property
    def used(self) -> bool:
        """True where a run has such images."""
        return bool(self.data or self.prompt)

    def share(self, batch_size: int) -> int:
        """Examples of a batch that are such images.

        Args:
            batch_size: examples of a batch.
        """
        return batch_size // 2 if self.used else 0
