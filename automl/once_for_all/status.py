"""Where a supernet stands, read from its directory; nothing heavy is loaded."""

from dataclasses import asdict
from typing import Any

from automl.once_for_all.directory import SupernetDirectory
from automl.once_for_all.results import device_results
from automl.run.status import search_overview


def supernet_status(directory: SupernetDirectory) -> dict[str, Any]:
    """State, stage, training, samples, predictor and devices, JSON-ready."""
    info = directory.standing()
    predictor, samples = directory.predictor(), search_overview(directory)
    return {
        "directory": str(directory.path),
        "state": info.state,
        "stage": info.stage,
        "reason": info.reason,
        "driver": directory.driver_text,
        "wall_s": info.wall_s,
        "created_at": info.created_at,
        "epoch": next(iter(directory.training()[-1:]), None),
        "samples": {row["name"]: {key: row[key] for key in ("done", "evaluations")} for row in samples},
        "predictor": {key: value for key, value in predictor.items() if not isinstance(value, list)},
        "seconds": directory.seconds(),
        "devices": [asdict(each) for each in device_results(directory)],
    }
