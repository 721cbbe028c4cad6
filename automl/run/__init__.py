"""A run: its directory, its record, and its stages from the baseline to the exported network."""
