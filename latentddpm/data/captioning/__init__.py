"""Captions that no file holds: words of names, and tags in another order for each use."""
