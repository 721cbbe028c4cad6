"""What every agent is to a search: it acts step by step, learns from episodes, and its state is plain arrays."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from automl.evaluation import one_thread
from automl.searchers.agent_options import AgentOptions
from automl.searchers.base import State
from envs.layerwise import Revision
from search_spaces.errors import InputError

FloatArray = npt.NDArray[np.float32]
Arrays = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Episode:
    """What an asked episode saw and did.

    Attributes:
        observations: float32 [steps + 1, features], the state after the last step included.
        actions: float32 [steps, actions], as proposed.
        taken: the same after bounding and rounding.
        notes: float32 [steps, n], what the agent wants to know again when it learns from the episode.
    """

    observations: FloatArray
    actions: FloatArray
    taken: FloatArray
    notes: FloatArray

    @classmethod
    def of(cls, arrays: Arrays) -> Self:
        """The episode of `arrays`."""
        return cls(**{field.name: np.asarray(arrays[field.name]) for field in fields(cls)})

    def arrays(self, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
        """Its arrays, whose names begin so."""
        return {f"{prefix}{field.name}": getattr(self, field.name) for field in fields(self)}


class Agent(ABC):
    """An algorithm of stable-baselines3 as a search needs it; mixed into the library's class.

    Attributes:
        NETWORKS: attributes that are networks.
        options: hyperparameters.
        generator: of everything random.
        begun: whether it began with what an agent had learnt elsewhere.
    """

    NETWORKS: ClassVar[tuple[str, ...]]
    options: AgentOptions
    generator: np.random.Generator
    begun: bool = False

    @abstractmethod
    def act(self, observation: FloatArray, episode: int, widen: float) -> tuple[FloatArray, FloatArray]:
        """An action to take.

        Args:
            observation: float32 [features].
            episode: its number, from 0.
            widen: factor of the noise.

        Returns:
            The action, float32 [actions], and the notes of the step, float32 [n].
        """

    def revise(self, episode: Episode, revised: Revision) -> Episode:
        """The episode as it is learnt from, where the end of its walk changed earlier steps; by default as it was."""
        return episode

    @abstractmethod
    def learn_from(self, episode: Episode, reward: float, number: int) -> None:
        """Take in what the episode of that number was worth, and train where it is time to."""

    @abstractmethod
    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """All of them, by name."""

    def state(self) -> State:
        """Networks, moments and the generator."""
        arrays: dict[str, np.ndarray[Any, Any]] = {}
        for name in self.NETWORKS:
            module: nn.Module = getattr(self, name)
            for key, tensor in module.state_dict().items():
                arrays[f"{name}/{key}"] = tensor.numpy().copy()
        for name, optimizer in self.optimizers().items():
            for index, moments in optimizer.state_dict()["state"].items():
                for key, moment in moments.items():
                    arrays[f"{name}_adam/{index}/{key}"] = moment.numpy().copy()
        values = {"generator": self.generator.bit_generator.state, "updates": self._n_updates, "begun": self.begun}
        return arrays, values

    def restore(self, arrays: Arrays, values: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        for name in self.NETWORKS:
            _load(getattr(self, name), under(arrays, f"{name}/"))
        for name, optimizer in self.optimizers().items():
            moments: dict[int, dict[str, torch.Tensor]] = {}
            for key, array in under(arrays, f"{name}_adam/").items():
                index, moment = key.split("/")
                moments.setdefault(int(index), {})[moment] = torch.tensor(array)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        self.generator.bit_generator.state = values["generator"]
        self._n_updates = int(values["updates"])
        self.begun = bool(values["begun"])

    def begin_with(self, arrays: Arrays) -> None:
        """Take over the networks of an agent that was trained elsewhere, and nothing else of it.

        Args:
            arrays: of its `state`.

        Raises:
            InputError: its networks have other shapes, or weights that are no numbers.
        """
        for name in self.NETWORKS:
            module: nn.Module = getattr(self, name)
            mine = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
            theirs = under(arrays, f"{name}/")
            for key in sorted(mine.keys() | theirs.keys()):
                if key not in mine or key not in theirs or mine[key] != theirs[key].shape:
                    found, needed = list(theirs[key].shape) if key in theirs else None, list(mine.get(key, ())) or None
                    raise InputError(
                        f"the agent to begin with has {name}/{key} of shape {found}, this search needs {needed}; take "
                        "one of as many hidden units, and for another network one that was trained with "
                        "search.options.step_code false, as this one then is, too"
                    )
                if not np.isfinite(theirs[key]).all():
                    raise InputError(f"the agent to begin with is damaged: {name}/{key} is not finite everywhere")
            _load(module, theirs)
        self.begun = True

    _n_updates: int

    @contextmanager
    def randomness(self) -> Iterator[None]:
        """What the library draws from torch's global generator comes from ours, and that one stays as it is."""
        with torch.random.fork_rng(devices=[]), one_thread():
            torch.default_generator.manual_seed(int(self.generator.integers(2**63)))
            yield


def under(arrays: Arrays, prefix: str) -> dict[str, np.ndarray[Any, Any]]:
    """Those whose names begin so, by the rest of their names."""
    return {key[len(prefix) :]: array for key, array in arrays.items() if key.startswith(prefix)}


def _load(module: nn.Module, arrays: Arrays) -> None:
    module.load_state_dict({key: torch.tensor(array) for key, array in arrays.items()})
