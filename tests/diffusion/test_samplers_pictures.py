"""Every sampler draws the picture that the shipped model means: 20 steps beside DDIM's 50.

Deterministic samplers solve the same equation, so their pictures are compared pixel by pixel.
Stochastic ones draw other pictures of the prompt: what these have in common with DDIM's is their
colours, so the mean colour and the contrast are compared, each over all pictures of a prompt.
"""

import numpy as np
import pytest

from latentddpm.diffusion import samplers
from latentddpm.pipeline.latent_diffusion import LatentDiffusion

PROMPTS = ("red apple", "sunflower")
PIXELS, COLOURS = 0.12, 0.12  # of the range of a colour; cyan in place of red is 0.5 and more


@pytest.fixture(scope="module")
def draw():
    model = LatentDiffusion.load("emoji-128")

    def pictures(sampler, num_steps):
        """(prompts, 2, H, W, 3), in 0 .. 1."""
        pixels = model.generate(
            PROMPTS,
            num_images=2,
            seed=[1, 2] * len(PROMPTS),
            sampler=sampler,
            num_steps=num_steps,
            timestep_spacing="trailing",
        )
        return pixels.reshape(len(PROMPTS), 2, *pixels.shape[1:]) / 255

    return pictures


@pytest.fixture(scope="module")
def expected(draw):
    return draw("ddim", 50)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in samplers.NAMES if name != "lcm"])
def test_twenty_steps_are_near_fifty_of_ddim(draw, expected, name):
    pictures = draw(name, 20)
    if name in ("ddpm", "dpmpp_2m_sde", "euler_ancestral", "pc"):
        for what, measure in (("mean colour", np.mean), ("contrast", np.std)):
            found, wanted = (measure(one, axis=(1, 2, 3)) for one in (pictures, expected))
            distance = np.abs(found - wanted).max()
            print(f"{name}: {what} {distance:.3f}")
            assert distance < COLOURS, f"{what}: expected {wanted}, got {found}"
    else:
        distances = np.sqrt(np.mean((pictures - expected) ** 2, axis=(2, 3, 4)))
        print(f"{name}: pixels {distances.max():.3f}")
        assert distances.max() < PIXELS, f"expected DDIM's pictures, got distances {distances}"
