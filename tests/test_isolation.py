"""Eight sessions at once on one worker: each output equals that of its spec alone, and the base is unchanged.

Each session draws 100 seeded operations: likelihood checks and texts of different recipes, batch jobs that others
overtake, cancelled jobs, and recipes that cannot be applied. Jobs are shared only while they are active, so an
operation cannot just read another one's result.
"""

import contextlib
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.delta.patch import applied
from stethoscope.errors import UserError
from stethoscope.jobs.job import Job
from stethoscope.jobs.worker import JobFront, JobSnapshot
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, CompareTextSpec, EditRecipe, ProbeSpec, Spec
from stethoscope.results import BenchResult, ProbeResult, Result
from stethoscope.store.runs import RunStore

SESSIONS, OPERATIONS = 8, 100
DEADLINE_S = 600.0


class Watched(JobFront):
    """A front whose worker's context a test can look at; counts how often a batch job let others pass, and its edit."""

    context: Context | None = None
    passes = lifts = 0

    def _open_context(self) -> Context:
        self.context = super()._open_context()
        set_aside = self.context.set_aside

        @contextlib.contextmanager
        def counted() -> Iterator[None]:
            assert self.context is not None
            assert self.context.loaded is not None
            before = weights_at(self.context.loaded)
            with set_aside():
                self.passes += 1
                self.lifts += weights_at(self.context.loaded) != before
                yield

        self.context.set_aside = counted
        return self.context


def weights_at(session: LoadedModel) -> list[int]:
    return [parameter.data_ptr() for parameter in session.model.parameters()]


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setenv("STETHOSCOPE_EDIT_MIB", "0")  # every new edit is written into the buffers of a former one
    monkeypatch.setattr(Job, "may_stand_for_another", property(lambda job: job.active and not job.progress.cancelled))
    front = Watched(RunStore(tmp_path / "runs"), device="cpu")
    yield front
    front.close()


def recipes_of(profile: Profile) -> list[EditRecipe]:
    generator = random.Random(0)
    return [
        EditRecipe(
            model=profile.model,
            task_vector=profile.task_vector(),
            layers={layer: generator.choice((0.5, 1.0, 2.0)) for layer in generator.sample(range(4), 1 + number % 4)},
            master_alpha=generator.choice((0.5, 1.0, 1.5)),
        )
        for number in range(12)
    ]


def probes_of(profile: Profile) -> list[Spec]:
    return [
        ProbeSpec(recipe=recipe, problems=profile.problems, n=2 + i % 2) for i, recipe in enumerate(recipes_of(profile))
    ]


def texts_of(profile: Profile) -> list[Spec]:
    prompts = ("a story of the river", "circle 7")
    return [
        CompareTextSpec(
            recipe=recipe,
            prompts=prompts[: 1 + i % 2],
            problems=profile.problems,
            framed=False,
            max_new_tokens=4 + i,
            third=recipe if i % 3 == 0 else None,
        )
        for i, recipe in enumerate(recipes_of(profile)[:6])
    ]


def bench_of(profile: Profile, number: int) -> BenchSpec:
    recipe = recipes_of(profile)[number % 12].model_copy(update={"master_alpha": 1.0 + number / 64})
    return BenchSpec(
        model=profile.model,
        problems=profile.problems,
        arms=(BenchArm(name="recipe", recipe=recipe), BenchArm(name="base")),
        subjects=profile.problems.subjects[:1],
        n=2,
        max_new_tokens=10 + number,
        batch_size=1,
    )


def bad_of(profile: Profile) -> ProbeSpec:
    return ProbeSpec(
        recipe=EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={9: 1.0}),
        problems=profile.problems,
        n=2,
    )


def timeless(result: Result | None) -> Result | None:
    """Return `result` without the numbers that are no output of the model: a time, what this store has tried."""
    if isinstance(result, BenchResult):
        return result.model_copy(update={"configurations_tried": None})
    return result.model_copy(update={"elapsed_s": 0.0}) if isinstance(result, ProbeResult) else result


class Session(threading.Thread):
    """One visitor: submits, waits, cancels, and keeps what came out of each spec."""

    def __init__(self, number: int, front: JobFront, profile: Profile) -> None:
        super().__init__(name=f"session-{number}")
        self.number, self.front, self.profile = number, front, profile
        self.outcomes: list[tuple[str, Spec, JobSnapshot]] = []
        self.trouble: BaseException | None = None

    def run(self) -> None:
        try:
            generator = random.Random(self.number)
            probes, texts, bad = probes_of(self.profile), texts_of(self.profile), bad_of(self.profile)
            for count in range(OPERATIONS):
                kind = generator.choices(("probe", "text", "batch", "cancel", "raise"), (55, 15, 10, 12, 8))[0]
                spec: Spec = {
                    "probe": generator.choice(probes),
                    "text": generator.choice(texts),
                    "batch": generator.choice(texts),
                    "cancel": generator.choice([*probes, *texts]),
                    "raise": bad,
                }[kind]
                if count in (20, 60):
                    kind, spec = "batch", bench_of(self.profile, 2 * self.number + count // 60)
                self.outcomes.append((kind, spec, self.operate(kind, spec, generator)))
        except BaseException as error:  # noqa: BLE001 - told by the test, which joins the thread
            self.trouble = error

    def operate(self, kind: str, spec: Spec, generator: random.Random) -> JobSnapshot:
        job_id = self.front.submit(spec, interactive=kind != "batch", owner=self.name)
        if kind == "cancel":
            time.sleep(generator.choice((0.0, 0.005, 0.02)))
            self.front.cancel(job_id, self.name)
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            snapshot = self.front.snapshot(job_id)
            assert snapshot is not None
            if not snapshot.active or (kind == "cancel" and self.name not in snapshot.owners):
                return snapshot
            time.sleep(0.01)
        raise AssertionError(f"{self.name}: {kind} did not end in {DEADLINE_S} s")


def solo(specs: list[Spec], folder: Path) -> dict[str, Result | str]:
    """What each spec gives by itself, in a context that has seen no other session."""
    context = Context(RunStore(folder), device="cpu")
    found: dict[str, Result | str] = {}
    for spec in specs:
        try:
            found[spec.model_dump_json()] = pipeline.run(spec, context, Progress()).result
        except UserError as error:
            found[spec.model_dump_json()] = error.what
    context.close()
    return found


def test_every_output_of_eight_concurrent_sessions_equals_its_solo_run(
    front: Watched, pico_profile: Profile, tmp_path: Path
) -> None:
    front.warm_up(pico_profile)
    sessions = [Session(number, front, pico_profile) for number in range(SESSIONS)]
    for session in sessions:
        session.start()
    for session in sessions:
        session.join()
        assert session.trouble is None, session.trouble
        assert len(session.outcomes) == OPERATIONS
    asked = {spec.model_dump_json(): spec for session in sessions for _, spec, _ in session.outcomes}
    alone = solo(list(asked.values()), tmp_path / "solo")
    states = {"done": 0, "failed": 0, "cancelled": 0}
    for session in sessions:
        for kind, spec, snapshot in session.outcomes:
            expected = alone[spec.model_dump_json()]
            if kind == "raise":
                assert snapshot.error is not None
                assert snapshot.error.what == expected
            elif kind != "cancel":
                assert snapshot.state == "done", (session.name, kind, snapshot.state, snapshot.error)
            if snapshot.state == "done":
                assert not isinstance(expected, str)
                assert timeless(snapshot.result) == timeless(expected), (session.name, kind)
            if not snapshot.active:
                states[snapshot.state] += 1
    assert states["done"] > 600
    assert states["failed"] > 20
    assert states["cancelled"] > 20
    assert front.passes > 20
    assert front.lifts > 0
    check_that_the_base_is_left(front, pico_profile)


def check_that_the_base_is_left(front: Watched, profile: Profile) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while front.status().state != "idle" and time.monotonic() < deadline:
        time.sleep(0.01)
    assert front.status().base_verified is True
    context = front.context
    assert context is not None
    session = context.loaded
    assert session is not None
    assert session.checksum() == context.base_checksum
    with applied(session, patch_of(recipes_of(profile)[0], context, Progress())):  # refused if one were on
        assert session.checksum() != context.base_checksum
    assert session.checksum() == context.base_checksum
