"""The worker: order, cancelling, surviving errors, and a verified base after every job."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.errors import ResourceError, StethoscopeError
from stethoscope.jobs.job import Job, JobProgress
from stethoscope.jobs.worker import JobFront, JobSnapshot
from stethoscope.pipeline import info, probe
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, DoseSpec, EditRecipe, InfoSpec, ModelRef, ProbeSpec
from stethoscope.results import BenchResult, InfoResult, ProbeResult
from stethoscope.store.runs import RunStore


@pytest.fixture
def front(tmp_path: Path) -> Iterator[JobFront]:
    front = JobFront(RunStore(tmp_path / "runs"), device="cpu")
    yield front
    front.close()
    assert front.active() == []


def finished(front: JobFront, job_id: str, *, patience_s: float = 600.0) -> JobSnapshot:
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        snapshot = front.snapshot(job_id)
        assert snapshot is not None
        if not snapshot.active:
            return snapshot
        time.sleep(0.02)
    raise AssertionError(f"job {job_id} did not end in {patience_s} s")


def idle(front: JobFront) -> None:
    deadline = time.monotonic() + 600
    while front.status().state != "idle" and time.monotonic() < deadline:
        time.sleep(0.02)


class Held:
    """Holds every batch job that has finished `at` items, between two of its steps, until `release`.

    Others pass ahead of it there, it sees pause and cancel there, and it goes back into the queue from there.
    """

    def __init__(self) -> None:
        self.at: int | None = None
        self._yield = JobProgress.yield_to_interactive

    def release(self) -> None:
        self.at = None

    def yield_to_interactive(self, progress: JobProgress) -> None:
        self._yield(progress)
        while progress.pass_ahead is not None and self.at is not None and progress.total and progress.done >= self.at:
            time.sleep(0.002)
            self._yield(progress)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Held:
    found = Held()
    monkeypatch.setattr(JobProgress, "yield_to_interactive", lambda progress: found.yield_to_interactive(progress))
    return found


@pytest.fixture
def until_all_wait(front: JobFront, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Function that lets the worker load its model; until it is called, all jobs wait."""
    called, load = threading.Event(), info.run

    def wait(*arguments: object) -> object:
        assert called.wait(600)
        return load(*arguments)

    monkeypatch.setattr(info, "run", wait)
    return called.set


@pytest.fixture
def endings(front: JobFront, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Ids of ended jobs, in order."""
    ended, finish = list[str](), front._finish

    def noting(job: Job, *arguments: object, **fields: object) -> None:
        ended.append(job.job_id)
        finish(job, *arguments, **fields)

    monkeypatch.setattr(front, "_finish", noting)
    return ended


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

    monkeypatch.setattr("stethoscope.pipeline.probe.rows_nll", lambda *_, **__: explode())
    job = finished(front, front.submit(probe_spec(pico_profile, 0.7)))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.detail is not None
    assert "planted" in job.error.detail
    idle(front)
    assert front.status().base_verified is True


def test_interactive_jobs_overtake_waiting_batch_jobs(
    front: JobFront, pico_profile: Profile, until_all_wait: Callable[[], None], endings: list[str]
) -> None:
    loading = front.warm_up(pico_profile)
    batch = [front.submit(probe_spec(pico_profile, alpha), interactive=False) for alpha in (0.1, 0.2, 0.3)]
    quick = front.submit(probe_spec(pico_profile, 0.9))
    until_all_wait()
    assert all(finished(front, job_id).state == "done" for job_id in [*batch, quick])
    assert endings == [loading, quick, *batch]


def long_bench(profile: Profile, layers: tuple[int, ...] = (1,)) -> BenchSpec:
    """A benchmark of 32 answers, whose first arm is edited."""
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers=dict.fromkeys(layers, 1.0))
    return BenchSpec(
        model=profile.model,
        problems=profile.problems,
        arms=(BenchArm(name="recipe", recipe=recipe), BenchArm(name="base")),
        subjects=profile.problems.subjects,
        n=8,
        max_new_tokens=12,
        batch_size=2,
    )


def running_with(front: JobFront, held: Held, spec: BenchSpec, items: int) -> str:
    """Start `spec` as a batch job, and hold it when `items` are answered."""
    held.at = items
    job_id = front.submit(spec, interactive=False)
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        snapshot = front.snapshot(job_id)
        assert snapshot is not None
        assert snapshot.active, snapshot.error
        if snapshot.stage == "Answering problems" and snapshot.done >= items:
            return job_id
        time.sleep(0.005)
    raise AssertionError("the benchmark did not start")


def solo(spec: BenchSpec | ProbeSpec, folder: Path) -> BenchResult | ProbeResult:
    context = Context(RunStore(folder), device="cpu")
    result = pipeline.run(spec, context, Progress()).result
    context.close()
    assert isinstance(result, BenchResult | ProbeResult)
    return result


def test_an_interactive_job_passes_ahead_of_a_running_batch_job_and_neither_sees_the_other(
    front: JobFront, held: Held, pico_profile: Profile, tmp_path: Path
) -> None:
    bench, probes = long_bench(pico_profile), [probe_spec(pico_profile, alpha) for alpha in (0.5, 1.5)]
    batch = running_with(front, held, bench, 1)
    for asked in probes:
        found = finished(front, front.submit(asked))
        passed = front.snapshot(batch)
        assert passed is not None
        assert passed.active, "the probe waited for the whole benchmark"
        assert isinstance(found.result, ProbeResult), found.error
        alone = solo(asked, tmp_path / "solo")
        assert isinstance(alone, ProbeResult)
        assert found.result.rows == alone.rows
        assert found.result.certificate == alone.certificate
    held.release()
    job = finished(front, batch)
    assert job.state == "done", job.error
    alone = solo(bench, tmp_path / "bench")
    assert job.result == alone
    assert isinstance(alone, BenchResult)
    by_arm = {item.problem_id: item.completion for item in alone.items if item.arm == "base"}
    assert any(by_arm[item.problem_id] != item.completion for item in alone.items), "the edit changes nothing"
    idle(front)
    assert front.status().base_verified is True


def test_a_failing_and_a_cancelled_job_leave_the_batch_job_alone(
    front: JobFront, held: Held, pico_profile: Profile
) -> None:
    batch = running_with(front, held, long_bench(pico_profile), 1)
    beyond = EditRecipe(model=pico_profile.model, task_vector=pico_profile.task_vector(), layers={9: 1.0})
    failing = finished(front, front.submit(ProbeSpec(recipe=beyond, problems=pico_profile.problems, n=4)))
    assert failing.state == "failed"
    assert failing.error is not None
    stopped = front.submit(probe_spec(pico_profile, 0.3))
    front.cancel(stopped)
    assert finished(front, stopped).state in ("cancelled", "done")
    held.release()
    job = finished(front, batch)
    assert job.state == "done", job.error
    idle(front)
    assert front.status().base_verified is True


def test_a_job_for_another_model_waits_for_the_batch_job(
    front: JobFront, held: Held, pico_profile: Profile, make_pico: Callable[..., Path]
) -> None:
    other = ModelRef(id=str(make_pico(seed=5)))
    batch = running_with(front, held, long_bench(pico_profile), 1)
    load = front.submit(InfoSpec(model=other, saes=pico_profile.saes, task_vectors=()))
    assert finished(front, front.submit(probe_spec(pico_profile, 0.5))).state == "done"
    waiting, running = front.snapshot(load), front.snapshot(batch)
    assert waiting is not None
    assert running is not None
    assert (waiting.state, running.state) == ("queued", "running")
    held.release()
    assert finished(front, batch).state == "done"
    assert finished(front, load).state == "done"
    idle(front)
    status = front.status()
    assert status.model is not None
    assert status.model.id == other.id
    assert status.base_verified is True


def test_an_edit_that_cannot_be_put_back_fails_the_batch_job_and_leaves_the_base(
    front: JobFront, held: Held, pico_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = running_with(front, held, long_bench(pico_profile), 1)

    def misbehave(spec: ProbeSpec, context: Context, _: Progress) -> ProbeResult:
        assert context.loaded is not None
        parameter = context.loaded.parameter(context.loaded.layout.of_layer(1)[0].name)
        parameter.data = parameter.detach().clone()
        raise StethoscopeError("planted")

    monkeypatch.setattr(probe, "run", misbehave)
    finished(front, front.submit(probe_spec(pico_profile, 0.5)))
    held.release()
    job = finished(front, batch)
    assert job.state == "failed"
    assert job.error is not None
    assert "does not contain the base weights" in job.error.what
    idle(front)
    assert front.status().base_verified is True


def test_a_shared_job_stops_when_its_last_owner_withdraws(front: JobFront, held: Held, pico_profile: Profile) -> None:
    batch = running_with(front, held, long_bench(pico_profile), 1)
    probe = probe_spec(pico_profile, 0.2)
    shared = front.submit(probe, interactive=False, owner="one")
    assert front.submit(probe, interactive=False, owner="two") == shared
    front.cancel(shared, "one")
    front.cancel(shared, "a stranger")
    snapshot = front.snapshot(shared)
    assert snapshot is not None
    assert (snapshot.state, snapshot.owners) == ("queued", {"two"})
    front.cancel(batch, "a stranger")
    front.cancel(shared, "two")
    assert finished(front, shared).state == "cancelled"
    again = front.submit(probe, interactive=False, owner="one")
    assert again != shared, "a stopped job does not stand for a new one"
    assert front.submit(probe, owner="two") == again
    assert finished(front, again).state == "done"
    passed = front.snapshot(batch)
    assert passed is not None
    assert passed.active, "asked for interactively, the waiting batch job passes ahead"
    front.cancel(batch)
    assert finished(front, batch).state == "cancelled"


def test_a_paused_benchmark_leaves_the_worker_and_goes_on_when_asked_again(
    front: JobFront, held: Held, pico_profile: Profile, tmp_path: Path
) -> None:
    spec = long_bench(pico_profile).model_copy(update={"block_size": 4})
    batch = running_with(front, held, spec, 9)
    paused = front.snapshot(batch)
    assert paused is not None
    assert paused.may_pause
    front.pause(batch, "a stranger")
    front.pause(batch)
    job = finished(front, batch)
    assert (job.state, job.may_pause) == ("paused", False)
    assert isinstance(job.result, BenchResult)
    assert not job.result.complete
    assert job.run_id is not None
    assert front.store.get_run(job.run_id).state == "paused"
    again = front.submit(spec, interactive=False)
    assert again != batch, "a paused job does not stand for the one that goes on"
    first = job.run_id
    held.release()
    job = finished(front, again)
    assert job.state == "done", job.error
    assert job.run_id == first, "the run goes on; it is no second one"
    assert job.result == solo(spec, tmp_path / "bench")
    idle(front)
    assert front.status().base_verified is True


def test_a_benchmark_that_the_store_hinders_says_so_while_it_runs(
    front: JobFront, held: Held, pico_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = ResourceError("cannot write runs", got="a full disk", expected="free space", next_step="Free some.")

    def fail(*_: object, **__: object) -> None:
        raise full

    with monkeypatch.context() as hindered:
        hindered.setattr(RunStore, "put_items", fail)
        spec = long_bench(pico_profile).model_copy(update={"block_size": 4})
        batch = running_with(front, held, spec, 9)
        job = front.snapshot(batch)
        assert job is not None
        (note,) = job.notes
        assert "a full disk" in note
    held.release()
    job = finished(front, batch)
    assert job.state == "done", job.error
    assert job.error is None, "it was stored after all"


def test_a_note_that_is_told_twice_is_kept_once() -> None:
    progress = JobProgress()
    for note in ("one", "two", "one"):
        progress.note(note)
    assert list(progress.notes) == ["one", "two"]


@pytest.mark.parametrize("state", ["paused", "cancelled"])
def test_a_benchmark_stopped_in_its_first_block_says_how(
    front: JobFront, held: Held, pico_profile: Profile, state: str
) -> None:
    spec = long_bench(pico_profile)
    batch = running_with(front, held, spec.model_copy(update={"block_size": 24}), 1)
    (front.pause if state == "paused" else front.cancel)(batch)
    job = finished(front, batch)
    assert (job.state, job.result) == (state, None)
    assert front.store.list_runs("bench")[0].state == state


def test_only_benchmarks_pause_and_one_that_waits_does_so_at_once(
    front: JobFront, held: Held, pico_profile: Profile
) -> None:
    batch = running_with(front, held, long_bench(pico_profile), 1)
    probe = front.submit(probe_spec(pico_profile, 0.2), interactive=False)
    waiting = front.submit(long_bench(pico_profile, (2,)), interactive=False, owner="one")
    front.pause(probe)
    front.pause(waiting)
    states = {}
    for name, job_id in (("probe", probe), ("waiting", waiting)):
        snapshot = front.snapshot(job_id)
        assert snapshot is not None
        states[name] = snapshot.state
    assert states == {"probe": "queued", "waiting": "queued"}, "a stranger's pause stops nothing"
    front.pause(waiting, "one")
    snapshot = front.snapshot(waiting)
    assert snapshot is not None
    assert snapshot.state == "paused"
    held.release()
    front.cancel(batch)
    assert finished(front, probe).state == "done"


def test_the_rate_counts_neither_pauses_nor_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("stethoscope.progress.time.perf_counter", lambda: now[0])
    progress = Progress()
    progress.start("work", 100)
    progress.skip(40)
    assert progress.rate is None
    now[0] = 10.0
    progress.advance(20)
    assert (progress.rate, progress.eta_s) == (2.0, 20.0)
    with progress.clock_stopped():
        now[0] = 500.0
        assert progress.rate == 2.0
    assert progress.rate == 2.0
    now[0] = 510.0
    assert progress.rate == 1.0


def test_cancel_stops_a_benchmark_and_a_waiting_job(front: JobFront, held: Held, pico_profile: Profile) -> None:
    spec = long_bench(pico_profile)
    running = running_with(front, held, spec, 2)
    waiting = front.submit(probe_spec(pico_profile, 0.4), interactive=False)
    front.cancel(waiting)
    assert finished(front, waiting).state == "cancelled"
    front.cancel(running)
    assert finished(front, running).state == "cancelled"
    idle(front)
    assert front.status().base_verified is True
    assert front.submit(spec) != running


def test_unloading_lets_go_of_the_model_and_the_same_question_loads_it_again(
    front: JobFront, pico_profile: Profile
) -> None:
    first = finished(front, front.warm_up(pico_profile))
    assert front.warm_up(pico_profile) == first.job_id, "loaded: asking again loads nothing"
    front.unload(device="offload")
    again = finished(front, front.warm_up(pico_profile))
    assert again.job_id != first.job_id
    assert isinstance(again.result, InfoResult)
    assert front.device == "offload"
    front.unload()
    deadline = time.monotonic() + 600
    while front.status().model is not None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert front.status().model is None
    assert front.device == "offload"


def test_a_model_that_gave_way_to_another_is_loaded_again(front: JobFront, pico_profile: Profile) -> None:
    first = finished(front, front.warm_up(pico_profile))
    half = pico_profile.changed(
        model=pico_profile.model.model_copy(update={"dtype": "bfloat16"}), saes=pico_profile.saes
    )
    finished(front, front.warm_up(half))
    again = finished(front, front.warm_up(pico_profile))
    assert again.job_id != first.job_id
    assert front.status().model is not None
    assert front.status().model == again.result.model


def curve(profile: Profile) -> DoseSpec:
    """A curve of 12 alphas."""
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={1: 1.0})
    return DoseSpec(recipe=recipe, problems=profile.problems, alphas=tuple(round(i / 10, 1) for i in range(12)), n=8)


@pytest.mark.parametrize("interactive", [False, True])
def test_work_that_nobody_asked_for_gives_way_to_anything_asked_and_ends_later(
    front: JobFront, held: Held, pico_profile: Profile, endings: list[str], interactive: bool
) -> None:
    loading = finished(front, front.warm_up(pico_profile)).job_id
    held.at = 40
    background = front.submit(curve(pico_profile), interactive=False, background=True)
    while (seen := front.snapshot(background)) is not None and seen.done < 40:
        assert seen.active
        time.sleep(0.005)
    asked = front.submit(probe_spec(pico_profile, 0.9), interactive=interactive)
    assert finished(front, asked).state == "done"
    held.release()
    assert finished(front, background).state == "done"
    assert endings == [loading, asked, background], "the curve was set back"
    (run,) = front.store.list_runs("dose")
    assert run.state == "done"


def test_what_was_asked_for_runs_ahead_of_what_was_not(
    front: JobFront, pico_profile: Profile, until_all_wait: Callable[[], None], endings: list[str]
) -> None:
    loading = front.warm_up(pico_profile)
    unasked = front.submit(curve(pico_profile), interactive=False, background=True)
    asked = front.submit(probe_spec(pico_profile, 0.2), interactive=False)
    until_all_wait()
    assert finished(front, unasked).state == "done"
    assert endings == [loading, asked, unasked]


def test_work_in_the_background_is_stopped_for_good(front: JobFront, held: Held, pico_profile: Profile) -> None:
    finished(front, front.warm_up(pico_profile))
    held.at = 0
    job_id = front.submit(curve(pico_profile), interactive=False, background=True, owner="me")
    front.cancel(job_id, "me")
    assert finished(front, job_id).state == "cancelled"
