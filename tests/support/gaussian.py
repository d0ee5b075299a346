"""Closed forms of the variational bound of data that is one Gaussian."""

import numpy as np

from latentddpm.diffusion.likelihood import step_terms


def least_error(schedule, std):
    """E(x0 − x̂0)² of the best network at each timestep."""
    return std**2 / (1 + std**2 * schedule.snr)


def gaussian_bound(schedule, std, variance):
    """The bound of the best network in closed form, and the entropy; bits per dimension."""
    bar = schedule.alphas_cumprod[-1]
    prior = (bar * (std**2 - 1) - np.log(1 - bar)) / 2 / np.log(2)
    offset, slope = step_terms(schedule)[variance]
    entropy = np.log2(2 * np.pi * np.e * std**2) / 2
    return prior + np.sum(offset + slope * least_error(schedule, std)), entropy
