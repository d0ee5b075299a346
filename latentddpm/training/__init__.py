"""Training of the autoencoder and of the UNet, as the commands do it."""
