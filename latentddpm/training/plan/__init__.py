"""Plan of a run: all that is decided before networks are built, without Keras and TensorFlow."""
