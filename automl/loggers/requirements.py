"""Whether what a config's loggers need is installed."""

from importlib.util import find_spec

from automl.config_sections import LoggersSection
from automl.errors import InputError


def require_loggers(loggers: LoggersSection) -> None:
    """InputError where the package of a logger is missing, with the command that installs it."""
    for name, wanted in (("tensorboard", loggers.tensorboard), ("mlflow", loggers.mlflow is not None)):
        if wanted and find_spec(name) is None:
            raise InputError(
                f"loggers.{name} needs the package {name!r}, which is not installed: pip install 'trimtab[{name}]'"
            )
