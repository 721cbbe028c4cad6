"""What a network's policies cost where the whole is a sum over layers: each layer is computed once, a policy looked up.

A layer's figures depend on what is done to it and on how many channels it reads and gives. They are computed the first
time that a layer is met so; any number of policies is then a search in a sorted array and a sum.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from search_spaces.errors import InputError
from search_spaces.factorisations import factors
from search_spaces.graph import ModelGraph, formatted
from search_spaces.layers import Extent, LayerSpec
from search_spaces.policy import LayerPolicy

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

UNTREATED = 0
"""The treatment of a layer of which a policy says nothing."""
LEFT_OUT = 1
"""That of a layer that a policy removes."""


@dataclass(frozen=True)
class Asked:
    """A layer whose figures are to be computed.

    Attributes:
        parts: that it was taken apart into, under the first of the policies.
        policies: that its figures are asked of, None where nothing is done; the others differ from the first in bits.
    """

    parts: Sequence[LayerSpec]
    policies: Sequence[LayerPolicy | None]


class LayerPrices(ABC):
    """Figures of a network's layers under any policy.

    Args:
        graph: the network; what it keeps, how it is treated and its resolution do not matter.
        figures: how many there are of a layer.

    Attributes:
        graphs: the network at each resolution that is known, its own first.
    """

    def __init__(self, graph: ModelGraph, figures: int) -> None:
        self.graphs = [graph.at(sizes.resolution) for sizes in graph.resolutions] or [graph]
        self.graph = self.graphs[0]
        self._figures_of_a_layer = figures
        self._layers = self.graph.full_layers
        self._specs = [spec for each in self.graphs for spec in each.full_layers]
        self._treatments: dict[LayerPolicy | None, int] = {None: UNTREATED}
        self._policies: list[LayerPolicy | None] = [None, None]
        self._inputs, self._in_fixed = linear_forms([spec.in_extent for spec in self._layers], len(graph.groups))
        self._outputs, self._out_fixed = linear_forms([spec.out_extent for spec in self._layers], len(graph.groups))
        whole = np.array([group.width for group in graph.groups], dtype=np.int64)
        self._in_base = int((whole @ self._inputs + self._in_fixed).max(initial=0)) + 1
        self._out_base = int((whole @ self._outputs + self._out_fixed).max(initial=0)) + 1
        self._together: dict[int, IntArray] = {}  # treatments that are computed along with one, itself the first
        self._keys: IntArray = np.empty(0, dtype=np.int64)  # of all that is known, rising
        self._known: FloatArray = np.empty((0, figures))  # by key

    @abstractmethod
    def figures(self, layers: Sequence[Asked]) -> Sequence[Sequence[FloatArray | str]]:
        """The figures of layers under each policy that is asked of them; or why there are none, in a line."""

    def alike(self, policy: LayerPolicy) -> Sequence[LayerPolicy]:
        """Policies that are computed along with one, because they are likely to be asked for next; they differ from it
        in bits alone."""
        return ()

    def treatment(self, policy: LayerPolicy | None) -> int:
        """The number of a treatment, which `by_layer` takes; of its channels nothing counts.

        Args:
            policy: None where nothing is done to the layer.
        """
        treated = None if policy is None or not policy.treats else replace(policy, keep=None)
        if treated not in self._treatments:
            self._treatments[treated] = len(self._policies)
            self._policies.append(treated)
        return self._treatments[treated]

    def policy(self, number: int) -> LayerPolicy | None:
        """The treatment of a number."""
        return self._policies[number]

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

    def by_layer(
        self,
        kept: npt.ArrayLike,
        treatments: npt.ArrayLike,
        layers: Sequence[int] | None = None,
        resolutions: npt.ArrayLike = 0,
    ) -> FloatArray:
        """Figures of every layer, [policies, layers, figures].

        Args:
            kept: units that each channel group keeps, [policies, groups].
            treatments: of each layer, see `treatment`, [policies, layers].
            layers: numbers of those that are asked for; all of them by default.
            resolutions: of each policy, see `ModelGraph.resolution_number`, [policies] or one for all.

        Raises:
            InputError: one of the layers has none.
        """
        which = np.arange(len(self._layers)) if layers is None else np.asarray(layers, dtype=np.int64)
        units, treated = np.asarray(kept, dtype=np.int64), np.asarray(treatments, dtype=np.int64)[:, which]
        inputs = units @ self._inputs[:, which] + self._in_fixed[which]
        outputs = units @ self._outputs[:, which] + self._out_fixed[which]
        specs = np.asarray(resolutions, dtype=np.int64).reshape(-1, 1) * len(self._layers) + which
        keys = ((treated * len(self._specs) + specs) * self._in_base + inputs) * self._out_base + outputs
        places = self._places(keys)
        if places is None:
            self._learn(keys, units, treated, np.broadcast_to(specs, keys.shape))
            places = self._places(keys)
            if places is None:  # what was learnt is known
                raise AssertionError("a layer is not known that was priced")
        found: FloatArray = self._known[places]
        return found

    def _places(self, keys: IntArray) -> IntArray | None:
        """Rows of the costs; None where one is not known."""
        if not len(self._keys):
            return None if keys.size else keys
        places = np.searchsorted(self._keys, keys)
        np.minimum(places, len(self._keys) - 1, out=places)
        return places if np.array_equal(self._keys[places], keys) else None

    def _learn(self, keys: IntArray, units: IntArray, treated: IntArray, specs: IntArray) -> None:
        """Computes what is missing, all of it in one go; arguments [policies, layers], units [policies, groups]."""
        flat = keys.ravel()
        unknown = np.flatnonzero(~np.isin(flat, self._keys))
        missing, first = np.unique(flat[unknown], return_index=True)
        found: dict[int, FloatArray] = {}
        asked: list[Asked] = []
        keys_of: list[list[int]] = []
        seen: set[int] = set()
        for key, place in zip(missing.tolist(), unknown[first].tolist(), strict=True):
            policy, number = place // keys.shape[1], int(treated.flat[place])
            if number == LEFT_OUT:
                found[key] = np.zeros(self._figures_of_a_layer)
            elif key not in seen:  # of two layers alike each may ask for the other's bits, too
                together = self._computed_with(number)
                parts = _parts(self._specs[int(specs.flat[place])], self._policies[number], units[policy].tolist())
                asked.append(Asked(parts, [self._policies[each] for each in together]))
                keys_of.append((key + (together - number) * len(self._specs) * self._in_base * self._out_base).tolist())
                seen.update(keys_of[-1])
        wanted = set(missing.tolist())
        for shape_keys, rows in zip(keys_of, self.figures(asked), strict=True):
            for key, figures in zip(shape_keys, rows, strict=True):
                if not isinstance(figures, str):
                    found[key] = figures
                elif key in wanted:
                    raise InputError(figures)
        self._remember(np.array(list(found), dtype=np.int64), np.array(list(found.values())))

    def _remember(self, keys: IntArray, figures: FloatArray) -> None:
        new = ~np.isin(keys, self._keys)
        every = np.concatenate([self._keys, keys[new]])
        order = np.argsort(every, kind="stable")
        self._keys, self._known = every[order], np.concatenate([self._known, figures[new]])[order]

    def _computed_with(self, number: int) -> IntArray:
        """Treatments that are computed along with one, itself the first."""
        if number not in self._together:
            policy = self._policies[number]
            others = {} if policy is None else dict.fromkeys(map(self.treatment, self.alike(policy)))
            others.pop(number, None)
            self._together[number] = np.array([number, *others])
        return self._together[number]


def _parts(spec: LayerSpec, policy: LayerPolicy | None, kept: Sequence[int]) -> list[LayerSpec]:
    """A layer after a policy, as what it is taken apart into."""
    spec = formatted(spec, policy)
    parts = factors(spec, *policy.factors) if policy is not None and policy.factors is not None else (spec,)
    return [part.shrunk(kept) for part in parts]


def linear_forms(extents: Sequence[Extent], groups: int) -> tuple[IntArray, IntArray]:
    """Sizes as a linear form in the units kept: a matrix [groups, layers] and what is added."""
    matrix = np.zeros((groups, len(extents)), dtype=np.int64)
    for column, extent in enumerate(extents):
        for group, entries in extent.terms:
            matrix[group, column] += entries
    return matrix, np.array([extent.fixed for extent in extents], dtype=np.int64)
