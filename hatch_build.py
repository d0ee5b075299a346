"""Put the ready models of `weights/` into the wheel, as `latentddpm/weights`.

A plain `force-include` would fail where there is no such folder, and copy it into
site-packages on an editable install, which finds the folder beside the package.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class WeightsHook(BuildHookInterface):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        weights = Path(self.root) / "weights"
        if version != "editable" and weights.is_dir() and any(weights.iterdir()):
            build_data["force_include"][str(weights)] = "latentddpm/weights"
