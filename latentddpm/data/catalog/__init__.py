"""Catalog of images: what one scan found, on disk, and the split into training and validation."""
