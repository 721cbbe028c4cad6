"""Applying a compression policy to a network."""
