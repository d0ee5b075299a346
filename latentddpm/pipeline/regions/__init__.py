"""Regions of a picture that are told different things: their masks, and what a network takes."""
