"""Latents cache: the moments of every image, encoded once."""
