"""The runs of one experiment, checked before any of them is made."""

from collections.abc import Iterator, Mapping

from automl.api import outlined
from automl.config import Config
from automl.errors import InputError, UnreachableError
from automl.progress import Progress


def unreachable(kind: str, configs: Mapping[str, Config], progress: Progress) -> dict[str, str]:
    """See that every run is possible; those whose budgets nothing can keep are said, with why.

    Args:
        kind: what an experiment calls a run of its own, for people: "cell" or "device".
        configs: of the runs, by name.
        progress: of the checks.

    Returns:
        Why there is none for those whose budgets cannot be kept, by name.

    Raises:
        InputError: the config of one cannot work, or nothing can keep the budgets of any.
    """
    found = {name: reason for name, reason in _reasons(kind, configs, progress) if reason is not None}
    if found and len(found) == len(configs):
        name, reason = next(iter(found.items()))
        raise InputError(f"no {kind} has a budget that can be kept; {kind} {name!r}: {reason}")
    for name, reason in found.items():
        progress.say(f"{kind.capitalize()} {name} is left out: {reason}")
    return found


def _reasons(kind: str, configs: Mapping[str, Config], progress: Progress) -> Iterator[tuple[str, str | None]]:
    """Why nothing keeps the budgets of each; None where something does."""
    known: dict[str, str | None] = {}
    for number, (name, config) in enumerate(configs.items(), 1):
        seedless = config.search.model_copy(update={"seeds": [0]})  # on seeds, nothing depends that is checked
        key = config.model_copy(update={"search": seedless}).to_yaml()
        if key not in known:
            try:
                outlined(config, progress)
                known[key] = None
            except UnreachableError as error:
                known[key] = str(error)
            except InputError as error:
                raise InputError(f"{kind} {name!r}: {error}") from error
        progress.update(f"{kind}s checked", number, len(configs))
        yield name, known[key]
