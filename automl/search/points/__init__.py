"""Searchers over the points of a space of channels, bits, zeros and ranks: one file an algorithm."""
