"""The sub-networks that a run's searches learn from before they evaluate any: those that stand beside its supernet."""

from pathlib import Path

from automl.config import Config
from automl.predictors.samples import FILE, Sample, read_samples, write_samples


def known_samples(config: Config, model: str, kept: Path | None = None) -> list[Sample]:
    """Those of the directory that the supernet is from, as they were when they were first kept; else none.

    Sub-networks that predictors are judged by are left out.

    Args:
        config: of the run.
        model: digest of the network.
        kept: the run's own copy, which is made here, so that a resumed run knows what it knew; None before there is a
            run.

    Raises:
        InputError: the file is damaged, or is of another network or version.
    """
    if config.search.algorithm != "once_for_all":
        return []
    if kept is not None and kept.exists():
        found = read_samples(kept, model)
    else:
        found = _beside_supernet(config, model)
        if kept is not None:
            write_samples(kept, model, found)
    return [each for each in found if not each.held_out]


def _beside_supernet(config: Config, model: str) -> list[Sample]:
    if config.supernet is None or config.supernet.checkpoint is None:
        return []
    file = Path(config.supernet.checkpoint) / FILE
    return read_samples(file, model) if file.exists() else []
