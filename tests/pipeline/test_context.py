"""What the worker holds between jobs: one model under its whole reference, and nothing of a job that has ended."""

from pathlib import Path

import pytest
import torch

from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import ModelRef


def test_a_model_is_loaded_again_for_another_dtype_and_only_then(context: Context, pico_folder: Path) -> None:
    exact, rounded = (ModelRef(id=str(pico_folder), dtype=dtype) for dtype in ("float32", "bfloat16"))
    first = context.load(exact, Progress())
    assert context.load(exact, Progress()) is first
    assert first.dtype == torch.float32
    checksum = context.base_checksum
    second = context.load(rounded, Progress())
    assert second.ref == rounded
    assert {parameter.dtype for parameter in second.model.parameters()} == {torch.bfloat16}
    assert context.base_checksum != checksum
    assert context.load(exact, Progress()) is not first
    assert context.base_checksum == checksum


def test_a_job_that_fails_leaves_neither_its_progress_nor_its_memory_behind(context: Context) -> None:
    before, inner = context.progress, Progress()

    def fail_at_work() -> None:
        with context.wanting(5), context.at_work(inner):
            assert context.wanted_bytes == 5
            assert context.progress is inner
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_work()
    assert context.progress is before
    assert context.wanted_bytes == 0
