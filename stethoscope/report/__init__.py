"""Reports: a benchmark as one HTML file that needs no model, GPU or network."""

from stethoscope.report.document import RunFacts, is_report, of_run, report_html

__all__ = ["RunFacts", "is_report", "of_run", "report_html"]
