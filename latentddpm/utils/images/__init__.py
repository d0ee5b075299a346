"""Pictures as people have them, and their sizes; without Keras."""
