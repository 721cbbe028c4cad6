"""What the agent of a search begins with, where that is not nothing: an agent of another run (AMC's transfer)."""

from pathlib import Path

from automl.config_sections import SearchSection
from automl.errors import InputError
from automl.orchestration.search_loop import read_snapshot
from automl.searchers.agent_options import AGENTS
from automl.searchers.base import State


def initial_agent(how: SearchSection) -> State | None:
    """State of the search whose agent is to be begun with; None where it begins with nothing.

    Args:
        how: the search.

    Raises:
        InputError: there is no such file, or no snapshot in it.
    """
    content = agent_file(how)
    if content is None:
        return None
    try:
        arrays, document = read_snapshot(content)
        return arrays, dict(document["searcher"])
    except (InputError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"search.init_from {how.init_from!r} cannot be read: {error}; take another snapshot") from None


def agent_file(how: SearchSection) -> bytes | None:
    """The snapshot that `init_from` names: a file, or a run directory, of whose searches the first seed's is taken.

    Raises:
        InputError: there is none, or the search is by no agent.
    """
    if how.init_from is None:
        return None
    if how.algorithm not in AGENTS:
        raise InputError(f"search.init_from is for agents ({', '.join(AGENTS)}), got algorithm {how.algorithm!r}")
    path = Path(how.init_from)
    if path.is_dir():
        found = [
            (int(seed), file)
            for file in path.glob(f"searchers/{how.algorithm}-*.safetensors")
            if (seed := file.stem.rpartition("-")[2]).isdigit()
        ]
        if not found:
            raise InputError(
                f"search.init_from {how.init_from!r} has no search by {how.algorithm!r} "
                f"(searchers/{how.algorithm}-SEED.safetensors); take a run that searched so, or such a file"
            )
        path = min(found)[1]
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(
            f"search.init_from {how.init_from!r} cannot be read: {error.strerror}; take a run directory, or the "
            "snapshot of one of its searches"
        ) from None
