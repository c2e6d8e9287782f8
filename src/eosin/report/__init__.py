"""Results to one self-contained page: tables, figures and provenance, readable offline."""

from eosin.report.page import write_report

__all__ = ["write_report"]
