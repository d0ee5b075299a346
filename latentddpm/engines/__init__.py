"""Engines: what computes the graph of a network where Keras does not."""
