"""How good an autoencoder or a generator is, in numbers that say what they are."""
