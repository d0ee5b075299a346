"""Pictures: files of any kind, decoded to values with their own channels and bit depth."""
