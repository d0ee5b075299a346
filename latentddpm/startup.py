"""Starting the numeric libraries without their chatter; for the command line only.

TensorFlow prints lines about its build to stderr while it is imported, whatever its log
level. They are kept back, and shown only when the import fails.
"""

from __future__ import annotations

import os
import sys
import tempfile


def import_keras() -> None:
    """Import Keras and its backend; TensorFlow unless `KERAS_BACKEND` says otherwise."""
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            import keras  # noqa: F401
        except BaseException:
            held.seek(0)
            os.write(stderr, held.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
