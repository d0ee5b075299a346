"""Evaluation of autoencoders and generators: metrics, with the conditions they hold under."""
