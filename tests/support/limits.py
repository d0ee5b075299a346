"""A disk that is full, without a disk: no file of this process may grow beyond a size."""

import contextlib

import pytest

resource = pytest.importorskip("resource", reason="file size limits are POSIX")


@contextlib.contextmanager
def file_size_limit(size):
    """Writing beyond `size` bytes fails with EFBIG, as ENOSPC would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
