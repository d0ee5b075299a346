"""TensorFlow is loaded with a line that says so, and without lines of its own."""

import os
import re
import subprocess
import sys

import pytest
from conftest import EMOJI, environment

CHATTER = re.compile(r"E0000|I0000|W0000|absl|cuInit|oneDNN|WARNING|cuda", re.IGNORECASE)

# What takes the place of Keras, whose import takes its time, fails, or prints from C.
SLOW = """
import os, threading, time
os.write(2, b"chatter of C\\n")
while threading.active_count() > 1:  # until the thread that says so has had its turn
    time.sleep(0.01)
"""
FAILING = """
import os
os.write(2, b"libfoo.so: cannot open shared object file\\n")
raise ImportError("libfoo")
"""


def python(code, folder=None, **variables):
    """Run code in a fresh interpreter; a `folder` goes before the installed packages."""
    own = {name: value for name, value in environment().items() if name not in OURS}
    if folder:
        own["PYTHONPATH"] = os.pathsep.join([str(folder), own["PYTHONPATH"]])
    return subprocess.run(
        [sys.executable, "-c", code],
        env=own | variables,
        capture_output=True,
        text=True,
        timeout=600,
    )


OURS = ("KERAS_BACKEND", "TF_CPP_MIN_LOG_LEVEL")


def stand_in(folder, code):
    (folder / "keras.py").write_text(code, "utf-8")
    return folder


LOAD = """
import sys
from latentddpm.utils import console, startup
with console.speaking(quiet={quiet}):
    startup.import_keras()
print("loaded", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (LOAD.format(quiet=False), "loading TensorFlow …\nloaded\n"),
        (LOAD.format(quiet=True), "loaded\n"),
        ("from latentddpm.utils.startup import import_keras\nimport_keras()", ""),
    ],
    ids=["command", "quiet", "python"],
)
def test_a_command_says_that_it_loads(code, said, tmp_path):
    done = python(code, stand_in(tmp_path, SLOW))
    assert done.stderr == said, f"expected {said!r}, got {done.stderr!r}"


@pytest.mark.parametrize("level", ["2", "3"])
def test_an_import_that_fails_shows_all(level, tmp_path):
    code = LOAD.format(quiet=False)
    done = python(code, stand_in(tmp_path, FAILING), TF_CPP_MIN_LOG_LEVEL=level)
    assert "libfoo.so: cannot open" in done.stderr, f"{done.stderr!r}: the reason is hidden"
    assert "ImportError: libfoo" in done.stderr, f"{done.stderr!r}"


def test_those_who_ask_for_the_log_get_it(tmp_path):
    done = python(LOAD.format(quiet=False), stand_in(tmp_path, SLOW), TF_CPP_MIN_LOG_LEVEL="0")
    assert "chatter of C" in done.stderr, f"{done.stderr!r}: expected TensorFlow's own lines"


USE = "import tensorflow as tf\ntf.constant(1) + 1\ntf.config.list_physical_devices()\n"


@pytest.mark.parametrize(
    "code",
    [
        f"import latentddpm\nlatentddpm.UNet\n{USE}",
        f"from latentddpm.utils.startup import import_tensorflow\nimport_tensorflow()\n{USE}",
    ],
    ids=["public name", "tensorflow alone"],
)
def test_nobody_elses_line_is_seen(code):
    """Also not the one about a GPU that is not there, which comes at the first operation."""
    done = python(code, TF_CPP_MIN_LOG_LEVEL="2")
    assert done.returncode == 0, done.stderr
    assert not done.stderr, f"expected nothing on stderr, got {done.stderr}"


def test_commands_on_tfrecord_print_their_own_lines_alone(tmp_path):
    code = f"""
import sys
from latentddpm.cli import main
for line in (
    ["pack", "--data", {str(EMOJI)!r}, "--out", "shards", "--format", "tfrecord"],
    ["info", "shards"],
):
    main(line, standalone_mode=False)
"""
    os.makedirs(tmp_path / "here")
    done = python(f"import os\nos.chdir({str(tmp_path)!r})\n{code}", TF_CPP_MIN_LOG_LEVEL="2")
    assert done.returncode == 0, done.stderr
    assert "40 images in 1 tfrecord shards" in done.stderr, f"{done.stderr!r}"
    assert not CHATTER.search(done.stderr), f"chatter: {done.stderr}"


ORDER = """
import os, sys
from latentddpm.utils.console import held_stderr, say
with held_stderr():
    os.write(2, b"C\\n")
    print("Python", file=sys.stderr)
    say("ours")
    with held_stderr():
        say("ours, inside")
    os.write(2, b"C again\\n")
say("after")
os.write(2, b"C after\\n")
"""


def test_what_is_said_passes_what_is_held():
    done = python(ORDER)
    expected = "ours\nours, inside\nafter\nC after\n"
    assert done.stderr == expected, f"expected {expected!r}, got {done.stderr!r}"
