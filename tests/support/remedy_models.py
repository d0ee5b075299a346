"""Untrained models for remedies: written once, and copied into the folder of each case."""

import functools
import shutil
import tempfile
from pathlib import Path

from tiny import quick_model


@functools.cache
def _written() -> tempfile.TemporaryDirectory:
    """A folder with `whole`, a model, and `vae`, its autoencoder alone."""
    place = tempfile.TemporaryDirectory()
    model = quick_model()
    model.save(Path(place.name) / "whole")
    model.unet = model.text_encoder = model.tokenizer = model.schedule = None
    model.save(Path(place.name) / "vae")
    return place


def put_model(place: Path, name: str = "whole") -> None:
    """Put a model's folder at `place`: `whole`, or its autoencoder alone, `vae`."""
    shutil.copytree(Path(_written().name) / name, place)
