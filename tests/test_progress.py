"""Progress as shown to users: fraction, speed, remaining time; bytes in suitable units."""

from types import SimpleNamespace

import pytest

from screens.shared.watch import describe
from stethoscope.formatting import counted, pace
from stethoscope.jobs.job import JobProgress


@pytest.mark.parametrize(
    ("done", "total", "unit", "text"),
    [
        (3, 64, "", "3 of 64"),
        (1_200_000_000, 8_600_000_000, "B", "1.20 of 8.60 GB"),
        (120_000, 8_600_000, "B", "0.12 of 8.60 MB"),
        (120, 8_600, "B", "0.12 of 8.60 kB"),
        (1, 86, "B", "1 of 86 bytes"),
        (0, 0, "B", "0 of 0 bytes"),
    ],
)
def test_counts_are_shown_in_their_unit(done: int, total: int, unit: str, text: str) -> None:
    assert counted(done, total, unit) == text


def test_a_download_is_described_by_files_bytes_rate_and_time_left() -> None:
    progress = JobProgress()
    progress.start("Downloading model a/b, 1 of 3 files", 8_000_000_000, unit="B")
    progress.skip(2_000_000_000)
    job = SimpleNamespace(
        state="running",
        title="Loading",
        stage=progress.stage,
        done=progress.done,
        total=progress.total,
        unit=progress.unit,
        detail="",
        rate=25e6,
        eta_s=240.0,
    )
    assert describe(job) == (
        "Loading · Downloading model a/b, 1 of 3 files · 2.00 of 8.00 GB · 25.0 MB per s · about 4 min left"
    )
    assert progress.rate is None, "bytes of an earlier run are no speed"


def test_the_next_stage_counts_items_again() -> None:
    progress = JobProgress()
    progress.start("Downloading", 10, unit="B")
    progress.start("Loading", 10)
    assert (progress.unit, pace(3.14, progress.unit)) == ("", "3.1 per s")
