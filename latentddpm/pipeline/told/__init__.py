"""Told: what a network is told of the images of a call, and guidance by it."""
