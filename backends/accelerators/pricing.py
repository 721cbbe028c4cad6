"""What one network's policies cost on an accelerator, thousands a second: what a layer takes is computed once.

A layer is priced the first time that it is met in a shape, for every pair of bits that the hardware has; a policy is
then a look-up and a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
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
from backends.layer_prices import LEFT_OUT, Asked, LayerPrices
from search_spaces.blocks import residual_blocks
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import LayerSpec
from search_spaces.number_formats import MOST_BITS, NumberFormat
from search_spaces.policy import LayerPolicy


@dataclass(frozen=True)
class Totals:
    """What policies cost, arrays [policies], of one image; `by_layer` [policies, layers, 2] without attention."""

    latency_s: FloatArray
    energy_j: FloatArray
    by_layer: FloatArray


class PolicyPrices(LayerPrices):
    """Prices of one network's policies.

    Args:
        graph: the network; what it keeps, how it is treated and its resolution do not matter.
        accelerator: that it runs on.
        activation_densities: share of the values that a layer reads that are not zero, by layer, where it was measured.
    """

    def __init__(
        self, graph: ModelGraph, accelerator: Accelerator[Any], activation_densities: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(graph, 2)  # seconds and joules of an image
        self.accelerator = accelerator
        self._densities = dict(activation_densities or {})
        self._recurrent = steps_of(graph).keys()
        self._products: dict[tuple[int, ...], FloatArray] = {}
        self._products_shrink = _shrinking_products(graph)

    def price(self, kept: npt.ArrayLike, treatments: npt.ArrayLike, resolutions: npt.ArrayLike = 0) -> Totals:
        """What policies cost.

        Args:
            kept: units that each channel group keeps, [policies, groups].
            treatments: of each layer, see `treatment`, [policies, layers].
            resolutions: of each, see `ModelGraph.resolution_number`, [policies] or one for all.

        Raises:
            InputError: the hardware cannot run one of the layers.
        """
        costs = self.by_layer(kept, treatments, resolutions=resolutions)
        units, sizes = np.asarray(kept, dtype=np.int64), np.asarray(resolutions, dtype=np.int64)
        gone = np.asarray(treatments, dtype=np.int64) == LEFT_OUT
        totals = costs.sum(axis=1) + self._attention(units, sizes, gone)
        return Totals(totals[:, 0], totals[:, 1], costs)

    def alike(self, policy: LayerPolicy) -> list[LayerPolicy]:
        """Where a layer has nothing but bits, those of all other bits the hardware has: a table of them."""
        bits = LayerPolicy(weight_bits=policy.weight_bits, activation_bits=policy.activation_bits)
        if policy != bits or policy.weight_bits is None or policy.activation_bits is None:
            return []
        description = self.accelerator.description
        pairs = [(w, a) for w in description.weight_bits for a in description.activation_bits if max(w, a) <= MOST_BITS]
        return [LayerPolicy(weight_bits=w, activation_bits=a) for w, a in pairs if min(w, a) > 1]

    def figures(self, layers: Sequence[Asked]) -> list[list[FloatArray | str]]:
        """Seconds and joules of an image, each layer the sum of its parts; or why the hardware cannot run one."""
        rows: list[Workload] = []
        unfit: list[tuple[str, str | None]] = []  # of each row: its name, and why no size of it can run
        row_of: list[int] = []  # of each row under each policy; as those that follow
        slot_of: list[int] = []
        bits: list[tuple[int, int]] = []
        slots = 0  # layers under each policy
        for each in layers:
            more = [(policy.weight_bits or 0, policy.activation_bits or 0) for policy in each.policies[1:] if policy]
            for part, row in zip(each.parts, self.chain(each.parts), strict=True):
                row_of += [len(rows)] * len(each.policies)
                slot_of += range(slots, slots + len(each.policies))
                bits += [(row.weight_bits, row.activation_bits), *more]
                rows.append(row)
                unfit.append((part.name, self._unfit(part)))
            slots += len(each.policies)
        if not rows:
            return []
        weight_bits, activation_bits = np.array(bits).T
        works = Workloads.of(rows).take(row_of).replace(weight_bits=weight_bits, activation_bits=activation_bits)
        refused = {}
        for row_number, slot, reason in zip(row_of, slot_of, self.accelerator.refusals(works), strict=True):
            name, why = unfit[row_number]
            if why or reason:
                refused[slot] = f"{self.accelerator.description.title} cannot run layer {name!r}: {why or reason}"
        runs = ~np.isin(slot_of, list(refused))
        costs = np.zeros((slots, 2))
        np.add.at(costs, np.array(slot_of)[runs], self._costs_of(works.take(runs)))
        found = iter([refused.get(slot, cost) for slot, cost in enumerate(costs)])
        return [list(islice(found, len(each.policies))) for each in layers]

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
            steps=spec.positions if name in self._recurrent else 1,
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

    def _attention(self, units: IntArray, resolutions: IntArray, gone: npt.NDArray[np.bool_]) -> FloatArray:
        """Seconds and joules of the products of attention, [policies, 2] or [1, 2].

        Args:
            units: that each channel group keeps, [policies, groups].
            resolutions: of each, [policies] or one for all.
            gone: layers that go with their blocks, [policies, layers].
        """
        if self._products_shrink is None:
            return np.zeros((1, 2))
        shapes = units if self._products_shrink else units[:, :0]
        if gone.any():
            count = max(len(units), len(gone))
        else:
            count = len(units) if self._products_shrink or resolutions.ndim else 1  # the same for all
            gone = gone[:1]
        shapes = np.broadcast_to(shapes[:count], (count, shapes.shape[1]))
        gone = np.broadcast_to(gone, (count, gone.shape[1]))
        rows = []
        sizes = np.broadcast_to(resolutions, count).tolist()
        for kept, number, left_out in zip(shapes.tolist(), sizes, gone, strict=True):
            key = (*kept, number, left_out.tobytes())
            if key not in self._products:
                graph = self.graphs[number]
                if left_out.any():
                    names = {layer.name for layer, out in zip(graph.full_layers, left_out, strict=True) if out}
                    removed = tuple(each for each in residual_blocks(graph) if names.issuperset(each.layers))
                    graph = replace(graph, removed=removed)
                self._products[key] = self._priced_products(graph.with_kept(kept) if kept else graph)
            rows.append(self._products[key])
        return np.array(rows)

    def _priced_products(self, graph: ModelGraph) -> FloatArray:
        for reason in self.product_refusals(graph):
            raise InputError(f"{self.accelerator.description.title} cannot run {reason}")
        return np.asarray(sum(self._costs_of(works).sum(axis=0) for works in self.products(graph).values()))

    def product_refusals(self, graph: ModelGraph) -> list[str]:
        """Why the hardware cannot run products of attention of a network, a line for each that it cannot."""
        return [
            f"product {name!r}: {reason}"
            for name, works in self.products(graph).items()
            for reason in self.accelerator.refusals(works)
            if reason is not None
        ]


def unquantised(work: Workload, spec: LayerSpec, bits: int | None) -> Workload:
    """With the bits that a description gives to what is not quantised."""
    if bits is None:
        return work
    return replace(
        work,
        weight_bits=bits if spec.weight_format is None else work.weight_bits,
        activation_bits=bits if spec.activation_format is None else work.activation_bits,
    )


def _shrinking_products(graph: ModelGraph) -> bool | None:
    """Whether some product of attention depends on what is kept; None where there is none."""
    found = products_of(graph)
    if not found:
        return None
    least = products_of(graph.with_kept([1] * len(graph.groups)))
    return found != least
