"""Pipeline: autoencoder, UNet and text encoder together, to load, generate and save."""
