"""Fine-tuning to a subject of a few images: images of its class beside them, a token for it."""
