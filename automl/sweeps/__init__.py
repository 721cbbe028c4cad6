"""Sweeps: a grid of runs as one experiment (`sweep:` in a config, docs/sweeps.md)."""
