"""Conditions in the data: what each image of a catalog tells the network beside its caption."""
