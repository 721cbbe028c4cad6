"""Where a supernet stands, read from its directory; nothing heavy is loaded."""

from dataclasses import asdict
from typing import Any

from automl.once_for_all.directory import SupernetDirectory
from automl.once_for_all.results import device_results
from automl.run.status import search_overview


def supernet_status(directory: SupernetDirectory) -> dict[str, Any]:
    """State, stage, training, samples, predictor and devices, JSON-ready.

    One that says it is running while nobody drives it was killed: it is unfinished.
    """
    info = directory.info()
    state, reason = info.state, info.reason
    if state == "running" and not directory.driven():
        state, reason = "unfinished", f"killed; `trimtab supernet {directory.path} --resume` goes on"
    predictor, samples = directory.predictor(), search_overview(directory)
    return {
        "directory": str(directory.path),
        "state": state,
        "stage": info.stage,
        "reason": reason,
        "wall_s": info.wall_s,
        "created_at": info.created_at,
        "epoch": next(iter(directory.training()[-1:]), None),
        "samples": {row["name"]: {key: row[key] for key in ("done", "evaluations")} for row in samples},
        "predictor": {key: value for key, value in predictor.items() if not isinstance(value, list)},
        "seconds": directory.seconds(),
        "devices": [asdict(each) for each in device_results(directory)],
    }
