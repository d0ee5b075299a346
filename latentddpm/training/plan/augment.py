"""Augmentation of a run: where it can be told, and what it does not go with."""

from __future__ import annotations

from latentddpm.choices import CONDITIONAL
from latentddpm.conditions.number import ChangesCondition
from latentddpm.config import AugmentConfig, DiffusionRun
from latentddpm.config.augment import STRENGTHS
from latentddpm.errors import UserError

NAME = "data.augment.probability"


def check_augment(config: DiffusionRun) -> None:
    """Refuse augmentation in a run that cannot tell its network what was changed.

    Args:
        config: of the run.

    Raises:
        UserError: naming the setting beside which it stands, and what to do.
    """
    if not config.data.augment.changes:
        return
    pictures = [name for name, one in config.conditions.items() if one.is_picture]
    reasons = {
        "data.spatial_dims=1": config.data.spatial_dims == 1 and "signals are not augmented",
        f"unet.kind={config.unet.kind}": config.unet.kind not in CONDITIONAL
        and "this network cannot be told what was changed",
        "lora.rank": config.lora.rank
        and "a LoRA changes what is there, and the model is not told what was changed",
        "control": config.control.trained and "its pictures would not be changed with the images",
        f"conditions.{min(pictures, default='')}": pictures
        and "its pictures would not be changed with the images",
        "data.mask": config.data.mask.given and "masks would not be changed with the images",
        f"distill.kind={config.distill.kind}": config.distill.kind != "none"
        and "the teacher is not told what was changed",
        f"conditions.{ChangesCondition.kind}": ChangesCondition.kind in config.conditions
        and "the name of what augmentation tells; choose another",
    }
    for key, why in reasons.items():
        if why:
            raise UserError(f"{NAME}: {config.data.augment.probability:g} beside {key}: {why}")


def augment_notes(settings: AugmentConfig) -> list[str]:
    """Line for people on the augmentation of a run; none where nothing is set.

    Args:
        settings: of the augmentation.
    """
    if not settings.changes:
        default = AugmentConfig()
        given = [name for name in STRENGTHS if getattr(settings, name) != getattr(default, name)]
        named = ", ".join(f"data.augment.{name}" for name in given)
        return [f"augment    off: {NAME} is 0, so {named} has no effect"] if given else []
    return [
        f"augment    {settings.probability:.0%} of the examples see one of {settings.variants} "
        "variants of their image; the network is told the changes, and drawings are not changed"
    ]
