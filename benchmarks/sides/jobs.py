"""Jobs of `vs_diffusers.py`: their sizes, numbers and inputs, the same on every side."""

from collections.abc import Callable
from typing import Any

import numpy as np

Action = Callable[[], Any]

PROMPT, NEGATIVE, STEPS, GUIDANCE = "a photo of a cat", "a dog", 20, 7.5
RATE, DECAY, CLIP = 1e-4, 0.01, 1.0
EPSILON = 1e-8  # of AdamW: PyTorch's default, Keras's is 1e-7
COLD = ("cold", "cold-again")
LARGE = {"channels": 32, "channel_multipliers": (1, 1, 1, 1), "num_res_blocks": 1}
SIZES: dict[str, dict[str, Any]] = {
    "page": {
        "vae": {},
        "unet": {"channels": 64, "channel_multipliers": (1, 2, 4), "context_dim": 256},
        "layers": 4,
        "image": 256,
        "latents": 16,
        "batch": 16,
    },
    "quick": {
        "vae": {"channels": 32, "channel_multipliers": (1, 2, 4, 4), "num_res_blocks": 1},
        "unet": {"channels": 64, "channel_multipliers": (1, 2, 2), "context_dim": 128},
        "layers": 2,
        "image": 64,
        "latents": 16,
        "batch": 4,
    },
    "tiny": {
        "vae": LARGE,
        "unet": {
            "channels": 32,
            "channel_multipliers": (1, 2),
            "num_res_blocks": 1,
            "attention_levels": (1,),
            "context_dim": 64,
        },
        "image": 64,
        "latents": 8,
        "batch": 2,
    },
    "512": {"vae": LARGE, "unet": {"context_dim": 768}, "image": 64, "latents": 64},
    "1024": {"vae": LARGE, "unet": {"context_dim": 768}, "image": 64, "latents": 128},
}
FACTOR = 8  # of every autoencoder


def arrays(size: str, batch: int) -> dict[str, np.ndarray]:
    """Inputs of the jobs; the start is that of seed 0."""
    sides, numbers = SIZES[size], np.random.default_rng(0)
    normal = lambda *shape: numbers.standard_normal(shape).astype("float32")  # noqa: E731
    image, latents = sides["image"], sides["latents"]
    starts = (np.random.Generator(np.random.Philox(key=[seed, 0])) for seed in range(batch))
    shape = (latents, latents, 4)
    return {
        "image": np.tanh(normal(batch, image, image, 3)),
        "latent": normal(batch, image // FACTOR, image // FACTOR, 4),
        "noisy_latents": normal(batch, *shape),
        "target": normal(batch, *shape),
        "context": normal(batch, 77, sides["unet"]["context_dim"]),
        "timesteps": numbers.integers(0, 1000, batch).astype("int32"),
        "start": np.stack([one.standard_normal(shape, np.float32) for one in starts]),
    }
