"""Set before Keras is imported anywhere: backend, quiet TensorFlow, no network."""

import os

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["LATENTDDPM_NO_CACHE"] = "1"  # no test leaves traced functions in the user's cache
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # threads of NumPy's, on cores that are taken
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # offline, `transformers` hands out an empty CLIP tokenizer

import gc
import shutil
import signal
import time
from pathlib import Path

import pytest

# A process in the background of a script ignores Ctrl-C from the start, and so would its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

TESTS = Path(__file__).parent
EMOJI = TESTS / "assets" / "emoji"


def environment():
    """Variables of a process that finds the package, this file and the helpers in `support`."""
    own = [TESTS.parent, TESTS, TESTS / "support", os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, filter(None, own)))}


def pytest_addoption(parser):
    parser.addoption("--run-slow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--run-slow"):
        return
    skip = pytest.mark.skip(reason="slow; run with --run-slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def keras_for_tests():
    """Keras is imported here, where tests run, and not by the process that hands them out.

    Networks are many objects in circles: the collector of garbage would look through those of all
    tests so far again and again.
    """
    import keras

    keras.config.disable_traceback_filtering()
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(scope="session")
def bfloat16():
    """For tests that compute in it."""
    from checks import computes_in

    if not computes_in("bfloat16"):
        pytest.skip("TensorFlow has no kernels for bfloat16 here")


@pytest.fixture
def emoji_folder(tmp_path):
    """A writable copy of the forty emoji of `assets`, as a folder of captioned images."""
    folder = tmp_path / "emoji"
    shutil.copytree(EMOJI, folder, ignore=shutil.ignore_patterns("*.md"))
    return folder


def age(path, seconds=60):
    """Date a file back: too young time stamps are not trusted."""
    past = time.time() - seconds
    os.utime(path, (past, past))
