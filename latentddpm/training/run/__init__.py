"""Training run: steps, checkpoints, resuming, logs."""
