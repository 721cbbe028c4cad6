"""Searches in parallel: all that knows Ray, and the search loop that does not."""
