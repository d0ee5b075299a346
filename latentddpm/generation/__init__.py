"""The command `generate`: options, LoRA files, PNG files and their metadata."""
