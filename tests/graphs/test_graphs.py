"""Graphs: they compute what the Keras networks do, and belong to their archives."""

import json
import math
import os
import shutil
import subprocess
import sys

import keras
import pytest
from click.testing import CliRunner
from conftest import environment
from tiny import perturb, quick_model, signal_model

from latentddpm.cli import main
from latentddpm.clip.text_encoder import TextEncoder
from latentddpm.engines.onnx import OnnxGraph
from latentddpm.errors import UserError
from latentddpm.export.export import export_model
from latentddpm.export.graphs import check_graph
from latentddpm.graphs.builder import NoGraph
from latentddpm.graphs.entries import PARTS, config_digest
from latentddpm.graphs.networks import make_graph, make_graphs, network_of
from latentddpm.models.archive import save_archive
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.denoisers.basic import BasicUNet
from latentddpm.models.denoisers.classic import ClassicUNet
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.layers import ResnetBlock
from latentddpm.pipeline.model_folder import read_model_folder

SMALL = {"channels": 8, "channel_multipliers": (1, 2), "num_res_blocks": 1, "norm_groups": 4}
ONE_LEVEL = {"channel_multipliers": (1,), "num_res_blocks": 0}
UNETS = {"attention_levels": (1,), "num_heads": 2, "zero_init": False}
PUBLISHED = {"learned_variance": True, "original_ddpm": True, "dropout": 0.1}
SCALED = {"time_scale_shift": True}
CLIP = {"hidden_dim": 16, "num_layers": 1, "num_heads": 2, "context_length": 8}
CONDITIONS = [
    {"name": "lines", "enters": "concat", "size": 3},
    {"name": "digit", "enters": "rows", "size": 4},
    {"name": "age", "enters": "projection", "size": 2},
    {"name": "level", "enters": "timestep", "size": 1},
    {"name": "style", "enters": "identity", "size": 32},
    {"name": "inpainting", "enters": "concat", "size": 5},
]
KINDS = {
    "text and conditions": lambda: UNet(**SMALL, **UNETS, context_dim=12, conditions=CONDITIONS),
    "maps alone": lambda: UNet(**SMALL, **UNETS, **SCALED, conditions=CONDITIONS[::5]),
    "text": lambda: UNet(**SMALL, **UNETS, context_dim=12),
    "no text": lambda: UNet(**SMALL, **UNETS, **PUBLISHED, latent_channels=3),
    "classic": lambda: ClassicUNet(4, channel_multipliers=(1, 2, 2), latent_channels=2),
    "basic": lambda: BasicUNet(activate_output=True),
    "quick_gelu": lambda: TextEncoder(**CLIP, vocabulary_size=99),
    "gelu": lambda: TextEncoder(**CLIP, vocabulary_size=99, activation="gelu"),
    "autoencoder": lambda: Autoencoder(**SMALL, image_channels=1),
    "no quant": lambda: Autoencoder(**SMALL, quant_conv=False, latent_channels=3),
}


@pytest.fixture(scope="module", autouse=True)
def runtime():
    pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A model, and its folder with graphs."""
    path, model = tmp_path_factory.mktemp("graphs") / "model", quick_model()
    model.digest = model.save(path).digest
    return model, path


@pytest.fixture(scope="module")
def folder(saved):
    """The folder; tests that change it take a copy."""
    return saved[1]


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "model")


def names_of(network):
    """Names of the graphs of a network."""
    if isinstance(network, Autoencoder):
        return "encoder", "decoder"
    return ("text_encoder",) if isinstance(network, TextEncoder) else ("unet",)


def found(path):
    """The graphs that a folder offers."""
    folder = read_model_folder(path)
    return [name for name in PARTS if folder.graph(name)]


def edit(path, change):
    """Let a function change the manifest of a folder."""
    manifest = json.loads((path / "pipeline.json").read_text("utf-8"))
    change(manifest)
    (path / "pipeline.json").write_text(json.dumps(manifest), "utf-8")


# --- Numbers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_computes_what_its_network_does(kind, tmp_path):
    network = KINDS[kind]()
    perturb(network, size=0.03)
    archive = tmp_path / "network.keras"
    save_archive(network, archive)
    for name in names_of(network):
        file = tmp_path / f"{name}.onnx"
        file.write_bytes(make_graph(name, network))
        difference = check_graph(name, OnnxGraph(file, archive), network_of(name, network))
        assert difference < 2e-5, f"{kind}, {name}: expected the network's output, {difference}"


def test_the_inputs_of_a_graph_have_the_names_and_sizes_of_conditions():
    onnx = pytest.importorskip("onnx")
    graph = onnx.load_from_string(make_graph("unet", KINDS["text and conditions"]())).graph
    found = {
        each.name: [one.dim_param or one.dim_value for one in each.type.tensor_type.shape.dim]
        for each in graph.input
    }
    assert found == {
        "noisy_latents": ["batch", "height", "width", 4],
        "timesteps": ["batch"],
        "context": ["batch", "length", 12],
        "lines": ["batch", "height", "width", 3],
        "inpainting": ["batch", "height", "width", 5],
        "digit": ["batch", 4],
        "age": ["batch", 2],
        "level": ["batch", 1],
        "style": ["batch", 32],
    }


def test_a_graph_belongs_to_its_conditions_and_their_order(tmp_path):
    digests, sizes = [], {**SMALL, **ONE_LEVEL, **UNETS, "attention_levels": ()}
    for conditions in (None, [], CONDITIONS[::5], CONDITIONS[::-5], CONDITIONS[1:2]):
        save_archive(UNet(**sizes, conditions=conditions), tmp_path / "unet.keras")
        digests.append(config_digest(tmp_path / "unet.keras"))
    assert digests[0] == digests[1], "expected no conditions to leave the digest as it was"
    assert len(set(digests)) == 4, digests


def test_a_graph_is_valid_onnx_and_small(saved):
    onnx = pytest.importorskip("onnx")
    model, folder = saved
    files = make_graphs(model.networks)
    assert list(files) == list(PARTS), f"expected every network, got {list(files)}"
    for name, data in files.items():
        graph = onnx.load_from_string(data)
        size = sum(len(each.raw_data) for each in graph.graph.initializer)
        for each in graph.graph.initializer:
            if each.data_location == onnx.TensorProto.EXTERNAL:  # as it is with its weights
                each.ClearField("external_data")
                each.data_location = onnx.TensorProto.DEFAULT
                each.raw_data = bytes(4 * math.prod(each.dims))
        onnx.checker.check_model(graph)
        assert size < 10_000, f"{name}: expected no weights inside, constants have {size} bytes"
        again = (folder / "graphs" / f"{name}.onnx").read_bytes()
        assert again == data, f"{name}: expected the same bytes again"


def test_layers_of_others_have_no_graph(tmp_path):
    class Louder(ResnetBlock):
        """Computes something else under a name that begins alike."""

    inputs = keras.Input((None, None, 4), name="noisy_latents")
    network = keras.Model(inputs, Louder(4, norm_groups=2, name="louder")(inputs))
    with pytest.raises(NoGraph, match="louder"):
        make_graph("unet", network)
    assert make_graphs({"unet": network}) == {}, "expected a model that goes without"


def test_signals_have_no_graphs(tmp_path):
    model = signal_model()
    model.digest = model.save(tmp_path / "model").digest
    assert found(tmp_path / "model") == [], "expected none"
    with pytest.raises(UserError, match="those of images have"):
        export_model(model, tmp_path / "model", "graphs")


# --- Belonging ------------------------------------------------------------------------------


def test_a_model_is_saved_with_its_graphs(folder):
    assert found(folder) == list(PARTS), "expected a graph of every network"
    answer = CliRunner().invoke(main, ["info", str(folder)]).output
    assert "graphs     encoder, decoder, unet, text_encoder\n" in answer, answer


def test_reading_a_folder_needs_no_keras(folder):
    code = (
        "import sys; from latentddpm.pipeline.model_folder import read_model_folder as read;"
        f"print(read({str(folder)!r}).graph('unet').name, 'keras' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["unet.onnx", "False"], done.stdout


def cut(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, os.unlink])
def test_a_damaged_graph_is_not_used(copy, damage):
    damage(copy / "graphs" / "unet.onnx")
    rest = [name for name in PARTS if name != "unet"]
    assert found(copy) == rest, "expected the others, and no error"


@pytest.mark.parametrize(
    "entry",
    [None, [], {}, {"file": "../unet.onnx"}, {"file": "graphs/unet.onnx", "bytes": "many"}],
)
def test_a_malformed_entry_is_not_used(copy, entry):
    edit(copy, lambda manifest: manifest["graphs"].update(unet=entry))
    assert "unet" not in found(copy), "expected no graph, and no error"
    edit(copy, lambda manifest: manifest.update(graphs=entry))
    assert found(copy) == [], "expected no graph, and no error"


def test_a_graph_of_other_arguments_is_not_used(copy):
    def exchange(manifest):
        manifest["graphs"]["unet"]["config"] = manifest["graphs"]["encoder"]["config"]

    edit(copy, exchange)
    assert "unet" not in found(copy), "expected the graph of another network to be left alone"


def test_the_digest_leaves_out_what_changes_no_graph(tmp_path):
    def digest(network):
        save_archive(network, tmp_path / "network.keras")
        return config_digest(tmp_path / "network.keras")

    sizes = {**SMALL, **ONE_LEVEL}
    first = digest(Autoencoder(**sizes))
    again = Autoencoder(**sizes, scaling_factor=0.5, name="other", dtype="mixed_bfloat16")
    assert digest(again) == first, "expected scaling, name and dtype to be left out"
    other = digest(Autoencoder(**{**sizes, "norm_groups": 2}))
    assert other != first, "expected another digest for other norms"


# --- Older folders --------------------------------------------------------------------------


def test_an_older_folder_gets_graphs(copy):
    edit(copy, lambda manifest: manifest.pop("graphs"))
    shutil.rmtree(copy / "graphs")
    before = {path.name: path.read_bytes() for path in copy.glob("*.keras")}
    old = read_model_folder(copy)
    assert found(copy) == [], "expected an older folder to read, without graphs"
    answer = CliRunner().invoke(main, ["export", "--model", str(copy), "--format", "graphs"])
    assert answer.exit_code == 0, answer.output
    assert found(copy) == list(PARTS), "expected every graph"
    assert {path.name: path.read_bytes() for path in copy.glob("*.keras")} == before, "archives"
    assert read_model_folder(copy).digest == old.digest, "expected the same model"
    said = [line.split(":")[0] for line in answer.stderr.splitlines() if "largest" in line]
    assert said == list(PARTS), f"expected a line for each graph: {answer.stderr}"


def test_graphs_go_into_their_own_folder_only(saved, copy):
    model, folder = saved
    edit(copy, lambda manifest: manifest["parts"]["unet"].update(digest="another"))
    with pytest.raises(UserError, match="expected the folder that the model was loaded from"):
        export_model(model, copy, "graphs")
    for arguments in (["--format", "graphs", "--out", "x"], ["--format", "onnx"]):
        answer = CliRunner().invoke(main, ["export", "--model", str(folder), *arguments])
        assert answer.exit_code == 2, f"expected {arguments} to be refused: {answer.output}"
        assert "--out" in answer.stderr, answer.stderr


def test_a_graph_that_computes_something_else_is_not_written(saved, copy):
    shutil.rmtree(copy / "graphs")
    (model, _), was = saved, saved[0].autoencoder.encoder.get_weights()
    model.autoencoder.encoder.set_weights([each + 1 for each in was])  # not the archive's
    with pytest.raises(ArithmeticError, match="graph encoder differs"):
        export_model(model, copy, "graphs")
    model.autoencoder.encoder.set_weights(was)
    left = sorted(path.name for path in copy.iterdir() if "graphs" in path.name)
    assert not left, f"expected no graphs, and nothing beside them: {left}"
