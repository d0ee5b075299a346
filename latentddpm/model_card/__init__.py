"""Model card: what a finished model is, how it was trained, and where it ends."""
