"""Files that ship with the package: ready models, ready configurations, pages.

    weights/NAME/                   ready models
    configs/NAME.yaml               ready configurations
    docs/                           pages of the documentation

They lie beside the package in the repository, and inside it in a wheel (`hatch_build.py`).
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
REPOSITORY = "pyproject.toml"
"""File beside the package that tells a copy of the repository from `site-packages`."""

PATTERNS = {"configs": ("*.yaml",), "docs": ("*.md", "guides/*.md")}
"""Kind → patterns of its files."""


def packaged_folders(kind: str) -> list[Path]:
    """Folders of a kind that ship: inside the package, or beside it in the repository.

    Args:
        kind: "weights", "configs" or "docs".
    """
    places = [PACKAGE / kind]
    if (PACKAGE.parent / REPOSITORY).is_file():
        places.append(PACKAGE.parent / kind)
    return [place for place in places if place.is_dir()]


def packaged_files(kind: str) -> dict[str, Path]:
    """Files of a kind that ship, by name without suffix, in order.

    Args:
        kind: "configs" or "docs".
    """
    files: dict[str, Path] = {}
    for folder in packaged_folders(kind):
        for pattern in PATTERNS[kind]:
            for path in sorted(folder.glob(pattern)):
                files.setdefault(path.stem, path)
    return files
