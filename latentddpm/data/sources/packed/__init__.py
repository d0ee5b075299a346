"""Packed sources: files that hold many captioned images each."""
