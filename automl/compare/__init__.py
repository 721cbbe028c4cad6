"""Search algorithms compared over the runs that tried them (`trimtab compare`, docs/comparing.md)."""

from automl.compare.comparison import Comparison, compare, compare_apart, write_figures
from automl.compare.picture import write_comparison
from automl.compare.tables import comparison_tables

__all__ = ["Comparison", "compare", "compare_apart", "comparison_tables", "write_comparison", "write_figures"]
