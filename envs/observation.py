"""The state vectors that agents see of a layer (AMC, equation 1; HAQ, equations 1 and 2)."""

from collections.abc import Sequence
from math import prod

import numpy as np
import numpy.typing as npt

from search_spaces.layers import LayerSpec

FEATURES = ("t", "n", "c", "h", "w", "stride", "k", "FLOPs[t]", "reduced", "rest", "a[t-1]")
BIT_FEATURES = ("k", "c_in", "c_out", "s_kernel", "s_stride", "s_feat", "n_params", "i_dw", "i_w/a", "a[k-1]")
JOINT_FEATURES = (*FEATURES[:8], "n_params", "i_dw")


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
        static = np.array([self.describe(t, layers[index]) for t, index in enumerate(steps)], dtype=np.float64)
        self._static, _ = _normalised(static)
        self._codes = np.eye(len(steps)) if step_code else np.empty((len(steps), 0))
        self.size = len(FEATURES) + self._codes.shape[1]
        self._rest = [float(costs[index + 1 :].sum() / (costs.sum() or 1.0)) for index in steps]

    def observe(self, step: int, reduced: float, last_ratio: float) -> npt.NDArray[np.float32]:
        """State vector at a step, float32 [size]."""
        dynamic = (reduced, self._rest[step], last_ratio)
        state = np.concatenate((self._static[step], dynamic, self._codes[step]))
        return np.clip(state, 0.0, 1.0).astype(np.float32)

    @staticmethod
    def describe(t: int, layer: LayerSpec) -> tuple[float, ...]:
        """The first eight features of the layer at step t, before they are normalised."""
        height, width = (*layer.input_size, 1, 1)[:2]
        stride = layer.stride[0] if layer.stride else 0  # as in AMC's code, which tells linear layers apart by it
        kernel = layer.kernel[0] if layer.kernel else 1
        return (t, layer.out_channels, layer.in_channels, height, width, stride, kernel, layer.macs)


class BitObservations:
    """HAQ's ten features of the layer at each step (Wang et al. 2019, equations 1 and 2), in the paper's order.

    The first eight describe the layer: its number, channels read and given, kernel, stride, values of a channel that it
    reads (a linear layer: all that it reads), weights, whether it is depthwise. They are min-max normalised over all
    layers of the network. The last two say what is decided and what the step before came to: 1 for weights and 0 for
    activations; bits as a share of the most there are (1 at the first step). The number of the step may follow, as in
    `LayerObservations`.

    Args:
        layers: of the uncompressed network in execution order.
        steps: of an episode, where its one-hot number is to be appended; else 0.
        faithful: as HAQ's code: a feature that all layers share is left as it is, not 0; a layer of one input channel
            counts as depthwise; the ninth feature is 1 at the first step and for activations, 0 for other weights.

    Attributes:
        size: length of the state vector.
        highest: no feature is above it.
    """

    def __init__(self, layers: Sequence[LayerSpec], steps: int = 0, faithful: bool = False) -> None:
        described = np.array([self._describe(k, layer, faithful) for k, layer in enumerate(layers)], dtype=np.float64)
        self._static, same = _normalised(described)
        if faithful:
            self._static[:, same] = described[:, same]
        self._faithful = faithful
        self._codes = np.eye(steps)
        self.size = len(BIT_FEATURES) + steps
        self.highest = max(1.0, float(self._static.max()))

    def observe(self, step: int, layer: int, weights: bool, last: float) -> npt.NDArray[np.float32]:
        """State vector of a step, float32 [size].

        Args:
            step: its number.
            layer: that is decided on.
            weights: whether it is its weights that are.
            last: what the step before came to, in [0, 1].
        """
        flag = step == 0 or not weights if self._faithful else weights
        code = self._codes[step] if len(self._codes) else ()
        return np.concatenate((self._static[layer], (float(flag), last), code)).astype(np.float32)

    @staticmethod
    def _describe(k: int, layer: LayerSpec, faithful: bool) -> tuple[float, ...]:
        stride = layer.stride[0] if layer.stride else 0
        kernel = layer.kernel[0] if layer.kernel else 1
        read = prod(layer.input_size) if layer.input_size else layer.in_channels
        depthwise = bool(layer.kernel) and layer.in_channels == layer.groups if faithful else layer.depthwise
        return k, layer.in_channels, layer.out_channels, kernel, stride, read, layer.weights, depthwise


class JointObservations:
    """What is told of a layer, and of what is decided there, where everything is decided at once; in [0, 1].

    The first ten features describe the layer, as AMC's first eight do, with its weights and whether it is depthwise;
    they are min-max normalised over the steps. Then come, for each dimension of the action, what its last decision
    came to (1 at the first), and whether this step decides on it. The number of the step may follow, as in
    `LayerObservations`. No other feature depends on how many steps there are.

    Args:
        layers: of the uncompressed network in execution order.
        steps: index into `layers` of the layer that each step describes.
        used: whether each step decides on each dimension, [steps, dimensions].
        step_code: whether to append the one-hot number of the step.

    Attributes:
        size: length of the state vector.
    """

    def __init__(
        self, layers: Sequence[LayerSpec], steps: Sequence[int], used: npt.NDArray[np.bool_], step_code: bool = False
    ) -> None:
        described = [
            (*LayerObservations.describe(t, layer), layer.weights, layer.depthwise)
            for t, layer in enumerate(layers[index] for index in steps)
        ]
        static, _ = _normalised(np.array(described, dtype=np.float64))
        self._static = static
        self._used = used.astype(np.float64)
        self._codes = np.eye(len(steps)) if step_code else np.empty((len(steps), 0))
        self.size = len(JOINT_FEATURES) + 2 * used.shape[1] + self._codes.shape[1]

    def observe(self, steps: Sequence[int], last: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """States, float32 [states, size].

        Args:
            steps: their numbers.
            last: what the last decision of each dimension before each step came to, in [0, 1], [states, dimensions].
        """
        at = list(steps)
        return np.concatenate((self._static[at], last, self._used[at], self._codes[at]), axis=1).astype(np.float32)


def _normalised(features: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Each column from 0 to 1 over the rows; and which of them had no spread, and are 0."""
    low = features.min(axis=0)
    spread = features.max(axis=0) - low
    return (features - low) / np.where(spread > 0.0, spread, 1.0), spread == 0.0
