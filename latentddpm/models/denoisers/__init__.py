"""Denoisers: the networks that are told noisy latents and a timestep, and predict."""
