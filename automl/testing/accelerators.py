"""The conformance kit of accelerators: one subclass, and a new class or description is tested.

class TestMine(AcceleratorConformance):
    def make(self):
        return load("my_accelerator.yaml")

It needs Hypothesis, which is no dependency of the library itself.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from automl.testing.checks import global_state, require
from automl.testing.layer_rows import Pair, factorised_pairs, rows_of, shrunk_pairs
from backends.accelerators.accelerator import COMPUTE, STATIC, Accelerator, Usage
from backends.accelerators.quantities import Bandwidth
from backends.accelerators.workloads import FloatArray, Workload, Workloads

TOLERANCE = 1e-9
"""Share by which a figure may rise or differ: rounding of floating-point sums."""


class AcceleratorConformance(ABC):
    """What every `Accelerator` promises.

    Attributes:
        examples: that Hypothesis tries of each property, the same in every run; each is a handful of layers.
        shrinks: whether a failure is told of the smallest layers that fail, which takes seconds.
        units: of a column of `Workloads` the hardware's unit, where costs are compared in whole ones only: an exception
            from "cost never rises" that the class documents.
    """

    examples = 25
    shrinks = True
    units: Mapping[str, int] = {}

    @abstractmethod
    def make(self) -> Accelerator[Any]:
        """A new accelerator; two that are made alike answer alike."""

    def workloads(self, accelerator: Accelerator[Any]) -> st.SearchStrategy[Workload]:
        """Layers to try; those that are refused are passed over, but some have to be left."""
        description = accelerator.description
        return rows_of(description.weight_bits[-1], description.activation_bits[-1])

    def test_figures_are_sound(self) -> None:
        """Finite and at least 0; no part takes longer than the whole; energies add up; what limits a layer is known."""
        accelerator = self.make()

        def check(rows: list[Workload]) -> None:
            works = _runnable(accelerator, rows)
            usage = accelerator.run(works)
            _check_shapes(usage, len(works))
            _check_energies(accelerator, usage)
            for part, cycles in [(COMPUTE, usage.compute_cycles), *usage.memory_cycles.items()]:
                _never(works, usage.cycles < cycles * (1 - TOLERANCE), f"{part} takes longer than the whole")
            known = {COMPUTE, *accelerator.memories}
            require(set(usage.limits()) <= known, f"limits {usage.limits()}, of which some are none of {known}")

        self._try(self._rows(accelerator), check)

    def test_a_batch_of_layers_is_each_layer_alone(self) -> None:
        """And the reverse order, another instance, and what is refused."""
        accelerator, other = self.make(), self.make()

        def check(rows: list[Workload]) -> None:
            every = Workloads.of(rows)
            reasons = accelerator.refusals(every)
            alone = [accelerator.refusals(every.take([index]))[0] for index in range(len(rows))]
            require(reasons == alone, f"refused together: {reasons}, alone: {alone}")
            works = _runnable(accelerator, rows)
            together, backwards = accelerator.run(works), other.run(works.take(np.arange(len(works))[::-1]))
            for index in range(len(works)):
                singly = accelerator.run(works.take([index]))
                for name, column in _columns(together).items():
                    _equal(column[index], _columns(singly)[name][0], f"{name} of {_shown(works, index)} alone")
                    _equal(column[index], _columns(backwards)[name][-1 - index], f"{name} in another order")

        self._try(self._rows(accelerator), check)

    def test_refusals_are_one_line_each(self) -> None:
        """And more bits than the hardware has are refused."""
        accelerator = self.make()
        description = accelerator.description

        def check(rows: list[Workload]) -> None:
            _check_reasons(accelerator.refusals(Workloads.of(rows)), len(rows))
            for name in ("weight_bits", "activation_bits"):
                wide = [replace(row, **{name: getattr(description, name)[-1] + 1}) for row in rows]
                reasons = accelerator.refusals(Workloads.of(wide))
                _check_reasons(reasons, len(rows))
                require(None not in reasons, f"too many {name} are not refused")

        self._try(self._rows(accelerator), check)

    def test_no_cost_rises_when_a_layer_shrinks(self) -> None:
        """Cycles and energy, for fewer bits, channels, groups, or numbers that are not zero."""
        accelerator = self.make()

        def check(pairs: list[Pair]) -> None:
            self._check_costs(
                accelerator, [([self._in_units(large)], [self._in_units(small)]) for large, small in pairs]
            )

        self._try(st.lists(shrunk_pairs(self.workloads(accelerator)), min_size=1, max_size=6), check)

    def test_no_cost_rises_when_a_rank_falls(self) -> None:
        """Of the parts of a factorised layer together."""
        accelerator = self.make()
        bits = accelerator.description.weight_bits[-1], accelerator.description.activation_bits[-1]
        pairs = st.lists(factorised_pairs(*bits), min_size=1, max_size=3)
        self._try(pairs, lambda chains: self._check_costs(accelerator, chains))

    def test_more_bandwidth_slows_nothing(self) -> None:
        """At any level, and no more bits move between chip and memory."""
        self._check_grown(_faster_memories)

    def test_a_larger_buffer_slows_nothing(self) -> None:
        """At any level; no more bits move between chip and memory, and what ran still runs."""
        self._check_grown(_larger_memories)

    def test_more_processing_elements_slow_nothing(self) -> None:
        """But for `Accelerator.fill_cycles`."""
        require(bool(self.make().elements), "the class does not say which keys are its processing elements")
        self._check_grown(_more_elements, filled=True)

    def test_nothing_else_is_touched(self) -> None:
        """The layers and the global generators."""
        accelerator = self.make()

        def check(rows: list[Workload]) -> None:
            works = _runnable(accelerator, rows)
            before, state = works.take(np.arange(len(works))), global_state()
            accelerator.run(works)
            require(global_state() == state, "a global generator or the number of threads was changed")
            same = [np.array_equal(getattr(works, each.name), getattr(before, each.name)) for each in fields(works)]
            require(all(same), "the layers were changed")

        self._try(self._rows(accelerator), check)

    def _try(self, examples: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
        # refused layers are filtered, and may be most
        health = [HealthCheck.filter_too_much, HealthCheck.too_slow]
        phases = [Phase.generate, Phase.shrink] if self.shrinks else [Phase.generate]
        settings(
            max_examples=self.examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=phases,
            suppress_health_check=health,
        )(given(examples)(check))()

    def _rows(self, accelerator: Accelerator[Any]) -> st.SearchStrategy[list[Workload]]:
        return st.lists(self.workloads(accelerator), min_size=1, max_size=6)

    def _in_units(self, row: Workload) -> Workload:
        return replace(row, **{name: -(-getattr(row, name) // unit) * unit for name, unit in self.units.items()})

    def _check_costs(self, accelerator: Accelerator[Any], pairs: list[tuple[list[Workload], list[Workload]]]) -> None:
        """The first of each pair of chains costs at least what the second does."""
        tried = 0
        for large, small in pairs:
            works = [Workloads.of(large), Workloads.of(small)]
            if any(reason for each in works for reason in accelerator.refusals(each)):
                continue
            tried += 1
            before, after = (accelerator.run(accelerator.fitted(each)) for each in works)
            for what, one, other in (
                ("cycles", before.cycles, after.cycles),
                ("energy", before.total_energy_j, after.total_energy_j),
            ):
                risen = other.sum() > one.sum() * (1 + TOLERANCE)
                require(not risen, f"{what} rise from {one.sum()} to {other.sum()} from {large} to {small}")
        assume(tried)

    def _check_grown(
        self, grown: Callable[[Accelerator[Any]], Iterator[tuple[str, Accelerator[Any]]]], *, filled: bool = False
    ) -> None:
        """Whether an accelerator with more of something is never slower; `filled`: but for filling what there is more
        of, and whatever moves."""
        accelerator = self.make()
        larger = list(grown(accelerator))

        def check(rows: list[Workload]) -> None:
            works = _runnable(accelerator, rows)
            before = accelerator.run(works)
            for what, more in larger:
                reasons = [reason for reason in more.refusals(works) if reason]
                require(not reasons, f"{what}: a layer is refused that ran: {reasons}")
                after, limit = more.run(works), before.cycles
                if filled:
                    limit = limit + np.maximum(more.fill_cycles(works) - accelerator.fill_cycles(works), 0.0)
                elif "dram" in before.traffic:
                    most, moved = before.traffic["dram"].bits, after.traffic["dram"].bits
                    _never(works, moved > most * (1 + TOLERANCE), f"{what}: bits from {most} to {moved}")
                _never(works, after.cycles > limit * (1 + TOLERANCE), f"{what}: {after.cycles} cycles, not {limit}")

        self._try(self._rows(accelerator), check)


def _runnable(accelerator: Accelerator[Any], rows: list[Workload]) -> Workloads:
    """Those that are not refused, bits fitted."""
    works = Workloads.of(rows)
    works = works.take([reason is None for reason in accelerator.refusals(works)])
    assume(len(works) > 0)
    return accelerator.fitted(works)


def _columns(usage: Usage) -> dict[str, FloatArray]:
    """Every figure by what it is."""
    found = {"cycles": usage.cycles, "compute cycles": usage.compute_cycles, "utilisation": usage.utilisation}
    found |= {f"cycles of {name}": cycles for name, cycles in usage.memory_cycles.items()}
    found |= {f"energy of {name}": joules for name, joules in usage.energy_j.items()}
    for name, traffic in usage.traffic.items():
        found |= {f"traffic of {name}": traffic.bits, f"reads of {name}": traffic.read_bits}
        found[f"writes of {name}"] = traffic.written_bits
    return found


def _check_reasons(reasons: list[str | None], count: int) -> None:
    require(len(reasons) == count, f"{len(reasons)} answers for {count} layers")
    for reason in reasons:
        require(reason is None or (reason != "" and "\n" not in reason), f"a reason is one line: {reason!r}")


def _check_shapes(usage: Usage, count: int) -> None:
    for name, column in _columns(usage).items():
        require(np.shape(column) == (count,), f"{name}: shape {np.shape(column)} of {count} layers")
        require(bool(np.isfinite(column).all() and (column >= 0).all()), f"{name} is no amount: {column}")
    require(bool((usage.utilisation <= 1).all()), f"utilisation above 1: {usage.utilisation}")
    require(bool((usage.cycles > 0).all()), "a layer takes no time")


def _check_energies(accelerator: Accelerator[Any], usage: Usage) -> None:
    require(usage.traffic.keys() == usage.memory_cycles.keys(), "levels with traffic are not those with cycles")
    require(usage.traffic.keys() <= accelerator.memories.keys(), f"no such levels: {sorted(usage.traffic)}")
    require({COMPUTE, STATIC, *usage.traffic} <= usage.energy_j.keys(), f"energies only of {sorted(usage.energy_j)}")
    for name, traffic in usage.traffic.items():
        _equal(usage.energy_j[name], accelerator.memories[name].energy_j(traffic), f"energy of {name}")
    description = accelerator.description
    _equal(usage.energy_j[STATIC], description.static_power * usage.cycles / description.clock, "static energy")
    _equal(usage.total_energy_j, sum(usage.energy_j.values()), "energies together")


def _equal(one: Any, other: Any, what: str) -> None:
    require(np.allclose(one, other, rtol=TOLERANCE, atol=0.0), f"{what}: {one} and {other}")


def _never(works: Workloads, wrong: Any, what: str) -> None:
    """AssertionError that names the first layer of which `wrong` is true."""
    if np.any(wrong):
        raise AssertionError(f"{what}, of {_shown(works, int(np.flatnonzero(wrong)[0]))}")


def _shown(works: Workloads, row: int) -> str:
    """A layer by what is not usual about it."""
    usual = Workload()
    values = {each.name: getattr(works, each.name)[row].item() for each in fields(works)}
    return str({name: value for name, value in values.items() if value != getattr(usual, name)})


def _changed(accelerator: Accelerator[Any], **changes: Any) -> Accelerator[Any]:
    return type(accelerator)(accelerator.description.model_copy(update=changes), accelerator.technology)


def _faster_memories(accelerator: Accelerator[Any]) -> Iterator[tuple[str, Accelerator[Any]]]:
    sections = accelerator.description.memories
    for level, section in sections.items():
        for factor in (1.25, 8.0):
            faster = {
                key: Bandwidth(bandwidth.bits * factor, bandwidth.per_cycle)
                for key in ("bandwidth", "read_bandwidth", "write_bandwidth")
                if (bandwidth := getattr(section, key)) is not None
            }
            if faster:
                memories = {**sections, level: section.model_copy(update=faster)}
                yield f"{factor} times the bandwidth of {level}", _changed(accelerator, memories=memories)


def _larger_memories(accelerator: Accelerator[Any]) -> Iterator[tuple[str, Accelerator[Any]]]:
    sections = accelerator.description.memories
    for level, section in sections.items():
        for factor in (1.25, 8.0) if section.size is not None else ():
            larger = section.model_copy(update={"size": section.size * factor})
            memories = {**sections, level: larger}
            yield f"{factor} times the size of {level}", _changed(accelerator, memories=memories)


def _more_elements(accelerator: Accelerator[Any]) -> Iterator[tuple[str, Accelerator[Any]]]:
    for key in accelerator.elements:
        name, _, inner = key.partition(".")
        value = getattr(accelerator.description, name)
        for more in _more(getattr(value, inner) if inner else value):
            whole = value.model_copy(update={inner: more}) if inner else more
            yield f"{key} = {more}", _changed(accelerator, **{name: whole})


def _more(value: Any) -> list[Any]:
    """Larger numbers; of a mapping all of them."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        return [{key: number * 2 for key, number in value.items()}]
    return [value + 1, value * 2] if isinstance(value, int) else [value * 1.25, value * 2]
