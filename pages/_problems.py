"""Which problems a benchmark asks: the profile's, or a file of one's own in MATH's format."""

from pages import _session
from stethoscope.records import ProblemsRef


def in_use() -> ProblemsRef:
    """Return the problems that the benchmark asks."""
    return _session.profile().problems
