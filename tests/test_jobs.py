"""The worker: order, cancel, errors that leave it alive, and the base verified after every job."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stethoscope.jobs import JobFront, JobSnapshot
from stethoscope.profiles import Profile
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, InfoSpec, ModelRef, ProbeSpec
from stethoscope.results import InfoResult, ProbeResult
from stethoscope.store.runs import RunStore


@pytest.fixture
def front(tmp_path: Path) -> Iterator[JobFront]:
    front = JobFront(RunStore(tmp_path / "runs"), device="cpu")
    yield front
    front.close()
    assert front.active() == []


def finished(front: JobFront, job_id: str, *, patience_s: float = 60.0) -> JobSnapshot:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        snapshot = front.snapshot(job_id)
        assert snapshot is not None
        if not snapshot.active:
            return snapshot
        time.sleep(0.02)
    raise AssertionError(f"job {job_id} did not end in {patience_s} s")


def idle(front: JobFront) -> None:
    deadline = time.monotonic() + 30
    while front.status().state != "idle" and time.monotonic() < deadline:
        time.sleep(0.02)


def probe_spec(profile: Profile, alpha: float) -> ProbeSpec:
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={1: alpha})
    return ProbeSpec(recipe=recipe, problems=profile.problems, n=4)


def test_warm_up_loads_and_verifies_the_base(front: JobFront, pico_profile: Profile) -> None:
    job = finished(front, front.warm_up(pico_profile))
    assert job.state == "done", job.error
    assert isinstance(job.result, InfoResult)
    idle(front)
    status = front.status()
    assert status.model == job.result.model
    assert status.base_verified is True


def test_an_edit_shows_its_certificate_and_leaves_the_base(front: JobFront, pico_profile: Profile) -> None:
    job = finished(front, front.submit(probe_spec(pico_profile, 1.0)))
    assert isinstance(job.result, ProbeResult), job.error
    idle(front)
    status = front.status()
    assert status.certificate == job.result.certificate
    assert status.certificate is not None
    assert status.certificate.edited_checksum != status.certificate.base_checksum
    assert status.base_verified is True


def test_the_same_spec_is_one_job(front: JobFront, pico_profile: Profile) -> None:
    first = front.submit(probe_spec(pico_profile, 0.5))
    assert front.submit(probe_spec(pico_profile, 0.5)) == first
    finished(front, first)
    assert front.submit(probe_spec(pico_profile, 0.5)) == first
    assert front.submit(probe_spec(pico_profile, 0.6)) != first


def test_a_mistake_is_shown_in_parts_and_the_worker_goes_on(
    front: JobFront, pico_profile: Profile, tmp_path: Path
) -> None:
    missing = InfoSpec(model=ModelRef(id=str(tmp_path / "nowhere")), saes=pico_profile.saes, task_vectors=())
    job = finished(front, front.submit(missing))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.detail is None
    assert "nowhere" in job.error.what
    assert finished(front, front.warm_up(pico_profile)).state == "done"


def test_our_own_error_carries_its_traceback(
    front: JobFront, pico_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("stethoscope.pipeline.probe.solution_nll", lambda *_, **__: explode())
    job = finished(front, front.submit(probe_spec(pico_profile, 0.7)))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.detail is not None
    assert "planted" in job.error.detail
    idle(front)
    assert front.status().base_verified is True


def test_interactive_jobs_overtake_waiting_batch_jobs(front: JobFront, pico_profile: Profile) -> None:
    front.warm_up(pico_profile)
    batch = [front.submit(probe_spec(pico_profile, alpha), interactive=False) for alpha in (0.1, 0.2, 0.3)]
    quick = front.submit(probe_spec(pico_profile, 0.9))
    finished(front, quick)
    last = front.snapshot(batch[-1])
    assert last is not None
    assert last.active
    assert all(finished(front, job_id).state == "done" for job_id in batch)


def test_cancel_stops_a_benchmark_and_a_waiting_job(
    front: JobFront, pico_profile: Profile, make_pico: Callable[..., Path]
) -> None:
    recipe = EditRecipe(model=pico_profile.model, task_vector=pico_profile.task_vector(), layers={1: 1.0})
    spec = BenchSpec(
        model=pico_profile.model,
        problems=pico_profile.problems,
        arms=(BenchArm(name="base"), BenchArm(name="recipe", recipe=recipe)),
        subjects=pico_profile.problems.subjects,
        n=20,
        max_new_tokens=48,
        batch_size=2,
    )
    running = front.submit(spec, interactive=False)
    waiting = front.submit(probe_spec(pico_profile, 0.4), interactive=False)
    front.cancel(waiting)
    assert finished(front, waiting).state == "cancelled"
    while (snapshot := front.snapshot(running)) is not None and snapshot.done < 2 and snapshot.active:
        time.sleep(0.01)
    front.cancel(running)
    job = finished(front, running)
    assert job.state == "cancelled"
    idle(front)
    assert front.status().base_verified is True
    assert front.submit(spec) != running
