"""Predictor and corrector: ancestral sampling with Langevin steps at every level.

The score ∇ log p(x) of the noisy latents points to where they are likelier. It is −ε over the rate
of noise (`NoiseSchedule.score`). Steps of Langevin dynamics along it, with noise z,

    x ← x + δ · score(x) + √(2 δ) · z

leave p as it is and lead other latents to it (exactly for δ → 0). So they correct the errors of a
step between levels, at the price of one call of the network each. At each level there are M of
them, then a step of DDPM to the next level predicts its latents (Song 2021b, algorithms 1, 3 and
5, in the order of the authors' code, whose last step is a prediction without noise). With α the
ratio ᾱ/ᾱ' of the level to the next one,

    δ = 2 α (ρ ‖z‖ / ‖score(x)‖)²,   ρ = `snr`                     (Song 2021b, algorithm 5)

The norms are those of each image: the authors take their means over the batch, and an image would
depend on the others. On data of one Gaussian, and many numbers, the variance that these steps come
to is 1 / (1 − α ρ²) times the true one: 2.6 % more with ρ = 0.16.
"""

from __future__ import annotations

from typing import Any

from latentddpm.diffusion.options import check_corrector_steps, check_snr
from latentddpm.diffusion.samplers.base import Array, Denoise, Noise
from latentddpm.diffusion.samplers.ddpm import DDPMSampler
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.utils import arrays


class PredictorCorrectorSampler(DDPMSampler):
    """Predictor–corrector sampler (Song 2021b): steps of DDPM, and Langevin steps before each.

    Args:
        schedule, num_steps, timestep_spacing, steps_offset: see `Sampler`.
        variance: of the predictor, see `DDPMSampler`; "large" in Song 2021b.
        clip_sample: clip the predictor's estimates of x0 to [-1, 1].
        corrector_steps: M, Langevin steps at each level, at least 0; with 0 this is DDPM.
        snr: ρ > 0, the ratio of signal to noise of a Langevin step; 0.16 in Song 2021b.

    Raises:
        UserError: see `DDPMSampler`; or a number outside its range.

    Example:
        >>> sampler = latentddpm.samplers.get("pc")(latentddpm.NoiseSchedule(), 5, "trailing")
        >>> rng = np.random.default_rng(0)
        >>> latents = sampler.sample(
        ...     denoiser=lambda noisy_latents, timesteps: noisy_latents,
        ...     latents=rng.normal(size=(1, 8, 8, 4)),
        ...     noise=lambda step_index, draw=0: rng.normal(size=(1, 8, 8, 4)),
        ... )
        >>> latents.shape
        (1, 8, 8, 4)
    """

    def __init__(
        self,
        schedule: NoiseSchedule,
        num_steps: int,
        timestep_spacing: str = "leading",
        steps_offset: int | None = None,
        variance: str = "large",
        clip_sample: bool = False,
        corrector_steps: int = 1,
        snr: float = 0.16,
    ) -> None:
        super().__init__(
            schedule, num_steps, timestep_spacing, steps_offset, variance, clip_sample
        )
        self.corrector_steps = check_corrector_steps(corrector_steps)
        self.snr = check_snr(snr)

    def step(
        self, step_index: int, latents: Array, denoise: Denoise, noise: Noise, history: Any
    ) -> tuple[Array, Array, Any]:
        """Step: Langevin steps at this level, then one of DDPM (Song 2021b, algorithm 5)."""
        for draw in range(1, self.corrector_steps + 1):
            latents = self.correct(step_index, latents, denoise, noise(step_index, draw))
        return super().step(step_index, latents, denoise, noise, history)

    def correct(self, step_index: int, latents: Array, denoise: Denoise, noise: Array) -> Array:
        """Langevin step at the level of `step_index` (Song 2021b, algorithm 5).

        Args:
            step_index, latents, denoise: see `Sampler.step`.
            noise: z, standard normal, (B, h, w, c).

        Returns:
            The latents after it, at the same level. Where the score is 0 they stay what they are.
        """
        epsilon = denoise(latents, step_index)[1]
        signal_rate, noise_rate = self.rates(step_index)
        alpha = (signal_rate / self.rates(step_index + 1)[0]) ** 2
        score = -epsilon / noise_rate
        squares = _squared_norm(score)
        share = arrays.where(
            squares > 0, _squared_norm(noise) / arrays.maximum(squares, 1e-30), 0.0
        )
        delta = 2 * alpha * self.snr**2 * share
        return latents + delta * score + arrays.sqrt(2 * delta) * noise


def _squared_norm(values: Array) -> Array:
    """Squared norm of each image, (B, 1, 1, 1)."""
    return arrays.sum(values**2, axis=tuple(range(1, len(values.shape))), keepdims=True)
