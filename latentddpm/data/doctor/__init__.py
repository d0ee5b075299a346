"""Doctor: a check of images and captions before training."""
