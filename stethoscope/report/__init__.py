"""A benchmark as one HTML file that opens anywhere: no model, no GPU, no network."""

from stethoscope.report.document import RunFacts, is_report, of_run, report_html

__all__ = ["RunFacts", "is_report", "of_run", "report_html"]
