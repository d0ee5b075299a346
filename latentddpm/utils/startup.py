"""Starting the numeric libraries, and their converters, without their chatter.

TensorFlow prints lines about its build to stderr while it is imported, whatever its log
level. They are kept back, and shown only when the import fails.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import tempfile
from collections.abc import Iterator


def import_keras() -> None:
    """Import Keras and its backend; TensorFlow unless `KERAS_BACKEND` says otherwise."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    # What importing makes stays until the end. The collector would look through it again and
    # again: a quarter of the time.
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
    """Keep back what this process writes to stderr, C++ included; shown if the block fails."""
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
