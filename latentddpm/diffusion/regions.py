"""Regions: parts of a picture that are told different things, and what each has to say there.

A region r has a mask m_r of pixels, in [0, 1]. Where masks overlap they share equally, and what
they leave is the rest, r = 0, which is told what the whole picture is told:

    w_r(p) = mean of m_r / max(1, Σ m)  over the pixels of latent p          r = 1 … R
    w_0(p) = 1 − Σ_r w_r(p)

A network with cross-attention takes these weights itself (`models.denoisers.transformer`). For
any other the predictions are composed, which is MultiDiffusion (Bar-Tal 2023) with
regions of the size of the picture: the prediction at a latent that minimises the squared
distances to those of the regions, weighted by w, is their mean,

    ε(x_t)(p) = Σ_r w_r(p) · ε(x_t, c_r)(p)

at a call of the network for each region. Guidance comes on top, with the same mask for both of
its predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from latentddpm.diffusion.inpainting import repaint_weights
from latentddpm.utils.arrays import Array

REGION_WEIGHTS = "region_weights"
"""Name of the weights among the inputs of a network, as of `models.denoisers`."""


def region_weights(masks: np.ndarray, downsample_factor: int) -> np.ndarray:
    """Weights of the rest and of R regions at each latent.

    Args:
        masks: (R, H, W) in [0, 1]; both sides are multiples of the factor.
        downsample_factor: pixels per latent along a side.

    Returns:
        w, float32 (h, w, R + 1), of sum 1: first the rest, then the regions in their order.
    """
    shares = masks / np.maximum(masks.sum(axis=0, dtype="float64"), 1)
    weights = [repaint_weights(share, downsample_factor) for share in shares]
    weights = np.concatenate(weights, axis=-1)
    rest = np.maximum(1 - weights.sum(axis=-1, keepdims=True), 0)
    return np.concatenate([rest, weights], axis=-1)


class RegionComposition:
    """Composition of regions: a denoiser that wraps a denoiser, which is told one at a time.

    Args:
        denoiser: `denoiser(noisy_latents, timesteps, told) -> prediction`, the network.

    Call arguments:
        noisy_latents: (B, h, w, c).
        timesteps: int32 or float32 (B,).
        told: inputs of the network by name, (B, R, …) each, with what the r-th region is told in
            row r; and their weights `"region_weights"`, (B, h, w, R).

    Returns:
        The composed prediction, (B, h, w, c).

    Example:
        >>> def unet(noisy_latents, timesteps, told):
        ...     return noisy_latents * told["digit"][:, None, None]
        >>> told = {"digit": np.array([[[2.0], [3.0]]])}  # of one image, in two regions
        >>> told["region_weights"] = np.array([[[[1.0, 0.0], [0.0, 1.0]]]])  # left, right
        >>> RegionComposition(unet)(np.ones((1, 1, 2, 1)), np.array([999]), told)[0, 0, :, 0]
        array([2., 3.])
    """

    def __init__(self, denoiser: Callable[[Array, Array, Mapping[str, Array]], Array]) -> None:
        self.denoiser = denoiser

    def __call__(self, noisy_latents: Array, timesteps: Array, told: Mapping[str, Array]) -> Array:
        inputs = dict(told)
        weights = inputs.pop(REGION_WEIGHTS)

        def within(region: int) -> Array:
            own = {name: values[:, region] for name, values in inputs.items()}
            prediction = self.denoiser(noisy_latents, timesteps, own)
            return weights[..., region : region + 1] * prediction

        composed = within(0)
        for region in range(1, weights.shape[-1]):
            composed = composed + within(region)
        return composed
