"""The state vector that an agent sees of a layer (AMC, equation 1)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from search_spaces.layers import LayerSpec

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "FLOPs[t]", "reduced", "rest", "a[t-1]")


class LayerObservations:
    """AMC's eleven features of the layer at each step, in [0, 1].

    The first eight describe the layer and are min-max normalised over the steps (0 where all steps agree). The last
    three change as the walk goes on: the share of the network's cost that the steps so far removed, the share that
    the layers after this one have, and the keep ratio of the step before (1 at the first).

    Optionally the number of the step follows, one-hot. It is no part of AMC's state, but without it two layers of one
    shape are told apart by t / T alone, and an agent can hardly treat them differently.

    Args:
        layers: all layers of the uncompressed network in execution order.
        steps: index into `layers` of the layer that each step describes.
        costs: of each layer of the uncompressed network, in any unit, [layers]: what the shares are shares of.
        step_code: whether to append the one-hot number of the step.

    Attributes:
        size: length of the state vector.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        steps: Sequence[int],
        costs: npt.NDArray[np.float64],
        step_code: bool = False,
    ) -> None:
        static = np.array([self._describe(t, layers[index]) for t, index in enumerate(steps)], dtype=np.float64)
        low = static.min(axis=0)
        spread = static.max(axis=0) - low
        self._static = (static - low) / np.where(spread > 0.0, spread, 1.0)
        self._codes = np.eye(len(steps)) if step_code else np.empty((len(steps), 0))
        self.size = len(FEATURES) + self._codes.shape[1]
        self._rest = [float(costs[index + 1 :].sum() / (costs.sum() or 1.0)) for index in steps]

    def observe(self, step: int, reduced: float, last_ratio: float) -> npt.NDArray[np.float32]:
        """State vector at a step, float32 [size]."""
        dynamic = (reduced, self._rest[step], last_ratio)
        state = np.concatenate((self._static[step], dynamic, self._codes[step]))
        return np.clip(state, 0.0, 1.0).astype(np.float32)

    @staticmethod
    def _describe(t: int, layer: LayerSpec) -> tuple[float, ...]:
        height, width = (*layer.input_size, 1, 1)[:2]
        stride = layer.stride[0] if layer.stride else 0  # as in AMC's code, which tells linear layers apart by it
        kernel = layer.kernel[0] if layer.kernel else 1
        return (t, layer.out_channels, layer.in_channels, height, width, stride, kernel, layer.macs)
