"""Spacing of the levels that a sampler visits: n of the T training timesteps, or n values of σ.

    leading    k · ⌊T/n⌋ + offset, k = n−1 .. 0        Stable Diffusion's (Lin 2023, table 2)
    trailing   round(k · T/n) − 1,  k = n .. 1
    linspace   n values from T−1 to 0, both included
    karras     σ_k = (σ_max^(1/ρ) + k/(n−1) · (σ_min^(1/ρ) − σ_max^(1/ρ)))^ρ, k = 0 .. n−1, ρ = 7
                                                                    (Karras 2022, eq. 5)

A flow schedule is cut in σ, of which T is only the unit, and its shift moves the levels then:

    leading    (k · ⌊T/n⌋ + offset + 1) / T, k = n−1 .. 0        starts one stride below 1
    trailing   k / n,  k = n .. 1                               as the pipelines of Flux do
    linspace   n values from 1 to the σ that the shift makes of 1/T        diffusers' schedulers

Where a schedule ends in pure noise, Karras levels are bounded (`karras_sigmas`), and a model that
predicts ε starts a little lower (`start_for_epsilon`).

The timesteps are those of diffusers wherever diffusers gives n different ones in 0 .. T−1.
Elsewhere (n near T, or n = 1) they are the nearest that are different. When n does not divide T,
⌊T/n⌋ leaves up to half of the timesteps unvisited, at the noisy end: 60 steps of 1000 start at
t = 945 and 501 steps at t = 501, although the sampler starts from pure noise. "trailing" has no
such gap.
"""

from __future__ import annotations

import numpy as np

from latentddpm.diffusion.flow import FlowSchedule
from latentddpm.diffusion.options import check_num_steps
from latentddpm.diffusion.schedule import NoiseSchedule
from latentddpm.errors import UserError

PURE_NOISE = 512.0
"""σ above which a level counts as pure noise: nothing of the picture can be told from it.

Ordinary schedules end below (scaled_linear at 14.6, linear at 157), cosine and those with zero
terminal SNR above (20,000; ∞, which counts as 4096)."""

USUAL_SIGMAS = (16.0, 0.03)
"""σ between which a picture is made; Stable Diffusion's schedule goes from 14.6 to 0.029."""


def spaced_timesteps(
    total: int,
    count: int,
    spacing: str,
    offset: int | None = None,
    skip_lowest: bool = False,
    fractional: bool = False,
) -> np.ndarray:
    """Spaced timesteps: `count` strictly decreasing ones in 0 .. total−1.

    Args:
        total: T, the number of training timesteps.
        count: n, 1 .. total.
        spacing: one of `choices.TIMESTEP_SPACINGS`.
        offset: what "leading" adds; None for 1, or 0 where 1 does not fit.
        skip_lowest: with "leading" and "linspace", space n + 1 timesteps and leave out the
            lowest, as the multistep solvers of DPM-Solver do: their last step goes from the
            lowest but one to no noise at all. Ignored where n = total.
        fractional: do not round the timesteps of "linspace".

    Returns:
        int64 (count,), or float64 for fractional ones.

    Raises:
        UserError: `count` or `offset` out of range, or an offset for another spacing.
    """
    check_num_steps(count, total)
    points = count + 1 if skip_lowest and count < total else count
    if spacing == "leading":
        timesteps = np.arange(points)[::-1][:count] * (total // points)
        room = total - 1 - int(timesteps[0])
        offset = min(1, room) if offset is None else offset
        if not isinstance(offset, int | np.integer) or not 0 <= offset <= room:
            raise UserError(
                f"steps_offset: expected a whole number from 0 to {room} for {count} of {total} "
                f"steps, got {offset!r}"
            )
        return timesteps + offset
    if offset is not None:
        raise UserError(f"steps_offset: only 'leading' spacing takes one, not {spacing!r}")
    if spacing == "trailing":
        # Computed as in diffusers, for the same rounding of halves.
        return np.arange(total, 0, -total / count)[:count].round().astype("int64") - 1
    timesteps = np.linspace(0, total - 1, points)[::-1][:count] if points > 1 else [total - 1.0]
    whole = np.round(timesteps)
    if fractional and (timesteps != whole).any():
        return timesteps
    return whole.astype("int64")


def visited_timesteps(
    schedule: NoiseSchedule | FlowSchedule,
    count: int,
    spacing: str,
    offset: int | None = None,
    skip_lowest: bool = False,
    fractional: bool = False,
) -> np.ndarray:
    """Visited timesteps of a schedule: `spaced_timesteps`, or those of a flow schedule.

    Args:
        schedule: of the network.
        count, spacing, offset, skip_lowest, fractional: see `spaced_timesteps`. The last two are
            ignored with a flow schedule, which has its own levels.

    Returns:
        (count,), decreasing: int64 of 0 .. T−1, or float64; with a flow schedule in (0, T].

    Raises:
        UserError: see `spaced_timesteps`.
    """
    total = schedule.num_train_timesteps
    if not schedule.continuous:
        return spaced_timesteps(total, count, spacing, offset, skip_lowest, fractional)
    shares = (spaced_timesteps(total, count, spacing, offset) + 1) / total
    if spacing == "trailing":
        shares = np.arange(count, 0, -1) / count
    elif spacing == "linspace":
        shares = np.linspace(1, schedule.shifted(1 / total), count)
    return total * schedule.shifted(shares)


def karras_sigmas(highest: float, lowest: float, count: int, rho: float = 7.0) -> np.ndarray:
    """Noise levels of Karras 2022, eq. 5: evenly spaced in σ^(1/ρ).

    So steps are small at little noise, where later steps cannot correct an error. Where `highest`
    is pure noise, most levels would be, too: then they are those between `USUAL_SIGMAS`, with
    `highest` itself in place of the first.

    Args:
        highest, lowest: σ of the first and of the last level.
        count: number of levels.
        rho: ρ; 7 in the paper.

    Returns:
        float64 (count,), decreasing.
    """
    top = highest
    if highest > PURE_NOISE:
        top, lowest = USUAL_SIGMAS[0], max(USUAL_SIGMAS[1], lowest)
    sigmas = np.linspace(top ** (1 / rho), lowest ** (1 / rho), count) ** rho
    sigmas[0] = highest if highest > PURE_NOISE else sigmas[0]
    return sigmas


def start_for_epsilon(
    schedule: NoiseSchedule, timesteps: np.ndarray, sigmas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Levels at which the ε of a network can be used: a start below pure noise.

    An error in ε is one of σ times its size in x0, and moves x' by √ᾱ' (σ − σ') times its size.
    From a level of pure noise that is far more than x' itself. So the first level becomes the
    highest whole timestep of at most four times the next one's σ, or of `USUAL_SIGMAS` where that
    is more; where the next level is as high, the first one is left out.

    Args:
        schedule: of the network.
        timesteps: (n,), decreasing.
        sigmas: σ of each level, and of the end; float64 (n + 1,), decreasing.

    Returns:
        The timesteps and σ, one or more fewer where two levels or more are pure noise; those
        given where the first is not.
    """
    while sigmas[0] > max(PURE_NOISE, 4 * sigmas[1]):
        highest = max(USUAL_SIGMAS[0], 4 * sigmas[1])
        start = max(np.searchsorted(schedule.sigmas, highest, side="right") - 1, 0)
        if schedule.sigmas[start] > sigmas[1]:
            timesteps, sigmas = timesteps.copy(), sigmas.copy()
            timesteps[0], sigmas[0] = start, schedule.sigmas[start]
            break
        if sigmas[1] < USUAL_SIGMAS[0]:  # no timestep lies between
            break
        timesteps, sigmas = timesteps[1:], sigmas[1:]
    return timesteps, sigmas
