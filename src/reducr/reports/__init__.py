"""Reports of run folders: one HTML page, with its tables as Markdown and CSV and its plots as SVG and PNG."""

from reducr.reports.report import write_report
from reducr.reports.tables import make_console, print_line

__all__ = ["make_console", "print_line", "write_report"]
