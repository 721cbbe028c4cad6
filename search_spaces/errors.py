"""The errors a user may meet. Each message gives the rule, the offending value and the remedy, in one line."""

from collections.abc import Iterable
from difflib import get_close_matches


class TrimtabError(Exception):
    """Root of every error that Trimtab raises on purpose; the command line ends with exit code 1."""


class InputError(TrimtabError):
    """What the user gave cannot be used (config, policy, checkpoint, model, data); exit code 2."""


class UnreachableError(InputError):
    """A budget that no policy of the search space keeps; the message gives the least that one comes to."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint to append to an error message: the closest known names, or all of them where none is close.

    >>> did_you_mean("resnet2O", ["resnet20", "lenet5"])
    "; did you mean 'resnet20'?"
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=3)
    if close:
        return "; did you mean " + " or ".join(repr(match) for match in close) + "?"
    return "; known: " + ", ".join(names) if names else ""
