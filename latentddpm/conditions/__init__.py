"""Conditions: what a network is told beside the noisy latents, the timestep and text."""
