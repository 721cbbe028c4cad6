"""Where the Ray of a run that is being driven is to be looked at: `ray.json` in the run directory, gone afterwards.

Addresses and the path of a file stand there, never a token.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from automl.errors import InputError
from automl.run.directory import write_json

FILE = "ray.json"


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Of one Ray.

    Attributes:
        pid, host: of the process that drives the run.
        dashboard: address of Ray's dashboard, None where there is none.
        metrics: "host:port" of every node's metrics.
        token_file: holds the token that the dashboard asks for, for its owner to read; None where the token is the
            cluster's, which its users know.
    """

    pid: int
    host: str
    dashboard: str | None
    metrics: tuple[str, ...]
    token_file: str | None

    @classmethod
    def read(cls, run: Path) -> Self | None:
        """What the run directory says; None where it says nothing.

        Raises:
            InputError: the file is damaged.
        """
        path = run / FILE
        try:
            found = json.loads(path.read_bytes())
            return cls(
                int(found["pid"]),
                str(found["host"]),
                None if found["dashboard"] is None else str(found["dashboard"]),
                tuple(map(str, found["metrics"])),
                None if found["token_file"] is None else str(found["token_file"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError(f"{str(path)!r} is damaged: {error}; remove it") from None

    def write(self, run: Path) -> None:
        """Put it into the run directory."""
        write_json(run / FILE, asdict(self))
