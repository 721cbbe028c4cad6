"""What a searcher knows of a network before it starts."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backends.layer_prices import FloatArray


@dataclass(frozen=True)
class Prior:
    """Numbers that a run computes once for its searches.

    Attributes:
        values: one for every choice of every decision, each [choices]; what they say is the searcher's business.
        images: that were forwarded for them, a backward pass counted as two more.
        seconds: that they took.
    """

    values: list[FloatArray]
    images: int
    seconds: float

    @classmethod
    def read(cls, path: Path) -> "Prior | None":
        """What a file holds; None where it holds nothing of the kind."""
        try:
            document = json.loads(path.read_bytes())
            values = [np.array(numbers, dtype=np.float64) for numbers in document["values"]]
            return cls(values, int(document["images"]), float(document["seconds"]))
        except (OSError, ValueError, TypeError, KeyError, OverflowError):
            return None

    def to_json(self) -> dict[str, Any]:
        """What `read` takes."""
        return {
            "values": [numbers.tolist() for numbers in self.values],
            "images": self.images,
            "seconds": self.seconds,
        }
