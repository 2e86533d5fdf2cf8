"""Base class of all results."""

from stethoscope.records import Record


class Result(Record):
    """Base class of everything that a job returns: one class per use case (see `use_cases`)."""
