"""The errors a user may meet, for those who import only `automl`."""

from search_spaces.errors import InputError, TrimtabError, UnreachableError, did_you_mean


class RunStoppedError(TrimtabError):
    """A run was told to stop (SIGINT, SIGTERM) and did so at a consistent point."""


__all__ = ["InputError", "RunStoppedError", "TrimtabError", "UnreachableError", "did_you_mean"]
