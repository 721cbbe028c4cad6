"""A found network as files that outlive the search: written once, digested, and verified in fresh processes."""

from automl.export.exporter import export_network

__all__ = ["export_network"]
