"""Versions of the formats that files have (docs/formats.md): what is too old or too new is refused in one line."""

from collections.abc import Collection

from search_spaces.errors import InputError


def require_version(what: str, found: object, known: Collection[int], remedy: str, *, called: str = "version") -> None:
    """InputError unless a file has one of the known versions.

    Args:
        what: the file, as the message begins.
        found: the version that it says; anything where it is damaged.
        known: that this Trimtab reads.
        remedy: what else can be done, as the end of a sentence.
        called: what this format calls its version.
    """
    if type(found) is int and found in known:
        return
    reads = ", ".join(str(each) for each in sorted(known))
    if type(found) is int and found > max(known):
        newer = f"{what} has {called} {found}, made by a newer Trimtab, and this one reads {reads}"
        raise InputError(f"{newer}; use the newer, or {remedy}")
    raise InputError(f"{what} has {called} {found!r}, and this Trimtab reads {reads}; {remedy}")
