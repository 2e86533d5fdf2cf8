"""Jobs: what one was asked (`job`), and the one worker thread of this process that owns the model (`worker`)."""

from stethoscope.jobs.worker import ANYBODY, describe_error, front

__all__ = ["ANYBODY", "describe_error", "front"]
