"""Engines that misbehave as the operator asks them to, for tests of the process that holds them."""

import os
import signal
import sys
import time
from dataclasses import dataclass

import numpy as np

from backends.measuring import relative_error
from backends.operator_worker import Prepared


@dataclass(frozen=True)
class Toy:
    """An operator by its behaviour."""

    behaviour: str = "right"
    amount: float = 0.0
    kind: str = "toy"
    work: float = 1.0
    traffic: float = 1.0

    @property
    def recipe(self) -> str:
        return f"toy(behaviour={self.behaviour},amount={self.amount:g})"


class ToyEngine:
    """Adds numbers up; tells its process, its options and how many operators it has seen in `structure`."""

    def __init__(self, threads: int, **options: object) -> None:
        self._state = f"{threads} {os.environ['OMP_NUM_THREADS']} {os.environ['TVM_NUM_THREADS']} {options}"
        self._seen = 0
        self._kept: list[bytes] = []

    def prepare(self, recipe: Toy) -> Prepared:
        self._seen += 1
        values = np.arange(1000, dtype=np.float32)
        output, expected = values * 2, values + values
        call = values.sum
        match recipe.behaviour:
            case "raises":
                raise ValueError("no rule for this operator\nand a traceback that nobody wants")
            case "crashes":
                os.kill(os.getpid(), signal.SIGSEGV)
            case "exits":
                os.write(2, b"what it thought first\nwhat it thought at last\n")
                os._exit(3)
            case "hangs":
                time.sleep(3600)
            case "hangs when timed":
                return Prepared(lambda: time.sleep(3600), 1, 0.0, "")
            case "answers wrongly":
                output = output + np.float32(recipe.amount)
            case "answers with nan":
                output = output * np.float32("nan")
            case "prints":
                sys.stdout.write("x" * 100_000)
                sys.stdout.flush()
                os.write(1, b"\0" * 100_000)
                if sys.stdin.readline():
                    raise ValueError("stdin holds something")
            case "grows":
                self._kept.append(b"x" * int(recipe.amount))
            case "sleeps":
                call = lambda: time.sleep(recipe.amount)  # noqa: E731
        state = f"{os.getpid()} {self._seen} {self._state}"
        return Prepared(call, 4, relative_error(output, expected), state)


class Missing:
    """An engine whose compiler is not installed."""

    def __init__(self, threads: int) -> None:
        raise ModuleNotFoundError("No module named 'compiler'")
