"""What one network's policies cost on an accelerator, thousands a second: what a layer takes is computed once.

A layer is priced the first time that it is met in a shape, for every pair of bits that the hardware has; a policy is
then a look-up and a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.accelerators.accelerator import Accelerator
from backends.accelerators.workloads import (
    FloatArray,
    IntArray,
    Workload,
    Workloads,
    of_layer,
    products_of,
    steps_of,
)
from search_spaces.errors import InputError
from search_spaces.factorisations import factors
from search_spaces.graph import ModelGraph
from search_spaces.layers import Extent, LayerSpec
from search_spaces.number_formats import NumberFormat
from search_spaces.policy import LayerPolicy

UNTREATED = 0
"""The treatment of a layer of which a policy says nothing."""
LEFT_OUT = 1
"""That of a layer that a policy removes."""


Asked = tuple[int, list[LayerSpec]]
"""The key of a layer, and what it is taken apart into."""


@dataclass(frozen=True)
class Totals:
    """What policies cost, arrays [policies], of one image."""

    latency_s: FloatArray
    energy_j: FloatArray


class PolicyPrices:
    """Prices of one network's policies.

    Args:
        graph: the network; what it keeps and how it is treated do not matter.
        accelerator: that it runs on.
        activation_densities: share of the values that a layer reads that are not zero, by layer, where it was measured.
    """

    def __init__(
        self, graph: ModelGraph, accelerator: Accelerator[Any], activation_densities: Mapping[str, float] | None = None
    ) -> None:
        self.accelerator = accelerator
        self._graph = graph
        self._densities = dict(activation_densities or {})
        self._steps = steps_of(graph)
        self._layers = graph.full_layers
        self._treatments: dict[LayerPolicy | None, int] = {None: UNTREATED}
        self._policies: list[LayerPolicy | None] = [None, None]
        self._inputs, self._in_fixed = _forms([spec.in_extent for spec in self._layers], len(graph.groups))
        self._outputs, self._out_fixed = _forms([spec.out_extent for spec in self._layers], len(graph.groups))
        whole = np.array([group.width for group in graph.groups], dtype=np.int64)
        self._in_base = int((whole @ self._inputs + self._in_fixed).max(initial=0)) + 1
        self._out_base = int((whole @ self._outputs + self._out_fixed).max(initial=0)) + 1
        self._keys: IntArray = np.empty(0, dtype=np.int64)  # of all that is known, rising
        self._costs: FloatArray = np.empty((0, 2))  # seconds and joules of an image, by key
        self._products: dict[tuple[int, ...], FloatArray] = {}
        self._product_extents = _shrinking_products(graph)

    def treatment(self, policy: LayerPolicy | None) -> int:
        """The number of a treatment, which `price` takes; of its channels nothing counts.

        Args:
            policy: None where nothing is done to the layer.
        """
        treated = None if policy is None or not policy.treats else replace(policy, keep=None)
        if treated not in self._treatments:
            self._treatments[treated] = len(self._policies)
            self._policies.append(treated)
        return self._treatments[treated]

    def treatments(self, graph: ModelGraph) -> IntArray:
        """Those of the layers of a network after a policy, [layers]."""
        treated = dict(graph.treatments)
        gone = {layer for block in graph.removed for layer in block.layers}
        return np.array(
            [
                LEFT_OUT if spec.name in gone else self.treatment(treated.get(spec.name)) if treated else UNTREATED
                for spec in self._layers
            ],
            dtype=np.int64,
        )

    def price(self, kept: npt.ArrayLike, treatments: npt.ArrayLike) -> Totals:
        """What policies cost.

        Args:
            kept: units that each channel group keeps, [policies, groups].
            treatments: of each layer, see `treatment`, [policies, layers].

        Raises:
            InputError: the hardware cannot run one of the layers.
        """
        costs = self.by_layer(kept, treatments)
        totals = costs.sum(axis=1) + self._attention(np.asarray(kept, dtype=np.int64))
        return Totals(totals[:, 0], totals[:, 1])

    def by_layer(self, kept: npt.ArrayLike, treatments: npt.ArrayLike) -> FloatArray:
        """Seconds and joules of an image, [policies, layers, 2]; arguments as of `price`."""
        units, treated = np.asarray(kept, dtype=np.int64), np.asarray(treatments, dtype=np.int64)
        inputs, outputs = units @ self._inputs + self._in_fixed, units @ self._outputs + self._out_fixed
        layers = np.arange(len(self._layers))
        keys = ((treated * len(self._layers) + layers) * self._in_base + inputs) * self._out_base + outputs
        places = self._places(keys)
        if places is None:
            self._learn(keys, units, treated)
            places = self._places(keys)
            if places is None:  # what was learnt is known
                raise AssertionError("a layer is not known that was priced")
        found: FloatArray = self._costs[places]
        return found

    def _places(self, keys: IntArray) -> IntArray | None:
        """Rows of the costs; None where one is not known."""
        if not len(self._keys):
            return None
        places = np.searchsorted(self._keys, keys)
        np.minimum(places, len(self._keys) - 1, out=places)
        return places if np.array_equal(self._keys[places], keys) else None

    def _learn(self, keys: IntArray, units: IntArray, treated: IntArray) -> None:
        """Computes what is missing, all of it in one go."""
        flat = keys.ravel()
        missing, first = np.unique(flat[~np.isin(flat, self._keys)], return_index=True)
        where = np.flatnonzero(~np.isin(flat, self._keys))[first]
        found: dict[int, FloatArray] = {}
        asked: dict[int, list[LayerSpec]] = {}  # of two layers alike each may ask for the other's bits, too
        for key, place in zip(missing.tolist(), where.tolist(), strict=True):
            policy, layer = divmod(place, len(self._layers))
            number = int(treated[policy, layer])
            if number == LEFT_OUT:
                found[key] = np.zeros(2)
                continue
            kept = units[policy].tolist()
            for also in self._alike(number):
                shape_key = key + (also - number) * len(self._layers) * self._in_base * self._out_base
                if shape_key not in asked:
                    asked[shape_key] = _parts(self._layers[layer], self._policies[also], kept)
        self._run(list(asked.items()), found, set(missing.tolist()))
        for key in self._keys.tolist():
            found.pop(key, None)
        every = np.concatenate([self._keys, np.array(list(found), dtype=np.int64)])
        costs = np.concatenate([self._costs, np.array(list(found.values())).reshape(-1, 2)])
        order = np.argsort(every)
        self._keys, self._costs = every[order], costs[order]

    def _alike(self, number: int) -> list[int]:
        """A treatment, and where it is of bits alone those of all other bits the hardware has: a table of them."""
        policy = self._policies[number]
        if policy is None or policy.weight_format is None or policy.activation_format is None:
            return [number]
        if policy != LayerPolicy(weight_bits=policy.weight_bits, activation_bits=policy.activation_bits):
            return [number]
        description = self.accelerator.description
        pairs = [(w, a) for w in description.weight_bits for a in description.activation_bits if max(w, a) <= 16]
        others = [LayerPolicy(weight_bits=w, activation_bits=a) for w, a in pairs if min(w, a) > 1]
        return sorted({number, *(self.treatment(other) for other in others)})

    def _run(
        self, asked: Sequence[tuple[int, list[LayerSpec]]], found: dict[int, FloatArray], wanted: set[int]
    ) -> None:
        """Prices layers, each as its parts. What was asked for is refused where it cannot run; the rest is left out."""
        specs = [(key, spec) for key, parts in asked for spec in parts]
        if not specs:
            return
        works = Workloads.of(row for _, parts in asked for row in self.chain(parts))
        reasons = [*map(self._unfit, (spec for _, spec in specs))]
        for index, reason in enumerate(self.accelerator.refusals(works)):
            reasons[index] = reasons[index] or reason
        refused = set()
        for (key, spec), reason in zip(specs, reasons, strict=True):
            if reason is not None:
                if key in wanted:
                    raise InputError(f"{self.accelerator.description.title} cannot run layer {spec.name!r}: {reason}")
                refused.add(key)
        runnable = [index for index, (key, _) in enumerate(specs) if key not in refused]
        costs = self._costs_of(works.take(runnable))
        for index, cost in zip(runnable, costs, strict=True):
            key = specs[index][0]
            found[key] = found.get(key, 0.0) + cost

    def _costs_of(self, works: Workloads) -> FloatArray:
        """Seconds and joules of an image, [N, 2]."""
        if not len(works):
            return np.empty((0, 2))
        usage = self.accelerator.run(self.accelerator.fitted(works))
        description = self.accelerator.description
        seconds = usage.cycles / description.clock
        return np.asarray(np.stack([seconds, usage.total_energy_j], axis=1) / description.batch)

    def workload(self, spec: LayerSpec) -> Workload:
        """A layer as the accelerator gets it, bits of what is not quantised included."""
        description = self.accelerator.description
        name = spec.name
        found = of_layer(
            spec,
            description.batch,
            steps=self._steps.get(name, 1),
            activation_density=self._densities.get(name, description.activation_density),
        )
        return unquantised(found, spec, description.unquantised_bits)

    def chain(self, parts: Sequence[LayerSpec]) -> list[Workload]:
        """A layer as the accelerator gets it, or what it was taken apart into, in order."""
        last = len(parts) - 1
        rows = map(self.workload, parts)
        return [replace(row, reads_part=int(at > 0), feeds_part=int(at < last)) for at, row in enumerate(rows)]

    def refusal(self, spec: LayerSpec) -> str | None:
        """Why the hardware cannot run a layer as it stands after a policy, None where it can."""
        reason = self._unfit(spec) or self.accelerator.refusals(Workloads.of([self.workload(spec)]))[0]
        return None if reason is None else f"layer {spec.name!r}: {reason}"

    def _unfit(self, spec: LayerSpec) -> str | None:
        """Why no accelerator of the description's kind can run a layer, whatever its size."""
        if len(spec.kernel) > 2:
            return f"a convolution over {len(spec.kernel)} dimensions is not modelled"
        description = self.accelerator.description
        of_weights = description.weight_schemes or description.schemes
        for what, numbers, schemes in (
            ("weights", spec.weight_format, of_weights),
            ("activations", spec.activation_format, description.schemes),
        ):
            if isinstance(numbers, NumberFormat) and numbers.scheme not in schemes:
                return f"{what} of the scheme {numbers.scheme!r}; the hardware takes {', '.join(schemes)}"
        return None

    def products(self, graph: ModelGraph) -> dict[str, Workloads]:
        """The products of attention in a network, by operator, as the accelerator gets them."""
        description = self.accelerator.description
        bits = description.unquantised_bits or 32
        return {
            name: Workloads.of(rows).replace(batch=description.batch, weight_bits=bits, activation_bits=bits)
            for name, rows in products_of(graph).items()
        }

    def _attention(self, units: IntArray) -> FloatArray:
        """Seconds and joules of the products of attention, [policies, 2] or [1, 2]."""
        if self._product_extents is None:
            return np.zeros((1, 2))
        shapes = units if self._product_extents else units[:1] * 0
        rows = []
        for kept in map(tuple, shapes.tolist()):
            if kept not in self._products:
                graph = self._graph.with_kept(kept) if self._product_extents else self._graph
                self._products[kept] = self._priced_products(graph)
            rows.append(self._products[kept])
        return np.array(rows)

    def _priced_products(self, graph: ModelGraph) -> FloatArray:
        total = np.zeros(2)
        for name, works in self.products(graph).items():
            for reason in self.accelerator.refusals(works):
                if reason is not None:
                    raise InputError(f"{self.accelerator.description.title} cannot run the product {name!r}: {reason}")
            total += self._costs_of(works).sum(axis=0)
        return total


def unquantised(work: Workload, spec: LayerSpec, bits: int | None) -> Workload:
    """With the bits that a description gives to what is not quantised."""
    if bits is None:
        return work
    return replace(
        work,
        weight_bits=bits if spec.weight_format is None else work.weight_bits,
        activation_bits=bits if spec.activation_format is None else work.activation_bits,
    )


def _parts(spec: LayerSpec, policy: LayerPolicy | None, kept: Sequence[int]) -> list[LayerSpec]:
    """A layer after a policy, as what it is taken apart into."""
    if policy is not None:
        spec = replace(
            spec,
            sparsity=policy.zeros,
            weight_format=policy.weight_format,
            activation_format=policy.activation_format,
        )
    parts = factors(spec, *policy.factors) if policy is not None and policy.factors is not None else (spec,)
    return [part.shrunk(kept) for part in parts]


def _forms(extents: Sequence[Extent], groups: int) -> tuple[IntArray, IntArray]:
    """Sizes as a linear form in the units kept: a matrix [groups, layers] and what is added."""
    matrix = np.zeros((groups, len(extents)), dtype=np.int64)
    for column, extent in enumerate(extents):
        for group, entries in extent.terms:
            matrix[group, column] += entries
    return matrix, np.array([extent.fixed for extent in extents], dtype=np.int64)


def _shrinking_products(graph: ModelGraph) -> bool | None:
    """Whether some product of attention depends on what is kept; None where there is none."""
    found = products_of(graph)
    if not found:
        return None
    least = products_of(graph.with_kept([1] * len(graph.groups)))
    return found != least
