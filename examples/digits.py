"""Diffusion from the beginning, on the gray digits that come with scikit-learn: a course in code.

    python examples/digits.py OUT                 the five lessons, in about ten CPU minutes
    python examples/digits.py OUT --images 28     only the digits, as PNGs for `train-diffusion`

1  A noisy digit, and a network without a timestep that sees the clean one in it      (BasicUNet)
2  DDPM: noise is added in 100 steps and taken away in 100, with either variance    (ClassicUNet)
3  DDIM: the same network in 10 steps, without drawing noise
4  Flow matching: a straight line from noise to digit, in 8 steps
5  Are they digits? A logistic regression that knows real ones is asked

OUT then holds a picture for each lesson. `docs/guides/digits.md` goes through them.
"""

import argparse
import json
from pathlib import Path

from latentddpm.utils.startup import import_keras

import_keras()  # without TensorFlow's log lines

import keras
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

import latentddpm
from latentddpm.utils.images.labels import labelled_grid
from latentddpm.utils.pixels import save_png

SIDE = 16  # the digits have 8×8 pixels; drawn larger, the networks have room for their levels
LEVELS = np.linspace(0, 1, 8)  # of noise, in the pictures
SAMPLES = 200  # digits that are drawn and judged


def digits(side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Digits (N, side, side, 1) in [0, 1], their labels, and True for those to hold back."""
    data = load_digits()
    images = [Image.fromarray(np.uint8(one * 255 / 16)) for one in data.images]
    images = [one.resize((side, side), Image.Resampling.BICUBIC) for one in images]
    held_back = np.random.default_rng(0).random(len(images)) < 0.2
    return np.stack([np.asarray(one)[..., None] / 255 for one in images]), data.target, held_back


def write_images(out: Path, side: int) -> None:
    """Digits to train on as gray PNG files, in a folder for each label."""
    images, labels, held_back = digits(side)
    for number in np.flatnonzero(~held_back):
        file = out / str(labels[number]) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.uint8(np.rint(255 * images[number, ..., 0]))).save(file)


def regression() -> LogisticRegression:
    """Logistic regression that has learned the label of each digit that is not held back."""
    images, labels, held_back = digits(SIDE)
    flat = images.reshape(len(images), -1)
    return LogisticRegression(C=10, max_iter=5000).fit(flat[~held_back], labels[~held_back])


def show(file: Path, rows: dict[str, np.ndarray]) -> None:
    """Picture of rows of images in [0, 1], three times as large, each row below its name."""
    large = []
    for row in rows.values():
        pixels = np.uint8(np.clip(255 * row, 0, 255))
        large.append(pixels.repeat(3, axis=1).repeat(3, axis=2).repeat(3, axis=3))
    save_png(file, labelled_grid(large, list(rows)))


def lesson_1_corruption(images: np.ndarray, out: Path, steps: int) -> None:
    """x_a = (1 − a) x + a · noise, noise uniform in [0, 1]; a network predicts x from x_a."""
    network, numbers = latentddpm.BasicUNet(latent_channels=1), np.random.default_rng(0)
    print(f"1  BasicUNet, {network.count_params():,} parameters")
    network.compile(keras.optimizers.Adam(1e-3), "mse")

    def seen(noisy: np.ndarray) -> dict[str, np.ndarray]:  # the network ignores the timesteps
        return {"noisy_latents": noisy, "timesteps": np.zeros(len(noisy))}

    def batches():
        while True:
            clean = images[numbers.integers(len(images), size=128)]
            amount = numbers.random((128, 1, 1, 1))
            noisy = (1 - amount) * clean + amount * numbers.random(clean.shape)
            yield seen(noisy), clean

    network.fit(batches(), steps_per_epoch=steps, shuffle=False, verbose=2)
    clean, amount = images[:8], LEVELS[:, None, None, None]
    noisy = (1 - amount) * clean + amount * numbers.random(clean.shape)
    x, count = numbers.random((8, SIDE, SIDE, 1)), 5
    for i in range(count):  # the first step goes all the way to the prediction's share
        x = x * (1 - 1 / (count - i)) + network.predict_on_batch(seen(x)) / (count - i)
    prediction = network.predict_on_batch(seen(noisy))
    rows = {"clean": clean, "noisy": noisy, "prediction": prediction, "drawn in 5 steps": x}
    show(out / "1-corruption.png", rows)


def trained(schedule, images: np.ndarray, steps: int) -> keras.Model:
    """Classic U-Net that has learned to denoise images in [-1, 1]; with the average weights."""
    keras.utils.set_random_seed(0)
    unet = latentddpm.ClassicUNet(32, channel_multipliers=(1, 2, 4, 8), latent_channels=1)
    trainer = latentddpm.DenoisingTrainer(unet, schedule)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    average = {"use_ema": True, "ema_momentum": 0.99}
    trainer.compile(keras.optimizers.AdamW(rate, global_clipnorm=1.0, **average))
    examples = latentddpm.noisy_examples(images, schedule, batch_size=64, seed=0)
    trainer.fit(examples, steps_per_epoch=steps, shuffle=False, verbose=2)
    return unet


def drawn(unet: keras.Model, sampler, count: int = SAMPLES) -> np.ndarray:
    """Digits in [0, 1], drawn from noise, the same noise for every sampler."""

    def noise(step: int) -> np.ndarray:
        return np.random.default_rng(step + 1).normal(size=(count, SIDE, SIDE, 1))

    def denoiser(noisy_latents, timesteps):
        return unet.predict_on_batch({"noisy_latents": noisy_latents, "timesteps": timesteps})

    return np.asarray(sampler.sample(denoiser, noise(-1), noise)) / 2 + 0.5


def lessons_2_and_3_ddpm(images: np.ndarray, out: Path, steps: int) -> dict[str, np.ndarray]:
    """Digits of DDPM with both variances (Ho 2020, §3.2), and of DDIM (Song 2021)."""
    schedule = latentddpm.NoiseSchedule("linear", 1e-4, 0.04, num_train_timesteps=100)
    timesteps = np.int32(LEVELS * 99)
    noise = np.random.default_rng(0).normal(size=(8, SIDE, SIDE, 1))
    noisy = schedule.add_noise(images[:8], noise, timesteps)
    unet = trained(schedule, images, steps)
    print(f"2  ClassicUNet, {unet.count_params():,} parameters")
    seen = unet.predict_on_batch({"noisy_latents": noisy, "timesteps": timesteps})
    seen = schedule.predict_x0(seen, noisy, timesteps)
    rows = {"clean": images[:8], "x_t, t = 0 … 99": noisy, "estimate of x_0": seen}
    show(out / "2-forward.png", {name: row / 2 + 0.5 for name, row in rows.items()})
    ddpm, ddim = latentddpm.samplers.DDPMSampler, latentddpm.samplers.DDIMSampler
    found = {
        "DDPM, 100 steps, small variance": drawn(unet, ddpm(schedule, 100)),
        "DDPM, 100 steps, large variance": drawn(unet, ddpm(schedule, 100, variance="large")),
        "DDIM, 10 steps": drawn(unet, ddim(schedule, 10, "trailing")),
    }
    show(out / "3-ddpm-and-ddim.png", {name: row[:16] for name, row in found.items()})
    return found


def lesson_4_flow(images: np.ndarray, out: Path, steps: int) -> dict[str, np.ndarray]:
    """Digits of flow matching (Lipman 2023; Liu 2023): Euler's steps along a straight line."""
    schedule = latentddpm.FlowSchedule()
    unet, euler = trained(schedule, images, steps), latentddpm.samplers.EulerSampler
    found = {
        f"flow, {count} steps": drawn(unet, euler(schedule, count, "trailing"))
        for count in (2, 8, 50)
    }
    show(out / "4-flow.png", {name: row[:16] for name, row in found.items()})
    return found


def lesson_5_judge(found: dict[str, np.ndarray], out: Path) -> dict[str, list]:
    """Share of drawn digits that a logistic regression is 0.9 sure of, and how many labels."""
    images, labels, held_back = digits(SIDE)
    judge = regression()
    right = judge.score(images[held_back].reshape(-1, SIDE * SIDE), labels[held_back])
    print(f"5  a logistic regression is right on {right:.1%} of {held_back.sum()} held-out digits")
    numbers = {}
    for name, one in {"held-out digits": images[held_back], **found}.items():
        sure = judge.predict_proba(np.clip(one, 0, 1).reshape(len(one), -1))
        numbers[name] = [float((sure.max(axis=1) >= 0.9).mean()), len(set(sure.argmax(axis=1)))]
        print(f"   {name:34} {numbers[name][0]:6.1%} at least 0.9 sure, {numbers[name][1]} labels")
    (out / "5-judged.json").write_text(json.dumps(numbers, indent=1), "utf-8")
    return numbers


def main(out: Path, steps: int = 2000) -> dict[str, list]:
    """All lessons; `steps` is the length of the two trainings of a classic U-Net."""
    out.mkdir(parents=True, exist_ok=True)
    images, _, held_back = digits(SIDE)
    images = images[~held_back].astype("float32")
    lesson_1_corruption(images, out, max(steps // 4, 1))
    found = lessons_2_and_3_ddpm(2 * images - 1, out, steps)
    found |= lesson_4_flow(2 * images - 1, out, steps)
    return lesson_5_judge(found, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, metavar="SIDE", help="only write the digits")
    parser.add_argument("--steps", type=int, default=2000)
    given = parser.parse_args()
    if given.images:
        write_images(given.out, given.images)
    else:
        main(given.out, given.steps)
