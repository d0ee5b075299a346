"""`examples/quickstart.ipynb`: the copy that is stored, and all of its cells run at tiny sizes."""

import ast
import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import EMOJI, environment
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
MOST_BYTES = 300_000
PICTURES = 4  # the images, samples of both trainings, and what is drawn

TINY = {
    "DATA": str(EMOJI),
    "OUT": "run",
    "RESOLUTION": 16,
    "CHANNELS": (8, 8),
    "STEPS": (2, 2),
    "BATCH_SIZE": 4,
    "PROMPTS": ["red apple", "rocket"],
    "EXPORT": "keras",
}
EAGER = "import tensorflow as tf\n\ntf.config.run_functions_eagerly(True)  # no time for graphs"


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def parameters(notebook):
    """The cell of settings."""
    (cell,) = (c for c in code(notebook) if "parameters" in c["metadata"].get("tags", ()))
    return cell


def pictures(notebook):
    """Pictures in the outputs, in order."""
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    found = [
        output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", ())
    ]
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def texts(notebook):
    """Texts of all outputs."""
    for cell in code(notebook):
        for output in cell["outputs"]:
            yield "".join(output.get("text", ()))
            yield "".join(output.get("data", {}).get("text/plain", ()))


def check(notebook):
    """All cells ran in order, without an error, and pictures came of it."""
    counts = [cell["execution_count"] for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1)), f"cells ran in the order {counts}"
    outputs = [output for cell in code(notebook) for output in cell["outputs"]]
    errors = [output["evalue"] for output in outputs if output["output_type"] == "error"]
    assert not errors, f"expected no error, got {errors}"
    shown = pictures(notebook)
    assert len(shown) == PICTURES, f"{len(shown)} pictures, expected {PICTURES}"
    for number, one in enumerate(shown):
        assert one.std() > 5, f"picture {number} is one colour"


def test_the_stored_copy_shows_a_whole_run():
    notebook = json.loads(NOTEBOOK.read_text("utf-8"))
    check(notebook)
    size = NOTEBOOK.stat().st_size
    assert size <= MOST_BYTES, f"{size} bytes, expected at most {MOST_BYTES}"
    for text in texts(notebook):
        found = re.findall(r"(?<![\w.])/(?:home|root|tmp|work|usr|mnt)/\S*|https?://\S*", text)
        assert not found, f"{found}: a path or host of the machine that ran it"
        logged = re.findall(r"^[IWE]\d{4}.*|^WARNING.*", text, re.MULTILINE)
        assert not logged, f"{logged}: TensorFlow's log lines"


def test_all_settings_are_replaced():
    tree = ast.parse("".join(parameters(json.loads(NOTEBOOK.read_text("utf-8")))["source"]))
    names = [node.targets[0].id for node in tree.body]
    assert names == list(TINY), f"the notebook has the settings {names}"


@pytest.mark.slow
def test_every_cell_runs(tmp_path, monkeypatch):
    """In a kernel of its own, as `jupyter execute` does it."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in code(notebook):
        cell["outputs"], cell["execution_count"] = [], None
    lines = [f"{name} = {value!r}" for name, value in TINY.items()]
    parameters(notebook)["source"] = "\n".join([*lines, EAGER])
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
    check(notebook)
    assert (tmp_path / "run/ldm/model/pipeline.json").is_file(), "expected a model"
    assert (tmp_path / "run/exported").is_dir(), "expected an export"
