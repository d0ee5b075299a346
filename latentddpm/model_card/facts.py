"""Facts of a training for a card, read from the folder of its run.

config.yaml            settings that differ from the defaults
log.jsonl              losses
catalog/               the images: number, sizes, captions, how many validate
samples/step-*.png     the last grid
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from latentddpm.config import COMMANDS, DataConfig, DiffusionData
from latentddpm.data.catalog.catalog import Catalog, versions
from latentddpm.data.catalog.split import split_catalog
from latentddpm.data.sources.folder import Folder
from latentddpm.hub.address import address_of, is_address
from latentddpm.training.run.curves import LOG, Curve, read_curves
from latentddpm.training.run.run import CONFIG, SAMPLES

CATALOGS = ("catalog", "latents/catalog")
VAE, DIFFUSION = COMMANDS
"""Commands that train, in the order in which they are used."""

NOT_TOLD = ("samples", "init", "wandb", "log_every", "validate_every", "checkpoint_every")
"""Settings, by their last words, that change nothing that is learned; or that name a folder."""


@dataclass(frozen=True)
class DataFacts:
    """Facts of the images that a run saw.

    Attributes:
        name: of their folder or shards, without the folders above; an address of the Hub whole.
        kind: of their source, such as "folder" or "tar".
        images: number of those that can be read.
        unreadable: number of files that cannot.
        training, validation: numbers of images; None where the rule of the split is not known.
        sides: least, median and largest of the shorter sides, in pixels.
        columns: names of the columns beside the images.
        sidecars: True if a text file lies beside an image.
    """

    name: str
    kind: str
    images: int
    unreadable: int
    training: int | None
    validation: int | None
    sides: tuple[int, int, int]
    columns: tuple[str, ...] = ()
    sidecars: bool = False


@dataclass(frozen=True)
class RunFacts:
    """Facts of one run.

    Attributes:
        folder: of the run.
        command: that trained, one of `config.COMMANDS`.
        settings: all of them, by sections; empty where they cannot be read.
        curves: see `training.run.curves.read_curves`.
        data: of its images; None where its catalog is gone.
    """

    folder: Path
    command: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    data: DataFacts | None = None

    def setting(self, section: str, key: str) -> Any:
        """Value of a setting, or None where it has none.

        Args:
            section: such as "training".
            key: in it.
        """
        return (self.settings.get(section) or {}).get(key)

    @property
    def steps(self) -> int | None:
        """Optimizer steps, as far as they were logged."""
        return int(self.curves["loss"].steps[-1]) if "loss" in self.curves else None

    @property
    def epochs(self) -> float | None:
        """Number of times that each training image was seen, on average; None if not known."""
        batch, images = self.setting("training", "batch_size"), self.data and self.data.training
        if not (self.steps and batch and images):
            return None
        return self.steps * batch / images

    @property
    def start(self) -> str:
        """Name of the model that it began from, without the folders above it; "" for none."""
        place = str(self.settings.get("init") or "")
        return _place_name(place.removesuffix("/model")) if place else ""

    @property
    def samples(self) -> Path | None:
        """Last grid that a validation has drawn; None without one."""
        return next(iter(sorted((self.folder / SAMPLES).glob("step-*.png"))[-1:]), None)

    def changes(self) -> dict[str, Any]:
        """Settings that differ from the defaults, by sections."""
        kind = COMMANDS[self.command]
        return _difference(self.settings, kind().model_dump(mode="json"))


def read_runs(folder: Path) -> list[RunFacts]:
    """Facts of the run in a folder, and of those in the folders in it: the autoencoder's first.

    Args:
        folder: of a run, or of a training of both networks, which keeps settings and no log.
    """
    inside = [one for one in sorted(folder.iterdir()) if (one / CONFIG).is_file()]
    own = (folder / LOG).is_file() or not inside
    places = [folder, *inside] if own and (folder / CONFIG).is_file() else inside
    found = [_read_run(place) for place in places]
    return sorted(found, key=lambda run: list(COMMANDS).index(run.command))


def _read_run(folder: Path) -> RunFacts:
    try:
        settings = yaml.safe_load((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        settings = {}
    settings = settings if isinstance(settings, dict) else {}
    command = DIFFUSION if "unet" in settings else VAE
    curves = read_curves(folder) if (folder / LOG).is_file() else {}
    return RunFacts(folder, command, settings, curves, _read_data(folder, settings, command))


def _read_data(folder: Path, settings: Mapping[str, Any], command: str) -> DataFacts | None:
    """Facts of the newest whole catalog of a run; None where there is none."""
    for version in (one for name in CATALOGS for one in versions(folder / name)):
        try:
            # The images themselves may be gone: names alone are asked for.
            catalog = Catalog(Folder(str(folder)), version)
        except (OSError, ValueError):
            continue
        manifest, counts = catalog.manifest, (None, None)
        if len(catalog):
            counts = _split(catalog, settings, command)
            sides = np.minimum(catalog.images["width"], catalog.images["height"])
            sides = tuple(np.percentile(sides, [0, 50, 100]).astype(int).tolist())
        return DataFacts(
            _place_name(manifest.place),
            manifest.kind,
            manifest.images,
            manifest.unreadable,
            *counts,
            sides if len(catalog) else (0, 0, 0),
            tuple(manifest.columns),
            manifest.sidecars,
        )
    return None


def _place_name(place: str) -> str:
    """Name of a place without the folders above it; an address of the Hub whole."""
    if is_address(place):
        return place
    return address_of(place) or Path(place).name or place


def _split(
    catalog: Catalog, settings: Mapping[str, Any], command: str
) -> tuple[int | None, int | None]:
    """Numbers of training and of validation images; None for both where no rule is known."""
    kind: type[DataConfig] = DiffusionData if command == DIFFUSION else DataConfig
    try:
        training, validation = split_catalog(catalog, kind(**settings.get("data", {})))
    except (TypeError, ValueError):
        return None, None
    return len(training), len(validation)


def _difference(settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose values differ from the defaults; those of `NOT_TOLD` are left out."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        if key in NOT_TOLD or value == defaults.get(key):
            continue
        if isinstance(value, dict) and isinstance(defaults.get(key), dict) and defaults[key]:
            value = _difference(value, defaults[key])
            if not value:
                continue
        # Folders of whoever trained are nobody's business.
        found[key] = _place_name(value) if isinstance(value, str) and "/" in value else value
    return found


def curve_rows(run: RunFacts) -> Iterator[tuple[str, Curve]]:
    """Losses and other measures of a run by name: without quarters, rates and norms.

    Args:
        run: whose log was read.
    """
    left_out = ("loss_q", "gradient_norm", "learning_rate", "examples_per_second")
    for name, curve in run.curves.items():
        if not any(word in name for word in left_out):
            yield name, curve
