"""The disk fills up or the home is deleted during a computation, which still runs to its end.

The result is returned with the reason why it is not stored, and everything is stored as soon as that is possible again.
"""

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.errors import ResourceError
from stethoscope.judging import arms
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchArm, BenchSpec, EditRecipe, GainSpec, RankSpec, Spec
from stethoscope.store import schema
from stethoscope.store.runs import RunStore

Hinder = Callable[[], contextlib.AbstractContextManager[None]]


class OnFullDisk(sqlite3.Connection):
    """A connection to a database file that cannot grow, although every write needs a new page."""

    def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
        if sql.split()[0] in ("INSERT", "UPDATE", "DELETE"):
            super().execute("PRAGMA max_page_count=1")  # SQLite takes the number of pages that there are
            super().execute("CREATE TABLE filler (body)")
            super().execute("INSERT INTO filler VALUES (zeroblob(50000000))")
        return super().execute(sql, *values)


class Hindered(Progress):
    """Enters `hinder` after the model's first pass, and records messages."""

    def __init__(self, hinder: Hinder, stack: contextlib.ExitStack, after: str) -> None:
        super().__init__()
        self.hinder, self.stack, self.after = hinder, stack, after
        self.begun = False
        self.notes: list[str] = []

    def advance(self, items: int = 1) -> None:
        super().advance(items)
        if not self.begun and self.stage.startswith(self.after) and self.done > 0:
            self.begun = True
            self.stack.enter_context(self.hinder())

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(params=["full", "gone"])
def hinder(request: pytest.FixtureRequest, context: Context, tmp_path: Path) -> Hinder:
    """Context manager that fills the disk, or removes the store's folder, while it is active."""

    @contextlib.contextmanager
    def full() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(schema.sqlite3, "connect", partial(sqlite3.connect, factory=OnFullDisk))
            yield

    @contextlib.contextmanager
    def gone() -> Iterator[None]:
        root, away = context.store.root, tmp_path / "away"
        root.rename(away)
        yield
        shutil.rmtree(root, ignore_errors=True)
        away.rename(root)

    return {"full": full, "gone": gone}[request.param]


def bench_spec(profile: Profile) -> BenchSpec:
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={1: 1.0})
    return BenchSpec(
        model=profile.model,
        problems=profile.problems,
        arms=(arms.BASE, BenchArm(name="edit", recipe=recipe)),
        subjects=("geometry",),
        n=6,
        max_new_tokens=5,
        batch_size=4,
        block_size=2,
    )


def gain_spec(profile: Profile) -> GainSpec:
    diagnosis = profile.diagnose_spec(n_bootstrap=20, n_splits=2, live_share=0.0, n_permutations=20)
    return GainSpec(diagnosis=diagnosis, task_vector=profile.task_vector(), n=4, random_sets=20)


def rank_spec(profile: Profile) -> RankSpec:
    recipe = EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers={1: 1.0})
    return RankSpec(recipe=recipe, problems=profile.problems, n=4)


@pytest.mark.parametrize(
    ("make", "after"), [(bench_spec, "Answering"), (gain_spec, "Injecting single"), (rank_spec, "Ranking")]
)
def test_the_work_goes_on_and_is_stored_once_that_is_possible(
    make: Callable[[Profile], Spec],
    after: str,
    hinder: Hinder,
    pico_profile: Profile,
    context: Context,
    tmp_path: Path,
) -> None:
    spec = make(pico_profile)
    calm = Context(RunStore(tmp_path / "calm"), device="cpu")
    expected = pipeline.run(spec, calm, Progress()).result
    calm.close()
    with contextlib.ExitStack() as stack:
        progress = Hindered(hinder, stack, after)
        outcome = pipeline.run(spec, context, progress)
        assert progress.begun, progress.stage
        assert isinstance(outcome.unkept, ResourceError)
        assert str(context.store.root) in str(outcome.unkept)
        assert outcome.run_id is None
        assert len(progress.notes) - sum("scores" in note or "rank among" in note for note in progress.notes) == 1
        assert outcome.result == expected
    done = Progress()
    again = pipeline.run(spec, context, done)
    assert again.unkept is None
    assert context.store.get_run(again.run_id or "").state == "done"
    assert again.result == expected
    assert done.done == done._skipped, "nothing is computed twice"
    assert context.store.list_runs()
