"""Export the downsampled data set of a run, to train another model on it."""

from reducr.exports.choice import ORDERS, QUOTAS, best_first, chosen_examples, class_quotas, suspected_label_errors
from reducr.exports.export import Export, ExportOptions, export_run

__all__ = [
    "ORDERS",
    "QUOTAS",
    "Export",
    "ExportOptions",
    "best_first",
    "chosen_examples",
    "class_quotas",
    "export_run",
    "suspected_label_errors",
]
