"""Run a search, from a config to an exported, verified network."""
