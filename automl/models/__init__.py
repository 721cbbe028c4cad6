"""The embedded zoo of networks, and how a user brings one."""
