"""Bits within a budget, against HAQ's rule taken literally: one bit after the other."""

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from envs.bit_budget import RAW, BitBudget, IntArray
from search_spaces.errors import InputError

Problem = tuple[IntArray, IntArray, float, int]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """A table that never falls as bits rise, proposed bits, a budget, and the least bits."""
    layers = draw(st.integers(1, 5))
    least = draw(st.integers(1, 4))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    table = generator.integers(0, draw(st.integers(2, 50)), (layers, 8, 8)).cumsum(1).cumsum(2)
    bits = generator.integers(least, 9, (layers, 2))
    return table, bits, draw(st.floats(0.0, 1.2)) * float(table[:, 7, 7].sum()), least


def total(table: IntArray, bits: IntArray) -> int:
    """In a table [layers, weights, activations]; -1 lands in its last column but one."""
    return sum(int(table[layer, weights - 1, reads - 1]) for layer, (weights, reads) in enumerate(bits.tolist()))


def literally(
    bits: IntArray, least: int, keeps: Callable[[IntArray], bool], pin: Callable[[IntArray], None]
) -> IntArray:
    """Sweeps from the last layer, what it reads before its weights, until the budget is kept."""
    bits = bits.copy()
    while not keeps(bits):
        for layer in reversed(range(len(bits))):
            for kind in (1, 0):
                if bits[layer, kind] > least:
                    bits[layer, kind] -= 1
                pin(bits)
                if keeps(bits):
                    return bits
    return bits


@given(problems(), st.booleans(), st.booleans())
def test_the_sweep_is_the_literal_one(problem: Problem, faithful: bool, ends: bool) -> None:
    table, proposed, limit, least = problem
    fixed = np.zeros_like(proposed)
    if not ends:
        fixed[0] = (8, RAW if faithful else 8)
        fixed[-1] = 8

    def pin(bits: IntArray) -> None:
        if not ends:
            bits[0] = fixed[0]
            bits[-1] = fixed[-1]

    def price(bits: IntArray) -> IntArray:
        return np.array([total(table, each) for each in bits])

    choices = (range(least, 9), range(least, 9))
    lowest = np.full_like(proposed, least)
    pin(lowest)
    try:
        budget = BitBudget(price, limit, choices, fixed, faithful=faithful)
    except InputError:
        assert total(table, lowest) > limit
        return
    assert total(table, lowest) <= limit
    found = budget.meet(proposed)
    start = proposed.copy()
    if not faithful:
        pin(start)
    assert found.tolist() == literally(start, least, lambda bits: total(table, bits) <= limit, pin).tolist()
    assert budget.cost(found) == total(table, found) <= limit
    assert budget.meet(found).tolist() == found.tolist()


@given(problems(), st.lists(st.integers(1, 16), min_size=1, max_size=4, unique=True))
def test_any_choices_are_kept_to(problem: Problem, chosen: list[int]) -> None:
    """Bits that the hardware has, with gaps."""
    _, proposed, share, _ = problem
    choices = sorted(chosen)
    bits = np.array(choices)[proposed % len(choices)]

    def price(asked: IntArray) -> IntArray:
        return np.asarray(asked.sum(axis=(1, 2)))

    limit = max(share, float(choices[0] * bits.size))
    budget = BitBudget(price, limit, (choices, choices), np.zeros_like(bits))
    found = budget.meet(bits)
    assert set(found.ravel().tolist()) <= set(choices)
    assert (found <= bits).all()
    assert found.sum() <= limit
    if (found != bits).any():  # the last step was needed: with it taken back, the budget is not kept
        steps = np.searchsorted(choices, bits) - np.searchsorted(choices, found)
        last = np.flatnonzero(steps.ravel() == steps.max())[0]
        back = found.ravel().copy()
        back[last] = choices[choices.index(int(back[last])) + 1]
        assert back.sum() > limit
