"""What every result shares."""

from stethoscope.records import Record


class Result(Record):
    """Base of everything that a job returns: one class per use case (see `use_cases`)."""
