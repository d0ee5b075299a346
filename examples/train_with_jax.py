"""Both stages in a training loop of one's own, on Keras's JAX backend and one GPU.

The networks, losses and the schedule of latentddpm know no backend (`latentddpm.models`,
`latentddpm.diffusion`); its training commands are built on TensorFlow. Where a machine has JAX
and no TensorFlow, this loop does what `train-vae` with a perceptual term and then
`train-diffusion` do, for a set of images that fits into the GPU's memory:

    autoencoder   L1 + w_P · perceptual + w_KL · KL
    diffusion     mean squared error of v, cosine schedule, 10 % of the captions dropped

A hundred steps are one `lax.scan`: drawing images, mirroring, noise and updates all happen on
the GPU. The learning rates fall as cosines of the time that is given, not of a number of steps,
because time is what a borrowed machine is measured in. Moving averages of the weights are kept.

    python examples/train_with_jax.py prepare DATA.npz emoji-128              (on TensorFlow)
    KERAS_BACKEND=jax python examples/train_with_jax.py train DATA.npz OUT --seconds 380
    python examples/train_with_jax.py pack DATA.npz OUT MODEL      (on TensorFlow)

Compiling takes longer than training: with JAX_COMPILATION_CACHE_DIR set, `compile DATA.npz OUT`
beside the first stage has the second one's program ready when it is wanted.

DATA.npz: `images` (N, S, S, 3) uint8, `ids` (N, C, L) int32 token ids of the captions of each
image, `held` (N,) bool, images that nothing is trained on, `empty` (L,) ids of the empty prompt,
`perceptual_0` …: weights of a `PerceptualDistance` in float16, in the order of `get_weights`.
OUT gets weights in float16, in the order of `get_weights`, a log and `run.json`.
"""

import argparse
import functools
import json
import math
import time
from pathlib import Path

from latentddpm.utils.startup import import_keras

import_keras()  # without TensorFlow's log lines

import keras
import numpy as np

from latentddpm.clip.text_encoder import build_text_encoder
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.interop.vgg import CAFFE
from latentddpm.models.autoencoder.autoencoder import Autoencoder, GaussianKL
from latentddpm.models.denoisers.unet import UNet
from latentddpm.models.functional import rebuild
from latentddpm.models.layers import blank_weights
from latentddpm.models.perceptual import PerceptualDistance

STEPS = 100  # of one scan
AUTOENCODER = {
    "channels": 32,
    "channel_multipliers": (1, 2, 4),
    "num_res_blocks": 1,
    "norm_groups": 8,
}  # 64×64 → 16×16×4
UNET = {
    "channels": 96,
    "channel_multipliers": (1, 2),
    "num_res_blocks": 2,
    "num_heads": 4,
    "attention_levels": (0, 1),
    "norm_groups": 8,
}
TEXT = {"hidden_dim": 128, "num_layers": 2, "num_heads": 4}


class Log:
    """Lines of JSON, and the same on the terminal."""

    def __init__(self, path):
        self.start, self.path = time.monotonic(), path

    def __call__(self, **values):
        values = {"seconds": round(self.seconds, 1), **values}
        line = json.dumps(
            {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in values.items()}
        )
        print(line, flush=True)
        with self.path.open("a") as file:
            file.write(line + "\n")

    @property
    def seconds(self):
        return time.monotonic() - self.start


class Trained:
    """A network's trainable arrays, its other ones, its optimizer's, and their moving average."""

    def __init__(self, variables):
        self.variables = variables
        self.optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.01, global_clipnorm=1.0)
        self.optimizer.build(variables)

    def state(self):
        """Weights, the optimizer's arrays, and the average: copies, for a scan overwrites them."""
        groups = self.variables, self.optimizer.variables, self.variables
        return tuple([keras.ops.copy(v.value) for v in group] for group in groups)

    def update(self, state, gradients, rate, momentum):
        """One step of the optimizer, and of the moving average."""
        weights, slots, average = state
        pairs = zip(self.optimizer.variables, slots, strict=True)
        slots = [rate if v is self.optimizer._learning_rate else slot for v, slot in pairs]
        weights, slots = self.optimizer.stateless_apply(slots, gradients, weights)
        average = [
            momentum * a + (1 - momentum) * w for a, w in zip(average, weights, strict=True)
        ]
        return list(weights), list(slots), average


def cosine(share):
    """The learning rate's course over the share of the time that has passed."""
    warm = min(share / 0.03, 1.0)
    return warm * 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))


def run_for(seconds, log, name, chunk, state, rate, every=10):
    """Repeat `chunk(state, number, share, rate)` for `seconds()`, asked once the first call, which
    compiles, is over; the last state, and how many steps that were."""
    import jax

    log(stage=name, say="compiling")
    begun, number, share = time.monotonic(), 0, 0.0
    while share < 1.0:
        state, terms = chunk(state, number, share, rate * cosine(max(share, 1e-3)))
        jax.block_until_ready(state)
        number += 1
        if number == 1:  # the course starts when the first call, which compiles, is over
            compiled = time.monotonic() - begun
            begun, seconds = time.monotonic(), seconds()
            log(stage=name, compiled=compiled)
        if number % every == 1:
            log(stage=name, step=number * STEPS, **{k: float(v) for k, v in terms.items()})
        share = (time.monotonic() - begun) / max(seconds, 1e-9)
    log(stage=name, step=number * STEPS, **{k: float(v) for k, v in terms.items()})
    return state, number * STEPS


def train_autoencoder(data, settings, log):
    """The autoencoder, its weights the moving average, and how many steps it took."""
    import jax
    import jax.numpy as jnp

    keras.utils.set_random_seed(0)
    with jax.default_device(jax.devices("cpu")[0]):  # hundreds of small programs, once each
        model = Autoencoder(**AUTOENCODER, dtype="mixed_bfloat16")
        with blank_weights():
            distance = PerceptualDistance(
                "perceptual (hed-vgg16)", **CAFFE, dtype="mixed_bfloat16"
            )
    distance.set_weights([data[f"perceptual_{k}"] for k in range(len(distance.get_weights()))])
    theirs = [v.value for v in distance.variables]
    kl_loss = GaussianKL()
    ours = Trained(model.trainable_variables)
    images = jnp.asarray(data["images"][~data["held"]])
    batch, side = settings.batch, images.shape[1] // model.downsample_factor

    def step(state, key, share, rate, images, theirs):
        keys = jax.random.split(key, 3)
        pixels = jnp.take(images, jax.random.randint(keys[0], (batch,), 0, len(images)), axis=0)
        pixels = pixels.astype(jnp.float32) / 127.5 - 1
        mirror = jax.random.bernoulli(keys[1], 0.5, (batch, 1, 1, 1))
        pixels = jnp.where(mirror, pixels[:, :, ::-1], pixels)
        inputs = {"images": pixels, "noise": jax.random.normal(keys[2], (batch, side, side, 4))}

        def loss(weights):
            out, _ = model.stateless_call(weights, [], inputs, training=True)
            far = jnp.mean(jnp.abs(out["reconstruction"] - pixels))
            seen, _ = distance.stateless_call([], theirs, out["reconstruction"], pixels)
            seen, kl = jnp.mean(seen), jnp.mean(kl_loss.call(out["mean"], out["logvar"]))
            mse = jnp.mean(jnp.square(out["reconstruction"] - pixels))
            terms = {"l1": far, "perceptual": seen, "kl": kl, "mse": mse}
            return far + settings.perceptual * seen + 1e-6 * kl, terms

        (_, terms), gradients = jax.value_and_grad(loss, has_aux=True)(state[0])
        return ours.update(state, gradients, rate, 0.998), terms

    chunk = scan(step, 1, images, theirs)
    rate = np.float32(settings.rate)
    state, steps = run_for(lambda: settings.vae_seconds, log, "vae", chunk, ours.state(), rate)
    for variable, value in zip(model.trainable_variables, state[2], strict=True):
        variable.assign(value)
    return model, steps


def scan(step, seed, *tables):
    """STEPS of `step(state, key, share, rate, *tables)` as one compiled call; mean terms.

    The tables are arguments of the compiled function: constants of it would be compiled in.
    """
    import jax

    @functools.partial(jax.jit, donate_argnums=0)
    def compiled(state, number, share, rate, tables):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), number), STEPS)

        def body(carry, key):
            return step(carry, key, share, rate, *tables)

        state, terms = jax.lax.scan(body, state, keys)
        return state, jax.tree.map(lambda t: t.mean(), terms)

    return lambda *arguments: compiled(*arguments, tables)


def encode_all(model, images):
    """Raw moments of all images and of their mirror images, (2, N, h, w, 4) each."""
    import jax

    weights = model.trainable_variables

    @jax.jit
    def encode(values, pixels):
        with keras.StatelessScope(zip(weights, values, strict=True)):
            return model.encode(pixels)

    values = [v.value for v in weights]
    rows = []
    for turn in (1, -1):
        parts = []
        for start in range(0, len(images), 64):
            part = images[start : start + 64, :, ::turn].astype(np.float32) / 127.5 - 1
            filled = np.concatenate([part, np.zeros((64 - len(part), *part.shape[1:]), "f4")])
            parts.append([np.asarray(m)[: len(part)] for m in encode(values, filled)])
        rows.append([np.concatenate(part) for part in zip(*parts, strict=True)])
    mean, logvar = (np.stack(part) for part in zip(*rows, strict=True))
    return mean, logvar


def train_diffusion(data, latents, scale, settings, log):
    """UNet and text encoder with their moving averages, steps, and the validation's losses."""
    import jax
    import jax.numpy as jnp

    keras.utils.set_random_seed(0)
    policy = "mixed_bfloat16"
    scale = np.float32(scale)
    length = data["ids"].shape[-1]
    with jax.default_device(jax.devices("cpu")[0]):
        unet = UNet(**UNET, dropout=settings.dropout, context_dim=TEXT["hidden_dim"], dtype=policy)
        text = rebuild(build_text_encoder(**TEXT, context_length=length), dtype=policy)
    schedule = NoiseSchedule(beta_schedule="cosine", prediction_type="v_prediction")
    variables = unet.trainable_variables + text.trainable_variables
    count = len(unet.trainable_variables)
    both = Trained(variables)
    kept = [keras.ops.copy(v.value) for v in unet.non_trainable_variables]
    others = [v.value for v in text.non_trainable_variables]
    held = data["held"]
    mean, logvar = (jnp.asarray(part[:, ~held]) for part in latents)
    ids, empty = jnp.asarray(data["ids"][~held]), jnp.asarray(data["empty"])
    batch = settings.unet_batch

    def predict(weights, kept, noisy, timesteps, tokens, training):
        context, _ = text.stateless_call(
            weights[count:], others, {"token_ids": tokens}, training=training
        )
        inputs = {
            "noisy_latents": noisy,
            "timesteps": timesteps.astype(jnp.float32),
            "context": context,
        }
        return unet.stateless_call(weights[:count], kept, inputs, training=training)

    def step(state, key, share, rate, mean, logvar, ids, scale):
        own, kept = state
        keys = jax.random.split(key, 8)
        rows = jax.random.randint(keys[0], (batch,), 0, mean.shape[1])
        turn = jax.random.bernoulli(keys[1], 0.5, (batch,)).astype(jnp.int32)
        centre, width = mean[turn, rows], jnp.exp(0.5 * logvar[turn, rows])
        clean = (centre + width * jax.random.normal(keys[2], centre.shape)) * scale
        noise = jax.random.normal(keys[3], clean.shape)
        timesteps = jax.random.randint(keys[4], (batch,), 0, schedule.num_train_timesteps)
        choice = jax.random.randint(keys[5], (batch,), 0, ids.shape[1])
        dropped = jax.random.bernoulli(keys[6], 0.1, (batch, 1))
        tokens = jnp.where(dropped, empty, ids[rows, choice])
        noisy = schedule.add_noise(clean, noise, timesteps)
        target = schedule.target(clean, noise, timesteps)

        def loss(weights):
            guess, after = predict(weights, kept, noisy, timesteps, tokens, True)
            error = jnp.mean(jnp.square(guess - target), axis=(1, 2, 3))
            return jnp.mean(error), after

        (value, after), gradients = jax.value_and_grad(loss, has_aux=True)(own[0])
        momentum = jnp.minimum(0.999, 0.9 + share)
        return (both.update(own, gradients, rate, momentum), after), {"loss": value}

    state, steps = run_for(
        lambda: settings.seconds - log.seconds - 10,
        log,
        "unet",
        scan(step, 2, mean, logvar, ids, scale),
        (both.state(), kept),
        np.float32(settings.unet_rate),
    )
    average, fixed = state[0][2], state[1]
    for variable, value in zip(variables, average, strict=True):
        variable.assign(value)

    @jax.jit
    def validation(key):
        rows = jnp.asarray(np.flatnonzero(held))
        keys = jax.random.split(key, 2)
        clean = jnp.asarray(latents[0][0, held]) * scale
        noise = jax.random.normal(keys[0], clean.shape)
        timesteps = jax.random.randint(keys[1], (len(rows),), 0, schedule.num_train_timesteps)
        tokens = jnp.asarray(data["ids"])[rows, 0]
        noisy = schedule.add_noise(clean, noise, timesteps)
        guess, _ = predict(average, fixed, noisy, timesteps, tokens, False)
        return jnp.mean(jnp.square(guess - schedule.target(clean, noise, timesteps)))

    losses = [float(validation(jax.random.key(k))) for k in range(8)]
    return unet, text, steps, sum(losses) / len(losses)


def save_arrays(path, arrays, limit=15 << 20):
    """float16 arrays in files of at most `limit` bytes: NAME-0.npz, NAME-1.npz, …"""
    parts, size = [{}], 0
    for number, array in enumerate(arrays):
        array = np.asarray(array).astype(np.float16)
        if size + array.nbytes > limit and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][str(number)] = array
        size += array.nbytes
    for number, part in enumerate(parts):
        np.savez(path.with_name(f"{path.name}-{number}.npz"), **part)


def load_arrays(path):
    """What `save_arrays` wrote, in order."""
    found = {}
    for file in path.parent.glob(f"{path.name}-*.npz"):
        with np.load(file) as part:
            found |= {int(name): part[name].astype(np.float32) for name in part.files}
    return [found[number] for number in range(len(found))]


def prepare(settings):
    """DATA.npz of a folder of captioned, styled images, split as configs/emoji-64-*.yaml do."""
    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.config import DataConfig
    from latentddpm.data.captions import Captions
    from latentddpm.data.catalog.scan import open_catalog
    from latentddpm.data.catalog.split import split_catalog
    from latentddpm.data.images import read_image
    from latentddpm.interop.vgg import load_perceptual

    catalog = open_catalog(settings.out, settings.data.with_suffix(".catalog"))
    split = DataConfig(validation_fraction=0.03, validation_by="caption")
    kept_out = split_catalog(catalog, split)[1]
    held = np.zeros(len(catalog), bool)
    held[kept_out.rows(np.arange(len(kept_out)))] = True
    captions = Captions(catalog, ["{text}", "{text}, {style} style"])
    tokenizer = CLIPTokenizer(16)
    weights = load_perceptual("hed").get_weights()
    np.savez(
        settings.data,
        images=np.stack([read_image(catalog.read(k), settings.side) for k in range(len(catalog))]),
        ids=np.stack([tokenizer(list(captions[k])) for k in range(len(catalog))]),
        held=held,
        empty=tokenizer([""])[0],
        **{f"perceptual_{k}": array.astype(np.float16) for k, array in enumerate(weights)},
    )


def train(settings):
    """Everything, into the folder OUT."""
    settings.out.mkdir(parents=True, exist_ok=True)
    log = Log(settings.out / "log.jsonl")
    data = dict(np.load(settings.data))
    held = data["held"]
    log(say="data", images=len(held), held=int(held.sum()))
    model, vae_steps = train_autoencoder(data, settings, log)
    mean, logvar = encode_all(model, data["images"])
    seen = mean[0, ~held].astype(np.float64)
    second = np.mean(np.square(seen) + np.exp(logvar[0, ~held]))
    scale = float(1.0 / math.sqrt(second - seen.mean() ** 2))  # see training.autoencoder
    save_arrays(settings.out / "vae", model.get_weights())
    log(stage="vae", steps=vae_steps, scaling_factor=scale)

    unet, text, steps, loss = train_diffusion(data, (mean, logvar), scale, settings, log)
    save_arrays(settings.out / "unet", unet.get_weights())
    words = text.get_weights()
    used = np.unique(np.append(data["ids"][~held], data["empty"]))
    table = next(k for k, array in enumerate(words) if len(array) > 40_000)
    unused = np.setdiff1d(np.arange(len(words[table])), used)
    words[table][unused] = 0.0  # tokens that no caption holds: nothing was learned of them
    np.savez_compressed(
        settings.out / "text-0.npz", **{str(k): a.astype("f2") for k, a in enumerate(words)}
    )
    facts = {
        "scaling_factor": scale,
        "vae_steps": vae_steps,
        "unet_steps": steps,
        "validation_loss": loss,
        "dropout": settings.dropout,
    }
    (settings.out / "run.json").write_text(json.dumps(facts))
    log(stage="unet", steps=steps, validation_loss=loss)


def compile_second(settings):
    """Compile the second stage's program, for the cache, on moments that are all zero."""
    data = dict(np.load(settings.data))
    count, side = data["images"].shape[:2]
    factor = 2 ** (len(AUTOENCODER["channel_multipliers"]) - 1)
    moments = np.zeros((2, count, side // factor, side // factor, 4), np.float32)
    settings.seconds = 0.0
    settings.out.mkdir(parents=True, exist_ok=True)
    train_diffusion(data, (moments, moments), 1.0, settings, Log(settings.out / "compile.jsonl"))


def pack(settings):
    """A model folder of what the loop left, weights in float16; on TensorFlow."""
    from latentddpm.clip.tokenizer import CLIPTokenizer
    from latentddpm.pipeline.latent_diffusion import LatentDiffusion
    from latentddpm.training.autoencoder import measure_latents

    facts = json.loads((settings.out / "run.json").read_text())
    data = dict(np.load(settings.data))
    images, length = data["images"][~data["held"]], data["ids"].shape[-1]
    model = Autoencoder(**AUTOENCODER)
    model.set_weights(load_arrays(settings.out / "vae"))
    parts = (images[k : k + 64].astype(np.float32) / 127.5 - 1 for k in range(0, len(images), 64))
    model.latent_statistics = measure_latents(model, ({"images": part} for part in parts))
    model.scaling_factor = facts["scaling_factor"]
    unet = UNet(**UNET, dropout=facts["dropout"], context_dim=TEXT["hidden_dim"])
    unet.set_weights(load_arrays(settings.out / "unet"))
    text = build_text_encoder(**TEXT, context_length=length)
    text.set_weights(load_arrays(settings.out / "text"))
    schedule = NoiseSchedule(beta_schedule="cosine", prediction_type="v_prediction")
    defaults = {
        "num_steps": 10,
        "sampler": "unipc",
        "timestep_spacing": "trailing",
        "guidance_scale": 4.0,
    }
    made = LatentDiffusion(
        model, unet, schedule, text, CLIPTokenizer(length), images.shape[1:3], defaults
    )
    made.save(settings.folder, "float16")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("prepare", "train", "compile", "pack"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, help="of prepare: the folder of images")
    parser.add_argument("folder", type=Path, nargs="?", help="of pack: the model folder")
    parser.add_argument("--side", type=int, default=64, help="of prepare: pixels")
    parser.add_argument("--seconds", type=float, default=380, help="for everything")
    parser.add_argument(
        "--vae-seconds", type=float, default=45, help="for the steps of the first stage"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--unet-batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--unet-rate", type=float, default=1e-3)
    parser.add_argument("--perceptual", type=float, default=0.5)
    parser.add_argument("--dropout", type=float, default=0.05)
    settings = parser.parse_args()
    steps = {"prepare": prepare, "train": train, "compile": compile_second, "pack": pack}
    steps[settings.what](settings)


if __name__ == "__main__":
    main()
