"""Generate from an ONNX export with NumPy and ONNX Runtime alone: a server in one page.

latentddpm export --model emoji-128 --format onnx --out exported
python examples/onnx_generate.py exported "red apple" --steps 20 --seed 0 --out apple.png

The pixels of `latentddpm generate --sampler ddim --timestep-spacing trailing`: DDIM (Song et al.
2021, eq. 12, η = 0) with classifier-free guidance (Ho & Salimans 2022, eq. 6). All its numbers
are in `pipeline.json`.
"""

import argparse
import itertools
import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import onnxruntime


def load(folder):
    """`pipeline.json`, and a function `name → outputs` for each part."""
    settings = json.loads((folder / "pipeline.json").read_text("utf-8"))
    assert settings["format"] == "onnx", "made by `latentddpm export --format onnx`"

    def part(name):
        session = onnxruntime.InferenceSession(str(folder / f"{name}.onnx"))
        types = {key: value["dtype"] for key, value in settings["parts"][name]["inputs"].items()}
        return lambda **inputs: session.run(
            None, {key: np.asarray(value, types[key]) for key, value in inputs.items()}
        )

    return settings, {name: part(name) for name in settings["parts"]}


def tokenize(text, folder):
    """CLIP's byte-pair encoding of ordinary text: start, tokens, end, padding; (1, L)."""
    config = json.loads((folder / "tokenizer_config.json").read_text("utf-8"))
    ids = json.loads((folder / "vocab.json").read_text("utf-8"))
    rules = (folder / "merges.txt").read_text("utf-8").split("\n")[1:]
    ranks = {tuple(rule.split()): rank for rank, rule in enumerate(rules)}
    # Bytes as printable characters: themselves where they print, else 256, 257, ...
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(256 + n) for n, byte in enumerate(others)}
    found = []
    words = r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+"
    for word in re.findall(words, " ".join(text.lower().split())):
        symbols = [characters[byte] for byte in word.encode()]
        symbols[-1] += "</w>"
        while pairs := [pair for pair in itertools.pairwise(symbols) if pair in ranks]:
            best = min(pairs, key=ranks.get)
            at = list(itertools.pairwise(symbols)).index(best)
            symbols[at : at + 2] = ["".join(best)]
        found += [ids[symbol] for symbol in symbols]
    length = config["model_max_length"]
    row = [ids[config["bos_token"]], *found[: length - 2], ids[config["eos_token"]]]
    return [row + [ids[config["pad_token"]]] * (length - len(row))]


def steps(schedule, num_steps):
    """Timesteps from noise down ("trailing" spacing), and the rates of x0 and noise at each."""
    total, shares = schedule["num_train_timesteps"], np.arange(num_steps, 0, -1) / num_steps
    if schedule.get("kind") == "flow":
        sigmas = schedule["shift"] * shares / (1 + (schedule["shift"] - 1) * shares)
        return total * sigmas, [(1 - sigma, sigma) for sigma in sigmas]
    timesteps = np.round(np.arange(num_steps, 0, -1) * total / num_steps).astype(int) - 1
    signals = np.array(schedule["alphas_cumprod"])[timesteps]
    return timesteps, [(signal**0.5, (1 - signal) ** 0.5) for signal in signals]


def generate(folder, prompt, seed=0, num_steps=None, guidance_scale=None):
    """uint8 (height, width, 3)."""
    settings, parts = load(folder)
    defaults, schedule = settings["defaults"], settings["schedule"]
    num_steps = num_steps or defaults["num_steps"]
    scale = defaults["guidance_scale"] if guidance_scale is None else guidance_scale
    factor = settings["downsample_factor"]
    shape = [side // factor for side in settings["image_size"]] + [settings["latent_channels"]]

    inputs, copies = {}, 1
    if "text_encoder" in parts:  # the prompt and the empty one, a batch of two
        rows = tokenize(prompt, folder / "tokenizer") + tokenize("", folder / "tokenizer")
        (inputs["context"],), copies = parts["text_encoder"](token_ids=rows), 2

    timesteps, levels = steps(schedule, num_steps)
    latents = np.random.Generator(np.random.Philox(key=[seed, 0])).standard_normal(
        (1, *shape), np.float32
    )
    for timestep, (level, following) in zip(
        timesteps, itertools.pairwise([*levels, (1.0, 0.0)]), strict=True
    ):
        (prediction,) = parts["unet"](
            noisy_latents=np.repeat(latents, copies, 0), timesteps=[timestep] * copies, **inputs
        )
        if copies == 2:
            prediction = prediction[1:] + scale * (prediction[:1] - prediction[1:])
        a, s = map(np.float32, level)
        if schedule["prediction_type"] == "epsilon":
            noise, clean = prediction, (latents - s * prediction) / a
        elif schedule["prediction_type"] == "v_prediction":
            noise, clean = s * latents + a * prediction, a * latents - s * prediction
        elif schedule["prediction_type"] == "velocity":
            noise, clean = latents + a * prediction, latents - s * prediction
        else:
            noise, clean = (latents - a * prediction) / s, prediction
        latents = np.float32(following[0]) * clean + np.float32(following[1]) * noise
    images = latents
    if "decoder" in parts:  # a model of pixels has none
        (images,) = parts["decoder"](latents=latents)
    return np.clip(np.rint((images[0] + 1) * 127.5), 0, 255).astype(np.uint8)


def write_png(path, pixels):
    """uint8 (height, width, channels) as PNG: 1 gray, 3 RGB, 4 RGBA."""

    def chunk(kind, data):
        length, check = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + check

    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 8, {1: 0, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + body)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("prompt", nargs="?", default="")
    parser.add_argument("--steps", type=int, help="of DDIM [default: the model's number]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="out.png")
    options = parser.parse_args()
    write_png(options.out, generate(options.folder, options.prompt, options.seed, options.steps))
    print(options.out)
