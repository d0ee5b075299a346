"""Startup of Keras, TensorFlow and the converters, without the lines they print.

TensorFlow prints lines about its build to stderr while it is imported, whatever its log
level. They are shown only when the import fails.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator


def import_keras() -> None:
    """Import Keras and its backend; TensorFlow unless `KERAS_BACKEND` names another."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if "keras" in sys.modules:
        return
    # Modules are never freed, and the garbage collector takes a quarter of the import's time to
    # look through them.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with held_stderr():
            import keras  # noqa: F401
    finally:
        if collecting:
            gc.enable()
    gc.freeze()


@contextlib.contextmanager
def held_stderr() -> Iterator[None]:
    """Hide what this process, C++ included, writes to stderr, unless the block raises an error."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
