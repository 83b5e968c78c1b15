"""The report: one HTML file that needs nothing else, made from the tables of a run directory."""

from qscore.report.page import write_report

__all__ = ["write_report"]
