"""Searchers over the points of a space of channels, bits, zeros, ranks and resolutions: one file an algorithm."""
