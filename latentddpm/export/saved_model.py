"""SavedModel of TensorFlow: all endpoints in one folder, which runs without latentddpm.

An endpoint with one output returns that tensor, one with several a dictionary of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from latentddpm.export.endpoints import Arrays, Endpoint, Run, check, endpoints
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils.files import atomic_folder


def save_saved_model(
    model: LatentDiffusion, out: Path, report: Callable[[str, float], None]
) -> dict[str, float]:
    """Write a SavedModel, and check every endpoint.

    Args:
        model: to export.
        out: folder to write, atomically.
        report: called with the name of an endpoint and its largest difference.

    Returns:
        Endpoint → largest difference from the model.

    Raises:
        ArithmeticError: an endpoint computes something else than the model.
        OSError: the folder cannot be written.
    """
    found = endpoints(model)
    archive = keras.export.ExportArchive()
    for endpoint in found.values():
        archive.track(endpoint.network)
        archive.add_endpoint(endpoint.name, _bare(endpoint), endpoint.inputs)
    differences = {}
    with atomic_folder(out) as staged:
        try:
            archive.write_out(str(staged), verbose=False)
        except tf.errors.OpError as error:
            raise OSError(f"{out}: {error.message}") from None
        loaded = tf.saved_model.load(str(staged))
        for name, endpoint in found.items():
            differences[name] = check(endpoint, runner(loaded, endpoint), model)
            report(name, differences[name])
    return differences


def _bare(endpoint: Endpoint) -> Callable:
    """Function of an endpoint, which returns a single output without a dictionary."""
    if len(endpoint.outputs) > 1:
        return endpoint.function
    return lambda *inputs: endpoint.function(*inputs)[endpoint.outputs[0]]


def runner(loaded: Any, endpoint: Endpoint) -> Run:
    """Function that runs an `endpoint` of a `loaded` SavedModel."""

    def run(inputs: Arrays) -> Arrays:
        outputs = getattr(loaded, endpoint.name)(*map(tf.constant, inputs.values()))
        if not isinstance(outputs, dict):
            outputs = {endpoint.outputs[0]: outputs}
        return {name: array.numpy() for name, array in outputs.items()}

    return run
