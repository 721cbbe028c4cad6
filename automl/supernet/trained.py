"""Supernets that were trained before: cached by the digest of what made them."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from automl.cache import atomic_path, cache_dir, digest_of
from automl.compression.elastic import Elastic
from automl.config_sections import SupernetSection
from automl.data.bundle import DataBundle
from automl.metrics import Metric, accuracy
from automl.supernet.checkpoint import to_bytes
from automl.supernet.network import Supernet, elastic_space
from automl.supernet.training import Rank, SupernetReport, train_supernet
from automl.training_state import TrainingState
from search_spaces.capture import PrunableNetwork
from search_spaces.space import SearchSpace


def supernet_file(
    teacher: str, importance: str, space: SearchSpace, data: DataBundle, section: SupernetSection
) -> Path:
    """Where the cache keeps the supernet that these give.

    Args:
        teacher: what tells the largest network and its weights apart from others.
        importance: by what channels are sorted.
        space: of the search.
        data: trained on.
        section: how.
    """
    how = section.model_dump(exclude={"checkpoint", "controls", "predictor"})
    del how["training"]["workers"]  # changes the speed, not the result
    recipe = {
        "teacher": teacher,
        "importance": importance,
        "model": space.graph.digest,
        "space": [asdict(each) for each in elastic_space(space).decisions],
        "data": data.digest,
        "how": how,
        "torch": torch.__version__,
    }
    return cache_dir("supernets") / f"{data.name.replace(':', '_')}-{digest_of(recipe)[:16]}.safetensors"


def train_to_file(
    file: Path,
    network: PrunableNetwork,
    teacher: nn.Module,
    space: SearchSpace,
    data: DataBundle,
    section: SupernetSection,
    rank: Rank,
    *,
    metric: Metric = accuracy,
    on_epoch: Callable[[SupernetReport], None] | None = None,
    train: Callable[..., None] = train_supernet,
) -> Supernet:
    """A supernet, trained from where an earlier training of it was killed, and kept in a file.

    Args:
        file: see `supernet_file`.
        network: as captured, with the teacher's weights.
        teacher: the largest network, trained.
        space: what sub-networks differ in.
        data: to train on.
        section: how.
        rank: orders channels.
        metric: of the sub-networks that are looked at.
        on_epoch: told of every epoch.
        train: `train_supernet`, or what does the same in parallel.

    Raises:
        InputError: the section does not fit the space.
        TrimtabError: training diverged.
    """
    supernet = Supernet(network, space, Elastic(rank(network)))
    state = TrainingState(file.with_suffix(".training.pt"), file.stem)
    train(supernet, teacher, data, section, rank, metric=metric, state=state, on_epoch=on_epoch)
    with atomic_path(file) as temporary:
        temporary.write_bytes(to_bytes(supernet))
    state.forget()
    return supernet
