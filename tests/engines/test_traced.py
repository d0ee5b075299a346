"""Traced functions: the numbers of the layers, at the second start without them."""

import numpy as np
import pytest
import tensorflow as tf
from tiny import UNET, conditioned_model, quick_model, tiny_model

from latentddpm.engines.traced import TracedGraph
from latentddpm.export.endpoints import endpoints, examples
from latentddpm.models.archive import save_archive
from latentddpm.models.denoisers.classic import ClassicUNet
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.graph_networks import is_graph
from latentddpm.models.inference import compiled
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.utils.machine.cache import SWITCH

MOST_OPERATIONS = 2100
"""Of the UNet of `tiny_model` without words: 1887, and 2414 the day before this test was written.
324 of them are the loops of attention in blocks, where the number of positions is not known."""


@pytest.fixture(scope="module")
def unets(tmp_path_factory):
    """Two networks that differ in their weights alone, and their archives."""
    folder = tmp_path_factory.mktemp("unets")
    networks = [ClassicUNet(4, channel_multipliers=(1, 2)) for _ in range(2)]
    for k, network in enumerate(networks):
        save_archive(network, folder / f"{k}.keras")
    return [(network, folder / f"{k}.keras") for k, network in enumerate(networks)]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(SWITCH)
    return tmp_path / "latentddpm" / "traced"


def inputs(batch=2):
    noisy_latents = np.random.default_rng(0).normal(size=(batch, 8, 8, 1)).astype("float32")
    return {"noisy_latents": noisy_latents, "timesteps": np.arange(batch, dtype="int32")}


def start(archive):
    """Function of an archive, as a new process would make it."""
    graph = TracedGraph(archive)
    return graph.bind(graph.read())


def files(cache):
    """Name → inode, which a file that is written again has anew."""
    return {file.name: file.stat().st_ino for file in cache.iterdir()}


def test_the_numbers_are_those_of_the_layers(unets, cache):
    for k, (network, archive) in enumerate(unets):
        expected = np.asarray(compiled(network)(inputs()))
        for time in ("first", "second"):
            found = start(archive)(inputs())
            np.testing.assert_array_equal(found, expected, f"network {k}, {time} start")
    assert len(files(cache)) == 1, "expected one function for all weights of one shape"


def test_conditions_are_inputs_of_traced_functions(tmp_path, cache):
    model = conditioned_model(text=False)
    save_archive(model.unet, tmp_path / "unet.keras")
    (_, given) = examples(endpoints(model)["denoise"], model)
    first, second = (start(tmp_path / "unet.keras")(given) for _ in range(2))
    np.testing.assert_allclose(first, np.asarray(compiled(model.unet)(given)), atol=5e-6)
    np.testing.assert_array_equal(first, second)
    assert len(files(cache)) == 1, "expected one function for all names and shapes"
    for name in model.conditions.names:
        other = start(tmp_path / "unet.keras")({**given, name: given[name] + 1})
        assert np.abs(other - first).max() > 1e-4, f"{name} changes nothing"


def test_the_second_start_takes_what_the_first_kept(unets, cache):
    _, archive = unets[0]
    start(archive)(inputs())
    kept = files(cache)
    start(archive)(inputs())
    assert files(cache) == kept, "expected the function of the first start to be used again"
    start(archive)(inputs(batch=1))
    assert len(files(cache)) == 2, "expected a function for another number of images"


def test_a_damaged_function_is_replaced(unets, cache):
    _, archive = unets[0]
    expected = start(archive)(inputs())
    (name,) = files(cache)
    whole = (cache / name).read_bytes()
    (cache / name).write_bytes(whole[:-100] + bytes(100))
    np.testing.assert_array_equal(start(archive)(inputs()), expected)
    assert (cache / name).read_bytes()[-100:] != bytes(100), "expected a whole one in its place"


def test_a_cache_that_cannot_be_written_changes_nothing(unets, cache):
    network, archive = unets[0]
    cache.parent.write_text("a file where the folder should be", "utf-8")
    found = start(archive)(inputs())
    np.testing.assert_array_equal(found, np.asarray(compiled(network)(inputs())))


def draw_traced_and_by_layers(folder, cache, monkeypatch, **options):
    """The model of a folder, traced and of layers, which drew the same; and the files it kept."""
    traced = LatentDiffusion.load(folder, cache=True)
    assert is_graph(traced.unet), "expected traced functions in place of layers"
    assert traced.engine == "keras"
    images = traced.generate(num_steps=2, seed=3, **options)
    kept = files(cache)
    monkeypatch.setenv(SWITCH, "1")
    layers = LatentDiffusion.load(folder, cache=True)
    assert not is_graph(layers.unet), f"expected {SWITCH} to switch the cache off"
    difference = np.abs(images.astype(int) - layers.generate(num_steps=2, seed=3, **options))
    assert difference.max() <= 1, f"expected one level at most, got {difference.max()}"
    return traced, layers, kept


def test_a_whole_model_draws_the_same(tmp_path, cache, monkeypatch):
    quick_model(text=False).save(tmp_path / "model")
    size = {"height": 16, "width": 16}
    *_, kept = draw_traced_and_by_layers(tmp_path / "model", cache, monkeypatch, **size)
    assert len(kept) == 2, "expected functions of the UNet and the decoder"


@pytest.mark.slow
def test_a_model_of_text_draws_the_same(tmp_path, cache, monkeypatch):
    tiny_model().save(tmp_path / "model")
    options = {"prompt": "red apple", "guidance_scale": 2.0}
    traced, layers, kept = draw_traced_and_by_layers(
        tmp_path / "model", cache, monkeypatch, **options
    )
    assert len(kept) == 3, "expected functions of the text encoder, UNet and decoder"
    words = {"token_ids": np.arange(16, dtype="int32")[None]}
    context = traced.text_encoder(words)
    np.testing.assert_allclose(context, np.asarray(layers.text_encoder(words)), atol=1e-6)
    given = {
        "noisy_latents": np.random.default_rng(0).normal(size=(1, 4, 4, 4)).astype("float32"),
        "timesteps": np.array([500], "int32"),
        "context": context,
    }
    np.testing.assert_array_equal(traced.unet(given), np.asarray(compiled(layers.unet)(given)))


def test_the_number_of_operations_is_bounded():
    network = UNet(**UNET)  # of two levels, without words
    function = tf.function(lambda inputs: network(inputs, training=False), autograph=False)
    specs = {
        "noisy_latents": tf.TensorSpec((None, 8, 8, 4)),
        "timesteps": tf.TensorSpec((None,)),
    }
    count = len(function.get_concrete_function(specs).graph.get_operations())
    assert count <= MOST_OPERATIONS, f"{count} operations, expected {MOST_OPERATIONS} at most"
