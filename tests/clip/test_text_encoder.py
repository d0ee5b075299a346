"""CLIP's text transformer: shapes, causality, archives, presets."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from latentddpm.clip.text_encoder import TextEncoder, build_text_encoder, load_preset
from latentddpm.clip.tokenizer import CLIPTokenizer
from latentddpm.errors import UserError

SIZES = {
    "hidden_dim": 16,
    "num_layers": 2,
    "num_heads": 4,
    "intermediate_dim": 24,
    "context_length": 8,
    "vocabulary_size": 49_408,
}


@pytest.fixture(scope="module")
def encoder():
    keras.utils.set_random_seed(0)
    return build_text_encoder(**SIZES)


@pytest.fixture(scope="module")
def token_ids():
    return CLIPTokenizer(8)(["a cat", "", "two dogs!"])


def call(encoder, token_ids):
    return keras.ops.convert_to_numpy(encoder({"token_ids": token_ids}))


def test_shapes_and_attributes(encoder, token_ids):
    context = call(encoder, token_ids)
    assert context.shape == (3, 8, 16), "one state of width 16 for each of 8 positions"
    assert context.dtype == np.float32, "float32 by default"
    assert call(encoder, token_ids[:, :5]).shape == (3, 5, 16), "fewer positions are allowed"
    assert (encoder.context_length, encoder.hidden_dim) == (8, 16), "the sizes are attributes"
    assert build_text_encoder(hidden_dim=8, num_layers=1, num_heads=1).context_length == 77, (
        "CLIP's context length is the default"
    )
    assert encoder.get_layer("layer_norm").epsilon == 1e-5, "CLIP's epsilon, not KerasHub's"


def test_causality(encoder, token_ids):
    changed = token_ids.copy()
    changed[:, 4:] = 1000
    before, after = call(encoder, token_ids), call(encoder, changed)
    np.testing.assert_array_equal(before[:, :4], after[:, :4], "later tokens changed the past")
    assert np.abs(before[:, 4:] - after[:, 4:]).min(axis=(0, 2)).max() > 0, "and not themselves"


def test_same_in_training_mode(encoder, token_ids):
    trained = encoder({"token_ids": token_ids}, training=True)
    np.testing.assert_array_equal(trained, call(encoder, token_ids), "there is no dropout")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "hidden_dim 16 is not divisible by num_heads 3"),
        ({"hidden_dim": None, "intermediate_dim": None}, "hidden_dim: expected a positive"),
        ({"num_layers": 0}, "num_layers: expected a positive whole number, got 0"),
        ({"activation": "quick-gelu"}, "did you mean 'quick_gelu'"),
    ],
)
def test_bad_sizes(changes, message):
    with pytest.raises(UserError, match=message):
        TextEncoder(**SIZES | changes)


def test_config_is_complete():
    arguments = SIZES | {"activation": "gelu", "dtype": "mixed_bfloat16", "name": "text"}
    first = TextEncoder(**arguments)
    first.trainable = False
    second = TextEncoder.from_config(first.get_config())
    assert second.get_config() == first.get_config(), "a config must rebuild its model"
    assert second.compute_dtype == "bfloat16", "the dtype policy is part of the config"
    assert first.get_layer("encoder_block_0").compute_dtype == "bfloat16", "for layers too"


@pytest.mark.slow
def test_archive_loads_in_a_fresh_process(encoder, token_ids, tmp_path):
    encoder.save(tmp_path / "text_encoder.keras")
    np.save(tmp_path / "token_ids.npy", token_ids)
    program = """if True:
        import sys, numpy, keras
        import latentddpm.clip.text_encoder
        folder = sys.argv[1]
        encoder = keras.models.load_model(folder + "/text_encoder.keras", safe_mode=True)
        assert type(encoder) is latentddpm.clip.text_encoder.TextEncoder, type(encoder)
        assert encoder.get_layer("layer_norm").epsilon == 1e-5
        token_ids = numpy.load(folder + "/token_ids.npy")
        numpy.save(folder + "/out.npy", encoder({"token_ids": token_ids}))
        assert "keras_hub" not in sys.modules, "only presets need keras_hub"
    """
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, f"the archive must load with safe_mode:\n{done.stderr}"
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), call(encoder, token_ids))


def test_preset(tmp_path, token_ids):
    import keras_hub

    sizes = {k: SIZES[k] for k in ("hidden_dim", "num_layers", "num_heads", "intermediate_dim")}
    text = keras_hub.models.CLIPTextEncoder(
        vocabulary_size=49_408, embedding_dim=16, max_sequence_length=8, **sizes
    )
    vision = keras_hub.models.CLIPVisionEncoder(
        patch_size=16, hidden_dim=16, num_layers=1, num_heads=2, intermediate_dim=16,
        image_shape=(32, 32, 3),
    )  # fmt: skip
    clip = keras_hub.models.CLIPBackbone(vision, text, projection_dim=8)
    text.layer_norm.epsilon = 1e-5
    for source in (text, clip):
        source.save_to_preset(tmp_path / source.name)
        encoder, tokenizer = load_preset(str(tmp_path / source.name))
        assert tokenizer.context_length == 8, "the tokenizer has the encoder's length"
        np.testing.assert_allclose(
            call(encoder, token_ids), call(text, token_ids), rtol=0, atol=1e-6
        )


def test_preset_errors(tmp_path):
    with pytest.raises(UserError, match="did you mean 'clip_vit_large_patch14'"):
        load_preset("clip_vit_large_patch_14")
    with pytest.raises(UserError, match="could not be loaded") as caught:
        load_preset(str(tmp_path))
    assert "\n" not in str(caught.value), "an error is one line"
