"""Where else than in the run directory the figures of a run go: TensorBoard, MLflow.

The record of the run is the only source. A thread of the driver reads what is new there, and no logger is waited for,
so none can hold up or end a search.
"""

from automl.loggers.recorder import logged
from automl.loggers.requirements import require_loggers

__all__ = ["logged", "require_loggers"]
