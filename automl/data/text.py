"""A small text to learn: the log of a ship, written by the grammar below, so that nothing has to be downloaded.

The text is a sequence of days. A day names the wind, which turns from one day to the next and is the same all day long,
and tells what was done and seen, in sentences whose subjects and verbs agree in number. So there is something to learn
at every distance: spelling, word order, agreement, and what was said a sentence ago.
"""

from functools import lru_cache
from random import Random
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field

from automl.data.bundle import DataBundle, tensor_bundle
from search_spaces.errors import InputError

VERSION = 1
"""Of the grammar: raise it when it writes another text."""

ALPHABET = "\n ,.abcdefghijklmnopqrstuvwxyz"
LENGTH = 60_000
SHARES = (0.7, 0.1, 0.2)
"""Of the text, from its beginning: training, search validation, test."""

WINDS = ("north", "north east", "east", "south east", "south", "south west", "west", "north west")

GRAMMAR: dict[str, tuple[str, ...]] = {
    "day": ("<opening> <sentence> <sentence> <sentence>", "<opening> <sentence> <sentence>", "<opening> <sentence>"),
    "opening": (
        "wind {wind}, <force>.",
        "the wind came from the {wind}, <force>.",
        "at <hour> the wind blew from the {wind}.",
    ),
    "force": ("light", "fresh", "strong and cold", "steady", "rising", "falling towards evening"),
    "hour": ("dawn", "noon", "sunset", "midnight", "two bells", "four bells", "six bells", "eight bells"),
    "sentence": (
        "<one> <does>.",
        "<many> <do>.",
        "<one> <does>, and <many> <do>.",
        "<many> <do>, but <one> <does>.",
        "at <hour> <one> <does>.",
        "at <hour> <many> <do>.",
        "we <did> before the {wind} wind.",
        "we <did>, for <were>.",
        "we <did>, for <was>.",
        "we saw <sight> to the <side>.",
    ),
    "one": (
        "the captain", "the mate", "the cook", "the carpenter", "the old pilot", "a young sailor", "the helmsman",
        "the ship", "the <boat>", "the man at the <place>",
    ),
    "many": (
        "the sailors", "the men of the first watch", "the men of the last watch", "two boys", "all hands",
        "the carpenters", "three of the crew", "the men at the <place>",
    ),
    "does": (
        "keeps the log", "mends the <gear>", "looks for the <thing>", "holds the course", "counts the <things>",
        "sings at the <place>", "trusts the <thing>", "sleeps below", "waits for the tide", "is <mood>",
    ),
    "do": (
        "keep watch", "mend the <gear>", "look for the <thing>", "hold the course", "count the <things>",
        "sing at the <place>", "trust the <thing>", "sleep below", "wait for the tide", "are <mood>",
    ),
    "did": (
        "trimmed the sails", "took in the <gear>", "made good speed", "changed our course", "set the <gear>",
        "lay at anchor", "ran", "drifted", "stood out to sea", "cleaned the deck",
    ),
    "were": ("the <things> were <state>", "the <things> were few", "the men were <mood>"),
    "was": ("the <thing> was <state>", "the tide was <state>", "the captain was <mood>"),
    "gear": ("main sail", "fore sail", "anchor", "nets", "ropes", "rudder", "trim tab"),
    "thing": ("compass", "lantern", "coast", "chart", "moon", "harbour light", "pole star"),
    "things": ("barrels", "stars", "charts", "lanterns", "islands", "waves", "biscuits"),
    "place": ("wheel", "mast", "pumps", "bow", "stern", "galley"),
    "boat": ("long boat", "pilot boat", "small boat"),
    "mood": ("tired", "lazy", "glad", "silent", "hungry", "in good heart", "wet to the bone"),
    "state": ("high", "low", "lost", "near", "far away", "hidden by fog"),
    "sight": (
        "a white gull", "grey seals", "a sail", "a whale", "a line of rain", "two islands", "the land", "a light",
        "flying fish", "a broken mast", "a stone quay", "a jetty",
    ),
    "side": ("larboard side", "starboard side", "{wind}"),
}  # fmt: skip
"""Symbol -> what may be written for it, each alternative as likely as any other. <symbols> are replaced in turn, {wind}
by the wind of the day."""


def logbook(
    *,
    context: Annotated[int, Field(ge=2, le=256)] = 32,
    windows: Annotated[int, Field(ge=10, le=100_000)] = 8000,
    seed: int = 0,
) -> DataBundle:
    """A ship's log of 60,000 characters: tell the next character from those before it.

    An image [1, context, 30] holds a character a row, one-hot over the alphabet; its class is the character that
    follows. The splits are stretches of the text that do not overlap.

    Args:
        context: characters that are read before one is told.
        windows: of the training split; validation has an eighth of that number, the test a quarter.
        seed: of where in the text windows begin. The text is always the same.
    """
    codes = np.array([ALPHABET.index(character) for character in text()], dtype=np.int64)
    bounds = np.round(np.cumsum([0.0, *SHARES]) * len(codes)).astype(int)
    rng = np.random.default_rng(seed)
    splits = []
    for start, end, share in zip(bounds[:-1], bounds[1:], (1, 8, 4), strict=True):
        splits.append(_windows(codes[start:end], context, max(1, windows // share), rng))
    return tensor_bundle("logbook", splits, classes=len(ALPHABET), mean=[0.0], std=[1.0])


@lru_cache(maxsize=1)
def text() -> str:
    """The log: `LENGTH` characters of `ALPHABET`, always the same."""
    random = Random(VERSION)  # its random() is promised to stay as it is
    wind, days, length = 0, [], 0
    while length < LENGTH:
        wind = (wind + int(random.random() * 3) - 1) % len(WINDS)
        days.append(_expand("day", random).format(wind=WINDS[wind]))
        length += len(days[-1]) + 1
    return "\n".join(days)[:LENGTH]


def _expand(symbol: str, random: Random) -> str:
    alternatives = GRAMMAR[symbol]
    chosen = alternatives[int(random.random() * len(alternatives))]
    head, *rest = chosen.split("<")
    for part in rest:
        inner, _, after = part.partition(">")
        head += _expand(inner, random) + after
    return head


def _windows(
    codes: npt.NDArray[np.int64], context: int, count: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Windows [count, 1, context, alphabet] of 0 and 255, and the character after each."""
    places = len(codes) - context
    if count > places:
        raise InputError(f"the log has {places} windows of {context} characters in that split, asked for {count}")
    starts = np.sort(rng.permutation(places)[:count])
    read = codes[starts[:, None] + np.arange(context)]
    return np.eye(len(ALPHABET), dtype=np.uint8)[read][:, None] * 255, codes[starts + context]
