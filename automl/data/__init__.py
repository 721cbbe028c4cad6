"""The embedded data sets, loaders for the standard ones, and how a user brings one."""
