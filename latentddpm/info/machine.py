"""Description of the machine and the installation: versions, devices, memory, caches, extras."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tomllib
from collections.abc import Iterator, Mapping

from packaging.requirements import Requirement

from latentddpm import __version__
from latentddpm.info.data import size_text
from latentddpm.packaged import PACKAGE, REPOSITORY
from latentddpm.pipeline.model_folder import ready_names
from latentddpm.utils.machine.accelerators import has_accelerator
from latentddpm.utils.machine.cache import cache_folder
from latentddpm.utils.machine.kernels import processor_name
from latentddpm.utils.machine.memory import free_memory, total_memory
from latentddpm.utils.startup import import_tensorflow

NAME = PACKAGE.name
EXTRAS = {
    "gpu": "NVIDIA GPUs",
    "export": "export --format onnx, litert",
    "plot": "info --plot, evaluate --latents",
    "umap": "evaluate --latents --projection umap",
    "array-record": "pack --format array-record, shards of it",
    "wandb": "train-vae --wandb, train-diffusion --wandb",
    "hub": "hf://owner/name, push, parquet",
    "ui": "serve",
}
"""Extra → the commands and options that need it."""
DEVELOPERS = ("test", "docs", "reference")
"""Extras that no command needs."""


def describe_machine() -> Iterator[str]:
    """Describe the installation and the machine.

    TensorFlow is imported only where there is a GPU, to see whether it can use it.

    Yields:
        Lines of text.
    """
    yield f"latentddpm {__version__}, {PACKAGE}"
    yield f"python     {platform.python_version()}, {platform.system()} {platform.machine()}"
    needed, extras = requirements()
    for start, part in zip(["packages", *[""] * len(needed)], _rows(needed), strict=False):
        yield f"{start:10} {part}"
    yield f"processor  {processor_name()}, {os.cpu_count()} cores"
    yield f"gpu        {_gpus()}"
    yield f"memory     {_of(free_memory(), total_memory())}"
    yield f"cache      {_cache()}"
    yield f"models     {', '.join(ready_names()) or 'none'}"
    for start, (extra, wanted) in zip(
        ["extras", *[""] * len(extras)], extras.items(), strict=False
    ):
        if extra not in DEVELOPERS:
            yield f"{start:10} {extra:12} {_state(extra, wanted)}"


def requirements() -> tuple[list[Requirement], dict[str, list[Requirement]]]:
    """Requirements of the package, and those of each extra.

    They are read from `pyproject.toml` beside the package, or from what the installer wrote down.
    """
    project = PACKAGE.parent / REPOSITORY
    if project.is_file():
        table = tomllib.loads(project.read_text("utf-8"))["project"]
        extras = table["optional-dependencies"]
        return _parsed(table["dependencies"]), {name: _parsed(extras[name]) for name in extras}
    installed = importlib.metadata.distribution(NAME)
    every = _parsed(installed.requires or [])
    names = installed.metadata.get_all("Provides-Extra") or []
    extras = {name: [one for one in every if _is_of(one, name)] for name in names}
    return [one for one in every if one.marker is None], extras


def missing(wanted: Requirement, extras: Mapping[str, list[Requirement]]) -> list[str]:
    """Names of packages that a requirement lacks here.

    Args:
        wanted: requirement, perhaps with extras of its own.
        extras: of this package, for requirements that name it.
    """
    if wanted.name == NAME:
        inside = [one for name in wanted.extras for one in extras.get(name, [])]
        return [name for one in inside for name in missing(one, extras)]
    try:
        installed = importlib.metadata.distribution(wanted.name)
    except importlib.metadata.PackageNotFoundError:
        return [wanted.name]
    if not wanted.specifier.contains(installed.version, prereleases=True):
        return [f"{wanted} (found {installed.version})"]
    every = _parsed(installed.requires or [])
    inside = [one for one in every if any(_is_of(one, name) for name in wanted.extras)]
    return [name for one in inside for name in missing(one, extras)]


def _parsed(lines: list[str]) -> list[Requirement]:
    return [Requirement(line) for line in lines]


def _is_of(wanted: Requirement, extra: str) -> bool:
    """True for a requirement of an extra, on this machine."""
    marker = wanted.marker
    return bool(
        marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})
    )


def _rows(needed: list[Requirement], width: int = 85) -> list[str]:
    """Versions of the packages that are always needed, in rows."""
    rows = [""]
    for one in sorted(needed, key=lambda one: one.name):
        lacks = missing(one, {})
        word = f"MISSING {lacks[0]}" if lacks else _with_version(one.name)
        if len(rows[-1]) + len(word) > width:
            rows.append("")
        rows[-1] += f", {word}" if rows[-1] else word
    return rows


def _with_version(name: str) -> str:
    return f"{name} {importlib.metadata.version(name)}"


def _state(extra: str, wanted: list[Requirement]) -> str:
    """State of an extra: installed, or what it lacks and which command needs it."""
    lacks = [name for one in wanted for name in missing(one, {extra: wanted})]
    use = EXTRAS.get(extra, "")
    if not lacks:
        return f"installed: {use}"
    more = f" and {len(lacks) - 2} more" if len(lacks) > 2 else ""
    return f'missing {", ".join(lacks[:2])}{more}, for {use}: pip install "{NAME}[{extra}]"'


def _gpus() -> str:
    if not has_accelerator():
        return "none"
    found = import_tensorflow().config.list_physical_devices("GPU")
    if found:
        return f"{len(found)} that TensorFlow uses"
    return f'one that TensorFlow does not see: pip install "{NAME}[gpu]"'


def _of(free: int | None, total: int | None) -> str:
    words = [size_text(number) if number else "unknown" for number in (free, total)]
    return f"{words[0]} free of {words[1]}"


def _cache() -> str:
    """Place and size of the cache, and what is free on its disk."""
    try:
        folder = cache_folder()
    except RuntimeError:
        return "none: the user has no home"
    files = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = size_text(shutil.disk_usage(there).free)
    return f"{folder}, {size_text(sum(files))}; {free} free on its disk"
