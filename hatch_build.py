"""Put into the wheel what ships beside the package: ready models, configurations, pages.

`latentddpm/packaged.py` finds them there. A plain `force-include` would fail where there is no
such folder, and copy them into site-packages on an editable install, which finds the folders
beside the package.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SHIPPED = {
    "weights": ("**/*",),
    "configs": ("*.yaml",),
    "docs": ("*.md", "guides/*.md"),
}
"""Folder of the repository → patterns of its files that go into `latentddpm/FOLDER`."""


class PackagedFiles(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version != "editable":
            build_data["force_include"].update(shipped_files(Path(self.root)))


def shipped_files(root: Path) -> dict[str, str]:
    """Files of the repository at `root` that go into the wheel → their places there."""
    return {
        str(path): f"latentddpm/{path.relative_to(root).as_posix()}"
        for folder, patterns in SHIPPED.items()
        for pattern in patterns
        for path in sorted((root / folder).glob(pattern))
        if path.is_file()
    }
