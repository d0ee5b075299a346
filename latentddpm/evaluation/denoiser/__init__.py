"""Evaluation of the denoiser on real images: the variational bound, and estimates of x0."""
