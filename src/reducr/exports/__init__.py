"""The downsampled data set of a run, for training something else on it."""

from reducr.exports.choice import ORDERS, QUOTAS, best_first, chosen_points, class_quotas
from reducr.exports.export import Export, ExportOptions, export_run

__all__ = [
    "ORDERS",
    "QUOTAS",
    "Export",
    "ExportOptions",
    "best_first",
    "chosen_points",
    "class_quotas",
    "export_run",
]
