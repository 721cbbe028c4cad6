"""HAQ's environment: bits of the weights and of the activations of each layer (Wang et al., CVPR 2019)."""

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from envs.bit_budget import ACTIVATIONS, DECIDED, RAW, WEIGHTS, BitBudget, BitPrice, IntArray
from envs.layerwise import Action, Evaluator, LayerwiseEnv, LayerwiseWalk, Observation, Revision, scalar, whole_number
from envs.observation import BitObservations
from envs.reward import accuracy_change, find_reward
from search_spaces.errors import InputError
from search_spaces.graph import ModelGraph
from search_spaces.layers import FLOAT32_BITS
from search_spaces.number_formats import MOST_BITS
from search_spaces.policy import CompressionPolicy, LayerPolicy

BITS = range(2, 9)
"""HAQ's on integer hardware."""


class MixedPrecisionWalk(LayerwiseWalk):
    """Two steps a layer: bits of its weights, then of what it reads; after the last one all are brought within budget.

    An action in [-1, 1] stands for one of the choices, each for an equal part of that range; in the discrete variant
    it is the number of a choice, the fewest bits first. A kind of bits with a single choice has no steps. The first
    and the last layer have the most bits that can be chosen, and no steps either, unless `ends` asks for them.

    Bits are lowered after the episode, so steps come to other bits than they took: `revised` tells the episode of an
    agent that had proposed the outcome.

    Args:
        graph: the network.
        price: of bits [policies, layers, 2], see `envs.bit_budget`; 32 stands for float32.
        limit: of the price.
        weight_bits, activation_bits: choices, None among them for float32; empty where all stay float32. (Under a
            budget that activations do not count in, the sweep lowers theirs as well: give them one choice.)
        ends: whether the first and the last layer are decided on like the others.
        layers: that are decided on, None for all; what is neither among them nor an end stays float32.
        discrete: whether actions are numbers of choices.
        step_code: whether the state tells the number of the step, too, one-hot after HAQ's features.
        faithful: as HAQ's code. The ends have steps, too, though the sweep overrules them, but keep what was proposed
            where that is within the budget as it stands; the input of the first is left float32, marked -1 and priced
            as 7 bits. A step has taken what was proposed, whatever the sweep made of it. For the state see
            `BitObservations`. (The code's first state also tells bits of the episode before; that is not kept.)

    Attributes:
        order: the layer and the kind (0 weights, 1 activations) that each step decides on.
        budget: that is kept.

    Raises:
        InputError: bits out of range, nothing to decide, or a budget that the lowest bits do not keep.
    """

    def __init__(
        self,
        graph: ModelGraph,
        price: BitPrice,
        limit: float,
        *,
        weight_bits: Sequence[int | None] = BITS,
        activation_bits: Sequence[int | None] = BITS,
        ends: bool = False,
        layers: Collection[str] | None = None,
        discrete: bool = False,
        step_code: bool = False,
        faithful: bool = False,
    ) -> None:
        self._graph = graph
        self._faithful = faithful
        self._discrete = discrete
        self._names = [layer.name for layer in graph.full_layers]
        self._decided = self._names if layers is None else layers
        self._choices = (_checked("weight_bits", weight_bits), _checked("activation_bits", activation_bits))
        fixed = self._fixed(ends)
        self.budget = BitBudget(price, limit, self._choices, fixed, faithful=faithful)
        walked = self._fixed(ends=True) if faithful else fixed
        self.order: list[tuple[int, int]] = [(int(layer), int(kind)) for layer, kind in np.argwhere(walked == DECIDED)]
        if not self.order:
            raise InputError("there is nothing to decide: give weight_bits or activation_bits more than one choice")
        self.steps = len(self.order)
        self._observations = BitObservations(graph.full_layers, self.steps if step_code else 0, faithful)
        self.observation_space = spaces.Box(0.0, self._observations.highest, (self._observations.size,), np.float32)
        self.action_space = (
            spaces.Discrete(max(map(len, self._choices))) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        )
        self.reset()

    def reset(self) -> Observation:
        """Start over with nothing decided: all bits at their most."""
        self._step = 0
        self._bits = self.budget.highest.copy()
        if self._faithful:
            for layer, kind in self.order:
                self._bits[layer, kind] = self._choices[kind][-1]
        return self._observe(0, self._bits)

    def step(self, action: Action | int) -> tuple[Observation, bool]:
        """Decide on the kind of bits whose turn it is.

        Raises:
            InputError: the walk has ended, or the action is none.
        """
        if self._step == self.steps:
            raise InputError("the walk has ended: reset it before the next step")
        layer, kind = self.order[self._step]
        number = self._number(action) if self._discrete else self.rounded(scalar(np.asarray(action)), kind)
        self._bits[layer, kind] = self._choices[kind][number]
        self._taken = np.array(action) if self._faithful else self.action(int(self._bits[layer, kind]), kind)
        self._step += 1
        if self._step < self.steps:
            return self._observe(self._step, self._bits), False
        last = self._observe(self.steps - 1, self._bits)
        self._bits = self.budget.meet(self._bits)
        return last, True

    def taken(self) -> Action:
        """The action in the middle of those that stand for the bits that the last step took, before the sweep."""
        return self._taken

    def revised(self) -> Revision | None:
        """The episode whose proposals are what the sweep left; None when `faithful`."""
        if self._faithful:
            return None
        steps = [*range(self.steps), self.steps - 1]
        observations = np.stack([self._observe(step, self._bits) for step in steps])
        actions = [self.action(int(self._bits[layer, kind]), kind) for layer, kind in self.order]
        return Revision(observations, np.stack(actions))

    def rounded(self, action: float, kind: int) -> int:
        """Number of the choice that an action in [-1, 1] stands for.

        Each choice has an equal part of the range; halves between two bitwidths are rounded to the even one, as in
        HAQ's code, which at the very ends of the range leaves the choices (half a bit is 0), and here does not.
        """
        choices = self._choices[kind]
        position = len(choices) * (action + 1.0) / 2.0 + (choices[0] - 0.5)
        return min(max(round(position) - choices[0], 0), len(choices) - 1)

    def action(self, bits: int, kind: int) -> Action:
        """The action that stands for bits: its number, or the middle of the part of the range that does."""
        number = self._choices[kind].index(bits)
        if self._discrete:
            return np.array(number)
        return np.array([2.0 * (number + 0.5) / len(self._choices[kind]) - 1.0], dtype=np.float32)

    def policy(self) -> CompressionPolicy:
        """Bits by layer, those of a finished walk within the budget."""
        layers = {}
        for name, (weights, activations) in zip(self._names, self._bits.tolist(), strict=True):
            layers[name] = LayerPolicy(weight_bits=_stored(weights), activation_bits=_stored(activations))
        return CompressionPolicy(layers, self._graph.digest)

    def bits(self) -> IntArray:
        """What is decided, [layers, 2]; what is to come at its most."""
        return self._bits.copy()

    def _observe(self, step: int, bits: IntArray) -> Observation:
        last = 1.0
        if step:
            layer, kind = self.order[step - 1]
            last = bits[layer, kind] / self._choices[kind][-1]
        layer, kind = self.order[step]
        return self._observations.observe(step, layer, kind == WEIGHTS, float(last))

    def _number(self, action: Action | int) -> int:
        number = whole_number(action, max(map(len, self._choices)))
        return min(number, len(self._choices[self.order[self._step][1]]) - 1)

    def _fixed(self, ends: bool) -> npt.NDArray[np.int64]:
        """Bits [layers, 2] that are not decided."""
        fixed = np.full((len(self._names), 2), DECIDED, dtype=np.int64)
        most = [choices[-1] for choices in self._choices]
        for kind, choices in enumerate(self._choices):
            if len(choices) == 1:
                fixed[:, kind] = choices[0]
        fixed[[name not in self._decided for name in self._names]] = FLOAT32_BITS
        if not ends:
            fixed[0] = most
            if self._faithful and most[ACTIVATIONS] != FLOAT32_BITS:
                fixed[0, ACTIVATIONS] = RAW
            fixed[-1] = most
        return fixed


class MixedPrecisionEnv(LayerwiseEnv):
    """Gymnasium environment "trimtab/MixedPrecision-v0": HAQ's search for the bits of each layer.

    HAQ's code rewards accuracy on the images that it has just trained on. What accuracy is here the evaluator says;
    `automl.make_env` gives one on held-out images, or when `faithful` one on training images.

    Args:
        graph: the uncompressed network.
        price: of bits.
        limit: of the price.
        evaluator: says what a policy is worth; called once an episode.
        reward: by name, see `envs.reward`; None for HAQ's.
        whole: accuracy of the uncompressed network, for HAQ's reward; None where the evaluator is to be asked.
        options: further arguments of `MixedPrecisionWalk`.

    Raises:
        InputError: what does not fit together, or a budget that cannot be met.
    """

    def __init__(
        self,
        graph: ModelGraph,
        price: BitPrice,
        limit: float,
        evaluator: Evaluator,
        reward: str | None = None,
        whole: float | None = None,
        **options: Any,
    ) -> None:
        walk = MixedPrecisionWalk(graph, price, limit, **options)
        if reward is not None:
            super().__init__(walk, evaluator, find_reward(reward))
            return
        whole = evaluator(CompressionPolicy(model=graph.digest)).accuracy if whole is None else whole
        super().__init__(walk, evaluator, accuracy_change(whole))


def _checked(name: str, choices: Sequence[int | None]) -> tuple[int, ...]:
    """Rising, with 32 for float32; that alone where there are none."""
    for bits in choices:
        if bits is not None and not (type(bits) is int and 1 <= bits <= MOST_BITS):
            raise InputError(f"{name} are whole numbers from 1 to {MOST_BITS}, or None for float32, got {bits!r}")
    return tuple(sorted({FLOAT32_BITS if bits is None else bits for bits in choices})) or (FLOAT32_BITS,)


def _stored(bits: int) -> int | None:
    """As a policy has them: None for float32, and for an input that is left as it is."""
    return None if bits in (FLOAT32_BITS, RAW) else bits
