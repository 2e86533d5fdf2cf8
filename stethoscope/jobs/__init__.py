"""Jobs (`job`), and the worker thread of this process, which owns the model (`worker`)."""

from stethoscope.jobs.worker import ANYBODY, describe_error, front

__all__ = ["ANYBODY", "describe_error", "front"]
