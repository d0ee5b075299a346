"""Several places of images with a weight each: one source, and a sampling by weight."""
