"""The ship's log: the same text everywhere, windows that do not cross splits, and something in it to learn."""

import hashlib
from itertools import pairwise

import numpy as np
import pytest
import torch

from automl.data import load_data
from automl.data.text import ALPHABET, GRAMMAR, LENGTH, SHARES, WINDS, text
from search_spaces.errors import InputError

DIGEST = "c248ab5b62f6013fbd6486b05945525ccd17796eb571940680c1bed8f18e0163"


def read(image: torch.Tensor) -> str:
    """The characters of a window."""
    return "".join(ALPHABET[int(code)] for code in image[0].argmax(-1))


def test_the_text_is_always_the_same() -> None:
    log = text()
    assert len(log) == LENGTH
    assert set(log) == set(ALPHABET)
    assert hashlib.sha256(log.encode()).hexdigest() == DIGEST


def test_the_grammar_is_closed() -> None:
    used = {part.split(">")[0] for each in GRAMMAR.values() for line in each for part in line.split("<")[1:]}
    assert used | {"day"} == set(GRAMMAR)
    assert all(wind in text() for wind in WINDS)


def test_windows_are_pieces_of_the_text_and_what_follows() -> None:
    data = load_data("logbook", {"context": 12, "windows": 80, "seed": 3})
    assert (data.input_shape, data.classes) == ((1, 12, len(ALPHABET)), len(ALPHABET))
    bounds = [round(LENGTH * share) for share in np.cumsum([0.0, *SHARES])]
    for split, size, start, end in zip(
        (data.train, data.val, data.test), (80, 10, 20), bounds[:-1], bounds[1:], strict=True
    ):
        assert len(split) == size
        for image, label in split:
            assert image.dtype == torch.float32
            assert image.sum() == 12
            assert set(image.unique().tolist()) == {0.0, 1.0}
            assert read(image) + ALPHABET[int(label)] in text()[start:end]


def test_the_seed_chooses_windows() -> None:
    one, same, other = (load_data("logbook", {"windows": 40, "seed": seed}) for seed in (0, 0, 1))
    assert one.digest == same.digest != other.digest


def test_more_windows_than_there_are() -> None:
    with pytest.raises(InputError, match=r"has 41968 windows .* asked for 50000"):
        load_data("logbook", {"windows": 50_000})


def test_what_was_said_before_tells_what_comes_next() -> None:
    """Tables of what followed n characters in the training part: each more of them tells more of the validation part,
    so a model has something to remember."""
    log, (first, second) = text(), (round(LENGTH * SHARES[0]), round(LENGTH * (SHARES[0] + SHARES[1])))
    right = []
    for length in (0, 1, 3, 6):
        seen: dict[str, dict[str, int]] = {}
        for place in range(length, first):
            follows = seen.setdefault(log[place - length : place], {})
            follows[log[place]] = follows.get(log[place], 0) + 1
        best = {before: max(follows, key=follows.__getitem__) for before, follows in seen.items()}
        places = range(first + length, second)
        right.append(np.mean([best.get(log[place - length : place]) == log[place] for place in places]))
    assert right[0] < 0.25
    assert all(more > less + 0.05 for less, more in pairwise(right)), right
