"""Autoencoder: encoder and decoder, the latent space, and large images in tiles or strips."""
