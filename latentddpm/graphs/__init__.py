"""Graphs: the networks as ONNX graphs without weights, which run without Keras."""
