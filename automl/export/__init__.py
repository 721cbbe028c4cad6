"""A found network as files that outlive the search: written once, digested, and verified in fresh processes.

`export_network` is loaded when first used: a verification's processes and the report need only parts of this.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from automl.export.exporter import export_network

__all__ = ["export_network"]


def __getattr__(name: str) -> Any:
    if name != "export_network":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from automl.export.exporter import export_network

    return export_network
