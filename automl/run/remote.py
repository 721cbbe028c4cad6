"""Remote devices that a run is to be measured on: whether they are there, before hours of work rest on them."""

from automl.config_sections import MeasureSection
from backends.remote.fleet import Fleet


def require_devices(measure: MeasureSection) -> None:
    """See that there is what the config names; it takes an instant.

    Raises:
        InputError: the config is at fault: of the tracker, the kind of device, or its processor.
        TrimtabError: the tracker does not answer.
    """
    if measure.remote is not None:
        with Fleet(measure.remote, measure.threads) as fleet:
            fleet.require()


def check_devices(measure: MeasureSection) -> None:
    """See that one of the devices answers, has this TVM, and computes as it should; TrimtabError where none does."""
    if measure.remote is not None:
        with Fleet(measure.remote, measure.threads) as fleet:
            fleet.check()
