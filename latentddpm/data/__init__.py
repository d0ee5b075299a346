"""Data: from image files and captions to batches of training examples."""
