# ruff: noqa: E402
"""What `distribution/test_replicas.py` runs in a process of its own, on four logical CPU devices.

Trains the same on one device and on several, goes on from checkpoints on other numbers of
replicas, looks at what the networks of the replicas are given, and draws images on one and two.
Prints, as one JSON object, how far the results lie apart. With the argument `slow`, only the
splits of `SLOW_CASES` and a checkpoint of two replicas on four.
"""

import json
import os
import shutil
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 4)

import keras
import numpy as np
from safetensors.numpy import load_file
from train_small import apart, descended

from latentddpm.data.buckets import interleave, one_by_one
from latentddpm.data.catalog.scan import open_catalog
from latentddpm.data.catalog.split import Selection
from latentddpm.data.examples import diffusion_examples
from latentddpm.data.latents.cache import LatentsCache
from latentddpm.data.latents.pixels import PixelLatents
from latentddpm.data.random import RandomStream
from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.distribution.replicas import split_over_replicas
from latentddpm.distribution.strategy import distribute_dataset
from latentddpm.models.autoencoder.autoencoder import Autoencoder
from latentddpm.models.autoencoder.latent_space import LatentSpace
from latentddpm.models.denoisers.unet import UNet
from latentddpm.pipeline.latent_diffusion import LatentDiffusion
from latentddpm.training.control import add_control
from latentddpm.training.run import checkpoint
from latentddpm.training.run.callbacks import EverySteps
from latentddpm.training.run.contract import Contract
from latentddpm.training.step.autoencoder_trainer import AutoencoderTrainer
from latentddpm.training.step.consistency_trainer import ConsistencyTrainer
from latentddpm.training.step.denoising_trainer import DenoisingTrainer
from latentddpm.training.step.optimizer import FlatAdamW, WarmAdafactor, WarmLion
from latentddpm.training.step.trainer import Trainer
from latentddpm.utils.pixels import save_png, to_pixels

SIZES = {"channels": 8, "channel_multipliers": (1,), "num_res_blocks": 1, "norm_groups": 4}
UNET = {**SIZES, "attention_levels": (0,), "num_heads": 2, "zero_init": False}
TOLD = [
    {"name": "digit", "enters": "rows", "size": 3},
    {"name": "age", "enters": "projection", "size": 2},
]
BATCH = 5  # divided by no number of replicas
STEPS = 3


def small(dtype=None):
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(16, activation="tanh", dtype=dtype)(inputs)
    return Trainer(keras.Model(inputs, keras.layers.Dense(3, dtype="float32")(hidden)))


def adamw():
    # Epsilon: the attention's key biases have no gradient but rounding errors, and AdamW
    # would make steps of full size out of those. The gradients themselves are compared as well.
    return FlatAdamW(
        1e-2, weight_decay=0.1, epsilon=1e-3, global_clipnorm=0.1, use_ema=True, ema_momentum=0.9
    )


def keras_adamw():
    return keras.optimizers.AdamW(
        1e-2, weight_decay=0.1, epsilon=1e-3, global_clipnorm=0.1, use_ema=True, ema_momentum=0.9
    )


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9, global_clipnorm=0.5)


def adafactor():
    return WarmAdafactor(1e-2, global_clipnorm=0.1, use_ema=True, ema_momentum=0.9)


def lion():
    return WarmLion(1e-3, global_clipnorm=0.1, use_ema=True, ema_momentum=0.9, ema_warmup=True)


def strategy_of(replicas):
    if replicas == 1:
        return tf.distribute.get_strategy()
    # Collective operations remember, for a whole process, how many devices there were.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def small_data(number, seed):
    return normal(number, 6, seed=seed), 3 * normal(number, 3, seed=seed + 1)


def unet_data(number, seed, size=(4, 4)):
    # 371 apart: every batch reaches all quarters, so that the loss of none is NaN.
    inputs = {
        "noisy_latents": normal(number, *size, 4, seed=seed),
        "timesteps": (371 * np.arange(number, dtype="int32") + 200 + seed) % 1000,
    }
    return inputs, normal(number, *size, 4, seed=seed + 1)


def control_data(number, seed):
    inputs, target = unet_data(number, seed)
    return {**inputs, "control": np.abs(normal(number, 8, 8, 3, seed=seed + 2))}, target


def told_data(number, seed):
    inputs, target = unet_data(number, seed)
    digits = np.eye(3, dtype="float32")[np.arange(number) % 3]
    return {**inputs, "digit": digits, "age": normal(number, 2, seed=seed + 2)}, target


def signal_data(number, seed):
    return unet_data(number, seed, (16,))


def image_data(number, seed):
    images = np.tanh(normal(number, 8, 8, 3, seed=seed))
    return {"images": images, "noise": normal(number, 8, 8, 4, seed=seed + 1)}


BUILDERS = {
    "small": (small, small_data, {"loss": "mse", "metrics": ["mae"]}),
    "unet": (lambda: DenoisingTrainer(UNet(**UNET), NoiseSchedule()), unet_data, {}),
    "conditions": (
        lambda: DenoisingTrainer(UNet(**UNET, conditions=TOLD), NoiseSchedule()),
        told_data,
        {},
    ),
    "signals": (
        lambda: DenoisingTrainer(UNet(**UNET, spatial_dims=1), NoiseSchedule()),
        signal_data,
        {},
    ),
    "consistency": (
        lambda: ConsistencyTrainer(UNet(**UNET), NoiseSchedule(), stride=20),
        unet_data,
        {},
    ),
    "control": (
        lambda: DenoisingTrainer(add_control(UNet(**UNET), 2), NoiseSchedule()),
        control_data,
        {},
    ),
    "autoencoder": (
        lambda: AutoencoderTrainer(Autoencoder(**SIZES), kl_weight=1e-3),
        image_data,
        {},
    ),
}


def train(kind="small", replicas=1, optimizer=adamw, batch_size=BATCH, **settings):
    """`fit` and `evaluate` as a Keras user calls them; weights, history with evaluation, and the
    gradient of the first step (of `FlatAdamW`).
    """
    build, data, compiled = BUILDERS[kind]
    strategy = strategy_of(replicas)
    with strategy.scope():
        keras.utils.set_random_seed(1)
        model = build()
        model.compile(optimizer(), **compiled, **settings)
    examples = tf.data.Dataset.from_tensor_slices(data(STEPS * batch_size, 0)).batch(batch_size)
    gradient = []

    def look(step, logs):
        if step == 0 and isinstance(model.optimizer, FlatAdamW):
            gradient[:] = descended(model.optimizer)

    looking = keras.callbacks.LambdaCallback(on_train_batch_end=look)
    history = model.fit(examples, verbose=0, shuffle=False, callbacks=[looking]).history
    logs = {key: float(values[-1]) for key, values in history.items()}
    held_out = tf.data.Dataset.from_tensor_slices(data(7, 9)).batch(4)
    tested = model.evaluate(held_out, verbose=0, return_dict=True)
    logs |= {f"tested {k}": float(v) for k, v in tested.items()}
    logs["replicas that differ"] = count_unequal(
        strategy, [*model.variables, *model.optimizer.variables]
    )
    return model.get_weights(), logs, gradient


def count_unequal(strategy, variables):
    """How many variables are not the same bits on every replica."""
    copies = [strategy.experimental_local_results(variable.value) for variable in variables]
    values = [{copy.numpy().tobytes() for copy in each} for each in copies]
    return sum(len(each) > 1 for each in values)


def difference(one, other):
    """The largest difference of each kind, relative to the largest weight or to the log."""
    weights = [
        np.abs(a - b).max() / max(np.abs(a).max(), 1e-2)
        for a, b in zip(one[0], other[0], strict=True)
    ]
    logs = {name: abs(value - other[1][name]) / (value or 1) for name, value in one[1].items()}
    return {"weights": float(max(weights)), **logs}


CASES = {
    "2 replicas": {"replicas": 2},
    "3 replicas, batch of 2": {"replicas": 3, "batch_size": 2},
    "2 micro-batches": {"accumulation_steps": 2},
    "2 replicas, 2 micro-batches": {"replicas": 2, "accumulation_steps": 2},
}
SLOW_CASES = {
    "4 replicas": {"replicas": 4},
    "4 replicas, batch of 3": {"replicas": 4, "batch_size": 3},
    "2 micro-batches, XLA": {"accumulation_steps": 2, "jit_compile": True},
    "7 micro-batches": {"accumulation_steps": 7},
    "2 replicas, Lion": {"replicas": 2, "optimizer": lion},
    "2 replicas, Adafactor": {"replicas": 2, "optimizer": adafactor},
    "2 replicas, Keras's AdamW": {"replicas": 2, "optimizer": keras_adamw},
    "4 replicas, sgd": {"replicas": 4, "optimizer": sgd},
    "conditions, 2 replicas": {"kind": "conditions", "replicas": 2},
    "control, 2 replicas": {"kind": "control", "replicas": 2},
    "signals, 2 replicas": {"kind": "signals", "replicas": 2},
    "consistency, 2 replicas": {"kind": "consistency", "replicas": 2},
    "autoencoder, 2 replicas": {"kind": "autoencoder", "replicas": 2},
    "unet, 2 replicas, 2 micro-batches": {
        "kind": "unet",
        "replicas": 2,
        "accumulation_steps": 2,
    },
}


def train_shapes(replicas):
    """`train` on images of two shapes in turns, as the trainers feed them."""

    def part(shape, first, last):
        def images(place):
            pixels = tf.random.stateless_normal((*shape, 3), (place, shape[0]))
            return pixels, pixels[:, ::-1]

        return tf.data.Dataset.range(first, last).map(images).batch(BATCH)

    strategy, sizes = strategy_of(replicas), {(4, 2): range(7), (2, 4): range(4)}
    with strategy.scope():
        keras.utils.set_random_seed(1)
        inputs = keras.Input((None, None, 3))
        model = Trainer(keras.Model(inputs, keras.layers.Conv2D(3, 3, padding="same")(inputs)))
        model.compile(adamw(), loss="mse")
    examples = distribute_dataset(strategy, interleave(sizes, 0, 2 * STEPS, BATCH, part))
    logs = model.fit(examples, steps_per_epoch=2 * STEPS, verbose=0, shuffle=False).history
    held_out = distribute_dataset(strategy, one_by_one(sizes, part))  # batches of 5, 2 and 4
    tested = model.evaluate(held_out, steps=3, verbose=0)
    return model.get_weights(), {"loss": logs["loss"][-1], "tested": tested}


# --- Checkpoints ---------------------------------------------------------------------------


def go_on(replicas, folder, start, stop):
    """Steps `start` … `stop` − 1 from the checkpoint in `folder`; the last step's state."""
    with strategy_of(replicas).scope():
        keras.utils.set_random_seed(1 + start)  # what is not restored starts otherwise
        model = small()
        model.compile(adamw(), loss="mse")
        model.optimizer.build(model.trainable_variables)
    if start:
        assert checkpoint.load_latest(folder, model) == start, "another step was restored"
    x, y = (array[start * BATCH : stop * BATCH] for array in small_data(2 * STEPS * BATCH, 0))
    examples = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)

    def save(step):
        checkpoint.save(folder, model, step, Contract("train-vae", {}, {}))

    saving = EverySteps(save, start, stop, STEPS)
    model.fit(examples, verbose=0, shuffle=False, callbacks=[saving])
    return list(load_file(folder / f"step-{stop:08d}" / checkpoint.STATE).values())


def resumed(folder, changes=((2, 1), (1, 2))):
    """For each change of the number of replicas, the difference to one device all the way."""
    whole = go_on(1, folder / "1", 0, 2 * STEPS)
    shutil.rmtree(folder / "1" / f"step-{2 * STEPS:08d}")
    go_on(2, folder / "2", 0, STEPS)
    found = {}
    for before, after in changes:
        run = folder / f"{before} → {after}"
        shutil.copytree(folder / str(before), run)
        state = go_on(after, run, STEPS, 2 * STEPS)
        found[run.name] = difference((whole, {}), (state, {}))["weights"]
    return found


# --- What the networks are given ---------------------------------------------------------------


SEEN = defaultdict(list)
"""Of each replica, the inputs of every step; on the module, where Keras does not track them."""


class Witness(keras.layers.Layer):
    """Passes on the first of its inputs, and notes of all of them what its replica was given."""

    def call(self, inputs):
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group

        def note(replica, *arrays):
            SEEN[int(replica)].append(arrays)
            return arrays[0]

        noted = tf.numpy_function(note, [replica, *inputs], inputs[0].dtype)
        return tf.ensure_shape(noted, inputs[0].shape)

    def compute_output_shape(self, input_shape):
        return input_shape[0]


def pixels(folder):
    """Nine images of 4×4 pixels, as a UNet of pixels is trained on."""
    for number in range(9):
        save_png(folder / f"{number}.png", to_pixels(normal(4, 4, 3, seed=number)))
    return PixelLatents.of(open_catalog(folder, folder / "catalog", quiet=True), 4, mirrored=True)


def examples(cache, batch_size=7):
    """Batches of `STEPS` steps, with the noise among their inputs."""
    batches = diffusion_examples(
        cache,
        Selection(9, lambda start, stop: np.ones(stop - start, bool)),
        FlowSchedule(),
        LatentSpace(1.0),
        batch_size=batch_size,
        stream=RandomStream(3, "train-diffusion"),
        positions=tf.data.Dataset.range(STEPS * batch_size),
    )
    return batches.map(lambda inputs, noise: ({**inputs, "noise": noise}, noise))


def witnesses(replicas, batches):
    """A model on replicas that notes what they are given of `batches`, and of others like them."""
    specs = batches.element_spec[0]
    with strategy_of(replicas).scope():
        inputs = {key: keras.Input(spec.shape[1:], name=key) for key, spec in specs.items()}
        hidden = Witness()(list(inputs.values()))
        channels = specs["noise"].shape[-1]
        model = Trainer(keras.Model(inputs, keras.layers.Dense(channels)(hidden)))
        model.compile("sgd", loss="mse")
    return model


def given(replicas, model, batches):
    """Of each replica, noisy latents, timesteps and noise of every step's share."""
    SEEN.clear()
    model.fit(batches, verbose=0, shuffle=False)
    return [SEEN[replica] for replica in range(replicas)]


def streams(caches):
    """Of each cache, how 4 replicas share a step's examples, whether together they are the batches
    of the data, and how many examples, different noises and different timesteps there were.
    """
    data = {name: examples(cache) for name, cache in caches.items()}
    model = witnesses(4, data["latents"])
    return {name: stream(model, batches) for name, batches in data.items()}


def stream(model, data):
    """What `streams` says of one cache."""
    names = "noisy_latents", "timesteps", "noise"
    alone = [[batch[name] for name in names] for batch, _ in data.as_numpy_iterator()]
    shares = given(4, model, data)
    batches = [
        [np.concatenate(a) for a in zip(*step, strict=True)] for step in zip(*shares, strict=True)
    ]
    equal = [
        np.array_equal(mine, other)
        for batch, expected in zip(batches, alone, strict=True)
        for mine, other in zip(batch, expected, strict=True)
    ]
    return {
        "shares": [len(share[0][1]) for share in shares],
        "equal": all(equal),
        "examples": sum(len(timesteps) for _, timesteps, _ in alone),
        "noises": len({noise.tobytes() for *_, noises in batches for noise in noises}),
        "timesteps": len({int(t) for _, timesteps, _ in batches for t in timesteps}),
    }


def shared(number):
    """Whether four replicas give a batch of `number` examples back as one function does."""
    inputs = {"a": normal(number, 2), "b": normal(number, 1, seed=1)}
    function = split_over_replicas(lambda parts: parts["a"] * parts["b"] + 1, strategy_of(4))
    outputs = tf.function(function)(inputs).numpy()
    return bool(np.array_equal(outputs, inputs["a"] * inputs["b"] + 1))


def drawn(replicas):
    """Three images: a number that two replicas do not share evenly."""
    keras.utils.set_random_seed(1)
    with strategy_of(replicas).scope():
        unet = UNet(**{**UNET, "attention_levels": (), "num_res_blocks": 0})
        parts = Autoencoder(**{**SIZES, "num_res_blocks": 0}), unet, NoiseSchedule()
    model = LatentDiffusion(*parts, image_size=(8, 8))
    return model.generate(num_images=3, seed=5, num_steps=2).tolist()


def splits(cases):
    """Of each case, how far it ends from the same on one device."""
    alone, found = {}, {}
    for name, case in cases.items():
        same = {k: v for k, v in case.items() if k in ("kind", "optimizer", "batch_size")}
        key = str(same)
        if key not in alone:
            alone[key] = train(**same)
        one, other = alone[key], train(**case)
        found[name] = difference(one, other)
        if one[2]:
            whole, worst = apart(one[2], other[2])
            found[name] |= {"gradient": whole, "gradient of a variable": worst}
    return found


def main():
    if sys.argv[1:] == ["slow"]:
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = resumed(Path(folder), [(2, 4)])
        print(json.dumps({"splits": splits(SLOW_CASES), "checkpoints": checkpoints}))
        return
    found = splits(CASES)
    found["3 replicas, two shapes"] = difference(train_shapes(1), train_shapes(3))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = resumed(Path(folder))
        (data := Path(folder) / "data").mkdir()
        latents = LatentsCache(9, normal(9, 4, 4, 6), mirrored=False)
        streamed = streams({"latents": latents, "pixels": pixels(data)})
    results = {"splits": found, "checkpoints": checkpoints, "streams": streamed}
    results["shared"] = {number: shared(number) for number in (1, 3, 4, 6)}
    results["drawn"] = {replicas: drawn(replicas) for replicas in (1, 2)}
    print(json.dumps(results))


if __name__ == "__main__":
    main()
