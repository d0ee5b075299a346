"""The two trainers as a Keras user takes them: what they train, log, refuse and leave alone."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tiny import QUICK_UNET, UNET, step_by_step, tiny_autoencoder

import latentddpm
from latentddpm.training.step.trainer import Trainer

SMALL = {**UNET, **QUICK_UNET}
CAPTIONS = ["a cat", "a dog", "", "two dogs"]


def latents(number=4, seed=0):
    return np.random.default_rng(seed).normal(size=(number, 4, 4, 4)).astype("float32")


def conditional():
    """A UNet, a text encoder and their tokenizer."""
    keras.utils.set_random_seed(0)
    text_encoder = latentddpm.TextEncoder(
        hidden_dim=16, num_layers=1, num_heads=2, context_length=8
    )
    unet = latentddpm.UNet(**SMALL, context_dim=16)
    return unet, text_encoder, latentddpm.CLIPTokenizer(8)


def fit(trainer, batches, steps=2):
    with step_by_step():
        return trainer.fit(batches, steps_per_epoch=steps, verbose=0, shuffle=False).history


def test_networks_take_keras_own_step():
    for network in (latentddpm.UNet, latentddpm.Autoencoder, latentddpm.TextEncoder):
        own = network.train_step is keras.Model.train_step
        assert own, f"{network.__name__} has a step of its own; expected Keras's"


def test_unet_and_text_encoder_train_together():
    unet, text_encoder, tokenizer = conditional()
    schedule = latentddpm.NoiseSchedule()
    trainer = latentddpm.DenoisingTrainer(unet, schedule, text_encoder)
    trainer.compile("adam")
    batches = latentddpm.noisy_examples(
        latents(), schedule, batch_size=4, captions=CAPTIONS, tokenizer=tokenizer
    )
    before = [network.get_weights() for network in (unet, text_encoder)]
    logs = fit(trainer, batches)
    assert {"loss", "loss_q1", "loss_q4", "gradient_norm", "skipped"} <= set(logs)
    for network, old in zip((unet, text_encoder), before, strict=True):
        moved = [np.any(a != b) for a, b in zip(old, network.get_weights(), strict=True)]
        assert any(moved), f"{network.name} did not train"


def test_the_prediction_is_that_of_the_networks():
    unet, text_encoder, tokenizer = conditional()
    trainer = latentddpm.DenoisingTrainer(unet, latentddpm.NoiseSchedule(), text_encoder)
    inputs = {"noisy_latents": latents(), "timesteps": np.arange(4, dtype="int32")}
    token_ids = tokenizer(CAPTIONS)
    context = np.asarray(text_encoder({"token_ids": token_ids}))
    np.testing.assert_allclose(
        trainer({**inputs, "token_ids": token_ids}),
        unet({**inputs, "context": context}),
        atol=1e-6,
        err_msg="the trainer predicts something else than its networks",
    )


def test_a_batch_may_bring_its_context():
    unet, *_ = conditional()
    trainer = latentddpm.DenoisingTrainer(unet, latentddpm.NoiseSchedule())
    trainer.compile("sgd")
    context = np.ones((4, 5, 16), "float32")
    inputs = {"noisy_latents": latents(), "timesteps": np.arange(4), "context": context}
    with step_by_step():
        loss = trainer.train_on_batch(inputs, latents(seed=1), return_dict=True)["loss"]
    assert np.isfinite(loss), f"loss {loss}, expected a number"


def test_a_text_encoder_of_another_width_is_refused():
    unet, *_ = conditional()
    wide = latentddpm.TextEncoder(hidden_dim=32, num_layers=1, num_heads=2, context_length=8)
    with pytest.raises(ValueError, match=r"32 wide, the UNet takes a context_dim of 16"):
        latentddpm.DenoisingTrainer(unet, latentddpm.NoiseSchedule(), wide)


def test_a_network_of_a_variance_is_refused():
    with_variance = latentddpm.UNet(**SMALL, learned_variance=True)
    with pytest.raises(ValueError, match="learned_variance needs the hybrid loss"):
        latentddpm.DenoisingTrainer(with_variance, latentddpm.NoiseSchedule())


@pytest.mark.slow
def test_a_frozen_text_encoder_stays():
    unet, text_encoder, tokenizer = conditional()
    text_encoder.trainable = False
    schedule = latentddpm.NoiseSchedule()
    trainer = latentddpm.DenoisingTrainer(unet, schedule, text_encoder)
    trainer.compile("adam")
    before = text_encoder.get_weights()
    fit(
        trainer,
        latentddpm.noisy_examples(
            latents(), schedule, batch_size=4, captions=CAPTIONS, tokenizer=tokenizer
        ),
    )
    for old, new in zip(before, text_encoder.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new, err_msg="a frozen text encoder was trained")


def test_the_autoencoder_trains_and_is_saved_alone(tmp_path):
    autoencoder = tiny_autoencoder(channel_multipliers=(1, 2), num_res_blocks=0)
    trainer = latentddpm.AutoencoderTrainer(autoencoder)
    trainer.compile("adam")
    images = np.tanh(np.random.default_rng(0).normal(size=(2, 16, 16, 3))).astype("float32")
    before = autoencoder.get_weights()
    fit(trainer, tf.data.Dataset.from_tensors({"images": images}).repeat())
    assert any(np.any(a != b) for a, b in zip(before, autoencoder.get_weights(), strict=True)), (
        "nothing was trained"
    )
    autoencoder.save(tmp_path / "vae.keras")
    loaded = keras.saving.load_model(tmp_path / "vae.keras")
    np.testing.assert_array_equal(loaded.encode(images)[0], autoencoder.encode(images)[0])


def test_any_keras_model_trains_in_micro_batches_as_in_one():
    def end(accumulation_steps):
        keras.utils.set_random_seed(1)
        network = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
        trainer = Trainer(network)
        trainer.compile("sgd", loss="mse", accumulation_steps=accumulation_steps)
        numbers = np.random.default_rng(0)
        x, y = numbers.normal(size=(6, 4)), numbers.normal(size=(6, 2))
        trainer.fit(x, y, batch_size=6, epochs=2, shuffle=False, verbose=0)
        return network.get_weights()

    for whole, parts in zip(end(1), end(3), strict=True):
        np.testing.assert_allclose(parts, whole, atol=1e-6, err_msg="micro-batches differ")


def test_no_micro_batch_is_refused():
    trainer = Trainer(keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)]))
    with pytest.raises(ValueError, match="accumulation_steps=0, expected at least 1"):
        trainer.compile("sgd", loss="mse", accumulation_steps=0)
