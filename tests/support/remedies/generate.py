"""Messages of `generate`."""

from pathlib import Path

from tiny import quick_model

from remedies.remedy import Remedy


def model(folder: Path) -> None:
    quick_model().save(folder / "m")


REMEDIES = [
    Remedy(
        "a height between two multiples",
        model,
        "generate --model m --prompt red --height 33 --width 32",
        ("--height", "nearest valid: 32"),
        ("generate --model m --prompt red --height 32 --width 32",),
    ),
]
