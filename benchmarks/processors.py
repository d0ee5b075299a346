"""What a processor computes fastest: oneDNN or TensorFlow's own kernels, bfloat16 or float32.

    python benchmarks/processors.py [--rounds 5] [--batch 8]

Jobs on the networks of `configs/small-64-vae.yaml` and `configs/small-64-diffusion.yaml`: decode
and UNet forward in float32, and a training step of either network in both precisions. Each choice
of kernels (`TF_ENABLE_ONEDNN_OPTS`) is a process of its own; inside it the precisions take turns.
The last jobs are the three forms of nearest ×2 with a 3×3 convolution (see `resample.Upsample`),
forward and with gradients, which take turns too. Prints the median and the best of each, in
milliseconds. Other work on the machine slows all of them: compare what took turns.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
PRECISIONS = ("float32", "bfloat16")
KERNELS = {"oneDNN": "1", "own": "0"}
LONGEST = 30  # seconds of one group of jobs
SHAPES = ((1, 64, 64, 256), (1, 32, 32, 512), (32, 16, 16, 64))  # inputs of the forms


def step(network, inputs):
    """Function that computes a network's output and the gradients of its weights."""
    import tensorflow as tf

    @tf.function
    def gradients():
        with tf.GradientTape() as tape:
            total = tf.reduce_mean(tf.square(tf.cast(network(inputs), tf.float32)))
        return [tf.reduce_sum(part) for part in tape.gradient(total, network.trainable_variables)]

    return lambda: [part.numpy() for part in gradients()]


def forward(network, inputs):
    """Function that computes a network's output."""
    import tensorflow as tf

    call = tf.function(lambda: network(inputs))
    return lambda: call().numpy()


def network_jobs(batch):
    """Jobs by their names, in groups that take turns."""
    import numpy as np

    from latentddpm.config import AutoencoderRun, DiffusionRun
    from latentddpm.config_file import load_config
    from latentddpm.models.autoencoder.autoencoder import Autoencoder
    from latentddpm.models.denoisers.unet import UNet

    vae = load_config(AutoencoderRun, CONFIGS / "small-64-vae.yaml").autoencoder.model_dump()
    unet = load_config(DiffusionRun, CONFIGS / "small-64-diffusion.yaml").unet.arguments
    numbers = np.random.default_rng(0)
    images = numbers.uniform(-1, 1, (batch, 64, 64, 3)).astype("float32")
    latents = numbers.standard_normal((batch, 16, 16, 4)).astype("float32")
    noisy = {"noisy_latents": latents, "timesteps": np.full(batch, 500, "int32")}
    autoencoders = {name: Autoencoder(**vae, dtype=policy(name)) for name in PRECISIONS}
    unets = {name: UNet(**unet, dtype=policy(name)) for name in PRECISIONS}

    def there_and_back(model):
        import keras

        images = keras.Input((64, 64, 3))
        mean = model.encoder(images)[..., : model.latent_channels]
        return keras.Model(images, model.decoder(mean))

    yield {"decode float32": forward(autoencoders["float32"].decoder, latents)}
    yield {"UNet forward float32": forward(unets["float32"], noisy)}
    yield {
        f"autoencoder step {name}": step(there_and_back(model), images)
        for name, model in autoencoders.items()
    }
    yield {f"UNet step {name}": step(model, noisy) for name, model in unets.items()}


def policy(precision):
    return "float32" if precision == "float32" else f"mixed_{precision}"


def form_jobs():
    """Forms of nearest ×2 with a 3×3 convolution: the jobs of each shape, in groups."""
    import numpy as np
    import tensorflow as tf

    def transposed(x, k):
        k = tf.reverse(k, [0, 1])
        k = sum(
            tf.pad(k, [(a, 1 - a), (b, 1 - b), (0, 0), (0, 0)]) for a in (0, 1) for b in (0, 1)
        )
        n, h, w, c = x.shape
        return tf.nn.conv2d_transpose(x, tf.transpose(k, [0, 1, 3, 2]), [n, 2 * h, 2 * w, c], 2)

    def repeated(x, k):
        return tf.nn.conv2d(tf.repeat(tf.repeat(x, 2, 1), 2, 2), k, 1, "SAME")

    def four(x, k):
        def folded(k, axis):
            a, b, c = tf.unstack(k, axis=axis)
            return [tf.stack([a, b + c], axis), tf.stack([a + b, c], axis)]

        x = tf.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
        _, h, w, _ = x.shape
        parts = [
            tf.nn.conv2d(x[:, a : h - 1 + a, b : w - 1 + b], folded(rows, 1)[b], 1, "VALID")
            for a, rows in enumerate(folded(k, 0))
            for b in (0, 1)
        ]
        return tf.nn.depth_to_space(tf.concat(parts, -1), 2)

    def with_gradients(form, x, k):
        with tf.GradientTape() as tape:
            tape.watch((x, k))
            total = tf.reduce_sum(tf.square(form(x, k)))
        return tf.add_n([tf.reduce_sum(part) for part in tape.gradient(total, (x, k))])

    numbers = np.random.default_rng(0)
    for shape in SHAPES:
        x = tf.constant(numbers.standard_normal(shape), tf.float32)
        k = tf.constant(0.02 * numbers.standard_normal((3, 3, shape[3], shape[3])), tf.float32)
        for kind in ("forward", "gradients"):
            jobs = {}
            for form in (transposed, repeated, four):
                call = tf.function(
                    (lambda form=form, x=x, k=k: form(x, k))
                    if kind == "forward"
                    else (lambda form=form, x=x, k=k: with_gradients(form, x, k))
                )
                name = f"×2 {'×'.join(map(str, shape))} {kind} {form.__name__}"
                jobs[name] = lambda call=call: call().numpy()
            yield jobs


def measure(jobs, rounds):
    """Print milliseconds of each job of a group; they take turns."""
    spent = {name: [] for name in jobs}
    for job in jobs.values():
        job()
    began = time.perf_counter()
    for _ in range(rounds):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            spent[name].append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() - began > LONGEST:
            break
    for name, times in spent.items():
        print(f"  {name:48} {statistics.median(times):9.1f} {min(times):9.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--own", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.own:
        for name, value in KERNELS.items():
            print(f"{name}, load {os.getloadavg()[0]:.1f}: median, best", flush=True)
            environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": value}
            subprocess.run([sys.executable, *sys.argv, "--own"], env=environment, check=True)
        return
    from latentddpm.utils.startup import import_keras

    import_keras()
    for jobs in (*network_jobs(options.batch), *form_jobs()):
        measure(jobs, options.rounds)


if __name__ == "__main__":
    main()
