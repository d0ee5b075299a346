"""Similarity of two images: RMSE, PSNR and SSIM.

With pixels x, y of 8 bits (or other values in levels 0 … 255, `PixelFormat.to_levels`), and means
over all pixels and channels of an image,

    RMSE = √mean (x − y)²           PSNR = 20 log₁₀(255 / RMSE)  dB

SSIM (Wang et al. 2004) compares means μ, variances σ² and the covariance of each window, weighted
by a Gaussian of 11×11 pixels with σ = 1.5, in each channel separately:

    SSIM = mean (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂))

C₁ = (0.01·255)², C₂ = (0.03·255)². Only windows that lie wholly in the image count. This is
scikit-image's `structural_similarity(gaussian_weights=True, use_sample_covariance=False)`.
"""

from __future__ import annotations

import numpy as np

from latentddpm.errors import UserError

HIGHER_IS_BETTER = ("psnr", "ssim")
LEVELS = 255
WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * LEVELS) ** 2, (0.03 * LEVELS) ** 2


def rmse(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Root mean squared error, in levels of 0 … 255.

    Args:
        images, references: uint8, or float32 0 … 255, (N, H, W, C).

    Returns:
        float64 (N,), 0 for equal images.
    """
    images, references = _pixels(images, references)
    return np.sqrt(np.mean(np.square(images - references), axis=(1, 2, 3)))


def psnr(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB.

    Args:
        images, references: uint8, or float32 0 … 255, (N, H, W, C).

    Returns:
        float64 (N,), infinite for equal images.
    """
    with np.errstate(divide="ignore"):
        return 20 * np.log10(LEVELS / rmse(images, references))


def ssim(images: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Structural similarity, SSIM.

    Args:
        images, references: uint8, or float32 0 … 255, (N, H, W, C), sides of at least 11.

    Returns:
        float64 (N,) in [-1, 1], 1 for equal images.

    Raises:
        UserError: a side shorter than the window.
    """
    if min(images.shape[1:3]) < WINDOW:
        height, width = images.shape[1:3]
        raise UserError(f"SSIM needs images of at least {WINDOW}×{WINDOW}, not {height}×{width}")
    x, y = _pixels(images, references)
    mean_x, mean_y = _blur(x), _blur(y)
    variances = _blur(x * x) - mean_x**2 + _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (variances + C2)
    return np.mean(luminance * structure, axis=(1, 2, 3))


def _pixels(images: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for array in (images, references):
        known = array.dtype in (np.uint8, np.float32)  # floating point: levels between the whole
        if not known or array.shape != references.shape or array.ndim != 4:
            raise ValueError(
                f"expected two uint8 arrays (N, H, W, 3), got {images.dtype} {images.shape} and "
                f"{references.dtype} {references.shape}"
            )
    return images.astype(np.float64), references.astype(np.float64)


def _blur(images: np.ndarray) -> np.ndarray:
    """Gaussian-weighted mean of each whole window: (N, H, W, C) → (N, H − 10, W − 10, C)."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-0.5 * (offsets / SIGMA) ** 2)
    weights /= weights.sum()
    height, width = (side - WINDOW + 1 for side in images.shape[1:3])
    rows = sum(w * images[:, i : i + height] for i, w in enumerate(weights))
    return sum(w * rows[:, :, i : i + width] for i, w in enumerate(weights))
