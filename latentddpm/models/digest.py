"""What tells one autoencoder from another."""

from __future__ import annotations

import hashlib
import json

import keras
import numpy as np


def weights_digest(model: keras.Model) -> str:
    """SHA-256 over a model's configuration and weights, in hexadecimal.

    Weights count at float16 precision, so that a model keeps its digest when it is stored in
    half precision; names of layers and the dtype policy do not count.
    """
    config = {k: v for k, v in model.get_config().items() if k not in ("name", "dtype")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for variable in model.weights:
        digest.update(np.asarray(keras.ops.convert_to_numpy(variable), np.float16).tobytes())
    return digest.hexdigest()
