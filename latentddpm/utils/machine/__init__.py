"""Machine: its processor, its memory and its accelerators."""
