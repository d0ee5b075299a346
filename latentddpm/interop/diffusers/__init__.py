"""diffusers folders: read and written."""
