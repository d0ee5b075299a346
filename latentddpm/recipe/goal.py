"""Goal of a recipe: quality and time that are asked for, and what each quality stands for."""

from __future__ import annotations

from dataclasses import dataclass

from latentddpm import choices

START_PASSES, START_LEAST = 2, 4
"""Parts of the passes, and of the least examples, that a finished model needs to be trained on."""
NONE = choices.FIRST_STAGES[1]
"""Value of `vae` that asks for pixels, and of `init` that asks for a new UNet."""


@dataclass(frozen=True)
class Quality:
    """Quality that is wished for: the length and the sizes that it stands for.

    Attributes:
        passes: times that the UNet sees each image.
        least, most: examples that it sees in all, whatever the number of images.
        autoencoder_images: images that an autoencoder sees while it is trained.
        side: of the images at most, in pixels: on a processor, on an accelerator.
        psnr: reconstruction by the autoencoder that ships, in dB, from which on it is used; None
            for never.
        sizes: names of the UNet without a limit of time: on a processor, on an accelerator.
    """

    passes: int
    least: int
    most: int
    autoencoder_images: int
    side: tuple[int, int]
    psnr: float | None
    sizes: tuple[str, str]

    def examples(self, images: int, starts: bool = False) -> int:
        """Examples that the UNet sees.

        Args:
            images: number of images of the set.
            starts: fewer are enough, as the UNet is that of a finished model.
        """
        passes, least = self.passes, self.least
        if starts:
            passes, least = passes // START_PASSES, least // START_LEAST
        return min(max(passes * images, least), self.most)


_QUALITIES = (
    Quality(200, 20_000, 500_000, 100_000, (64, 64), 22.0, ("small", "medium")),
    Quality(400, 200_000, 3_000_000, 300_000, (64, 128), 26.0, ("medium", "large")),
    Quality(800, 1_000_000, 20_000_000, 3_000_000, (128, 256), None, ("large", "huge")),
)
QUALITIES = dict(zip(choices.QUALITIES, _QUALITIES, strict=True))
"""Name → quality."""


@dataclass(frozen=True)
class Goal:
    """Goal of a recipe: what was asked for.

    Attributes:
        quality: one of `QUALITIES`.
        seconds: of the whole run; None for as long as the quality takes.
        vae: first stage that was named: a model, or "none"; None to choose.
        init: model whose UNet is trained on, or "none"; None to choose.
    """

    quality: str = "draft"
    seconds: float | None = None
    vae: str | None = None
    init: str | None = None

    @property
    def named_init(self) -> str | None:
        """Model whose UNet was asked to be trained on; None where none was named."""
        return None if self.init == NONE else self.init

    @property
    def of_quality(self) -> Quality:
        """Numbers that its quality stands for."""
        return QUALITIES[self.quality]
