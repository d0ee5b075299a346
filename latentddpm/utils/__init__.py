"""Utilities: atomic files, locks, signals, pixels and PNG metadata, progress on the terminal."""
