"""Training step: the two trainers, the discriminator, gradients and optimizers."""
