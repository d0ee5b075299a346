"""A model that draws s×s, made into one that draws 2s×2s with the same latents and the same UNet.

The autoencoder gets one more level on the outside, so that 2s×2s becomes latents of the size
that the UNet knows; inside it starts with the weights of the old one, and its latents are to mean
what they meant:

    encoder   moments of an image at 2s  ≈  the old moments of the same image at s
    decoder   the old one, then twice the size

Outside, everything begins as near to that as its form allows: the decoder repeats its last
features twice in each direction, the encoder averages pairs of pixels, up to one row and column
of its reach (see `pairs_averaged`). Then the encoder alone learns, by the squared error of the
moments (distillation; Hinton et al. 2015):

    loss = mean |mean − mean_old|² + 0.01 · mean |logvar − logvar_old|²

What is left, details that s×s pixels do not show, is the decoder's to learn, with `train-vae`:

    python examples/double_size.py runs/ldm photos runs/doubled
    latentddpm train-vae --init runs/doubled --data photos \\
        --config emoji-128-vae --out runs/larger

What comes out draws from words at once, for the UNet goes along.
"""

import argparse

from latentddpm.utils.startup import import_keras

import_keras()  # without TensorFlow's log lines

import keras
import numpy as np
import tensorflow as tf

import latentddpm

LOGVAR_WEIGHT = 0.01


def doubled(old: latentddpm.Autoencoder) -> latentddpm.Autoencoder:
    """The autoencoder with a level more on the outside, as wide as the outermost is."""
    config = old.get_config()
    config["channel_multipliers"] = [
        config["channel_multipliers"][0],
        *config["channel_multipliers"],
    ]
    new = latentddpm.Autoencoder.from_config(config)
    for half in ("encoder", "decoder"):
        before, after = getattr(old, half), getattr(new, half)
        for layer in before.layers:
            if layer.weights and (half, layer.name) != ("encoder", "conv_in"):
                after.get_layer(inward(layer.name)).set_weights(layer.get_weights())
        for layer in after.layers:
            if layer.name.startswith(("down_0_block", "up_0_block")):
                layer.conv2.conv.kernel.assign(0.0 * layer.conv2.conv.kernel)  # h = inputs
    upsample = new.decoder.get_layer("up_1_upsample").conv.conv.kernel
    centre = np.zeros(upsample.shape)
    centre[1, 1] = np.eye(upsample.shape[2])
    upsample.assign(centre)
    conv_in = old.encoder.get_layer("conv_in").conv
    kernels = pairs_averaged(np.asarray(conv_in.kernel))
    convolutions = new.encoder.get_layer("conv_in"), new.encoder.get_layer("down_0_downsample")
    for layer, kernel in zip(convolutions, kernels, strict=True):
        layer.conv.kernel.assign(kernel)
    convolutions[1].conv.bias.assign(conv_in.bias)
    return new


def inward(name: str) -> str:
    """`down_0_block_1` → `down_1_block_1`: what the new network calls a layer of the old one."""
    direction, *rest = name.split("_", 2)
    if direction not in ("down", "up"):
        return name
    level, rest = rest
    return f"{direction}_{int(level) + 1}_{rest}"


def pairs_averaged(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two kernels that do at 2s what `kernel` (3, 3, c, n) does at s, on averages of 2×2 pixels.

    The second has stride 2 and sees rows 2i, 2i + 1, 2i + 2 of what the first has made for output
    row i. Of each direction the first keeps (x_r + x_{r+1}) / 2, which is the pair of row i at
    r = 2i and the one of row i + 1 at r = 2i + 2; and x_{r−1}, which at r = 2i stands for the pair
    of row i − 1, half of which lies out of reach.

    Returns:
        (3, 3, c, n) and (3, 3, n, n); n has to hold the 4c pictures in between.
    """
    _, _, colours, width = kernel.shape
    if width < 4 * colours:
        raise ValueError(f"{width} channels, needed are {4 * colours}")
    taps = {"pair": np.array([0.0, 0.5, 0.5]), "before": np.array([1.0, 0.0, 0.0])}
    kept = [(rows, columns) for rows in taps for columns in taps]
    first = np.zeros((3, 3, colours, width))
    for index, (rows, columns) in enumerate(kept):
        for colour in range(colours):
            first[:, :, colour, index * colours + colour] = np.outer(taps[rows], taps[columns])
    seen = [("before", 0), ("pair", 0), ("pair", 2)]  # of pairs i − 1, i, i + 1: what, and where
    second = np.zeros((3, 3, width, width))
    for row, (rows, at) in enumerate(seen):
        for column, (columns, there) in enumerate(seen):
            start = kept.index((rows, columns)) * colours
            second[at, there, start : start + colours] += kernel[row, column]
    return first, second


def moments_loss(before, after):
    """The loss above, over moments (B, h, w, 2c)."""
    (mean, logvar), (new_mean, new_logvar) = (
        keras.ops.split(moments, 2, axis=-1) for moments in (before, after)
    )
    spread = keras.ops.mean(keras.ops.square(logvar - new_logvar))
    return keras.ops.mean(keras.ops.square(mean - new_mean)) + LOGVAR_WEIGHT * spread


def lessons(old, dataset, split, size, batch_size, **drawn):
    """Images (B, 2s, 2s, 3) and the old moments of the same images, mirrored alike."""
    both = [
        dataset.image_batches(split, side, batch_size, flip=True, **drawn)
        for side in (2 * size, size)
    ]
    pairs = tf.data.Dataset.zip(*both)
    pairs = pairs.map(lambda large, small: (large["images"], old.encoder(small["images"])))
    return pairs.prefetch(2)


def main(
    model: str,
    data: str,
    out: str,
    steps: int = 300,
    batch_size: int = 32,
    learning_rate: float = 2e-4,
) -> None:
    keras.utils.set_random_seed(0)
    whole = latentddpm.LatentDiffusion.load(model)
    old, size = whole.autoencoder, whole.image_size[0]
    new = doubled(old)

    dataset = latentddpm.open_dataset(data, f"{out}-catalog")
    learn = lessons(old, dataset, "training", size, batch_size, seed=0, steps=steps)
    check = lessons(old, dataset, "validation", size, batch_size)

    encoder = new.encoder
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=learning_rate, warmup_steps=steps // 20
    )
    encoder.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), loss=moments_loss)
    print(f"validation, as made: {encoder.evaluate(check, verbose=0):.5f}")
    encoder.fit(learn, verbose=2, validation_data=check)
    whole.autoencoder, whole.image_size = new, (2 * size, 2 * size)
    whole.save(out)
    print(out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--steps", type=int, default=300)
    main(**vars(parser.parse_args()))
