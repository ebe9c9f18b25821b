"""The evaluation's report: one HTML file with charts, films and tables inside."""

from aime.evaluation.report.page import write_report

__all__ = ["write_report"]
