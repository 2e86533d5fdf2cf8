"""A locked, read-only, full or missing store: a clear error, no damage, and readable data is shown.

A damaged row affects only itself: it is named, dependent results are computed again, and nothing else fails.
"""

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from stethoscope.errors import ResourceError, StoreError, UserError
from stethoscope.records import BenchArm, BenchSpec, Grade, GradeStatus, ModelRef, ProblemsRef
from stethoscope.results import BenchItem, Certificate, ExportResult
from stethoscope.store import schema
from stethoscope.store.measured import get_measured, put_measured
from stethoscope.store.runs import RunStore
from stethoscope.store.tuning import configurations_tried, put_tuned_on, tuned_on

PROBLEMS = ProblemsRef(problems="p", controls="c", shots="s", subjects=("algebra",), control_names=("facts",))
SPEC = BenchSpec(
    model=ModelRef(id="embedded:base"), problems=PROBLEMS, arms=(BenchArm(name="base"),), subjects=("algebra",)
)
RESULT = ExportResult(out="out", files=("a", "b"), size_bytes=3, max_abs_difference=0.1)
AFRESH = "start with an empty store"
NOBODY = 65534


def certificate(recipe_id: str | None) -> Certificate:
    sums = dict.fromkeys(("base_checksum", "edited_checksum", "restored_checksum"), "sha256-1")
    return Certificate(recipe_id=recipe_id, touched=(), layers_edited=(), **sums)


def item(problem_id: str) -> BenchItem:
    grade = Grade(exact_match=GradeStatus.CORRECT, math_verify=GradeStatus.CORRECT, marked=True, answer="7")
    return BenchItem(
        arm="base",
        subject="algebra",
        problem_id=problem_id,
        problem="3+4?",
        gold="7",
        completion=" 7",
        n_tokens=2,
        truncated=False,
        grade=grade,
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """A store with one finished run."""
    store = RunStore(tmp_path / "runs")
    store.finish_run(store.start_run(SPEC), state="done", result=RESULT, elapsed_s=1.0)
    return store


def change(store: RunStore, statement: str) -> None:
    with closing(sqlite3.connect(store.database)) as opened, opened:
        assert opened.execute(statement).rowcount > 0


def assert_readable(root: Path) -> None:
    again = RunStore(root)
    assert [run.state for run in again.list_runs()] == ["done"]
    assert again.load_result(again.list_runs()[0].run_id) == RESULT
    assert again.find_result(SPEC) is not None
    assert again.list_predictions() == []


def test_a_locked_store_is_read_and_says_that_it_is_locked(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "LOCK_WAIT_S", 0.05)
    with closing(sqlite3.connect(store.database, isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        assert_readable(store.root)
        with pytest.raises(ResourceError, match="locked") as told:
            store.start_run(SPEC)
    assert AFRESH not in str(told.value)
    assert "Nothing is damaged" in str(told.value)
    store.start_run(SPEC)


@pytest.fixture
def unprivileged() -> Iterator[Callable[[Path], Path]]:
    """Function that copies a store's folder to a place where it may be read and not written, as an ordinary user."""
    place = Path(tempfile.mkdtemp())
    as_root = os.geteuid() == 0

    def copied(root: Path) -> Path:
        copy = place / "runs"
        shutil.copytree(root, copy)
        for path in (place, copy, *copy.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if as_root:
            os.seteuid(NOBODY)
        return copy

    yield copied
    if as_root:
        os.seteuid(0)
    for path in (place, *place.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(place)


def test_a_store_that_may_only_be_read_is_read(store: RunStore, unprivileged: Callable[[Path], Path]) -> None:
    copy = unprivileged(store.root)
    before = sorted(path.name for path in copy.rglob("*"))
    assert_readable(copy)
    for write in (
        lambda: RunStore(copy).start_run(SPEC),
        lambda: RunStore(copy).set_pinned(RunStore(copy).list_runs()[0].run_id, True),
        lambda: put_tuned_on(copy / "runs.sqlite3", "m", "dose", ["p1"]),
    ):
        with pytest.raises(ResourceError, match="cannot be written to") as told:
            write()
        assert AFRESH not in str(told.value)
        assert "permissions" in str(told.value)
    assert sorted(path.name for path in copy.rglob("*")) == before


def test_what_is_known_already_needs_no_writing(store: RunStore, unprivileged: Callable[[Path], Path]) -> None:
    put_tuned_on(store.database, "m", "dose", ["p1", "p2"])
    put_tuned_on(unprivileged(store.root) / "runs.sqlite3", "m", "dose", ["p2"])


def test_a_store_that_was_deleted_meanwhile_is_not_made_anew_unseen(store: RunStore) -> None:
    shutil.rmtree(store.root)
    for use in (store.list_runs, lambda: store.start_run(SPEC)):
        with pytest.raises(ResourceError, match="no longer exists"):
            use()
    assert not store.root.exists()
    RunStore(store.root).start_run(SPEC)


def test_a_lock_file_that_cannot_be_made_is_one_error(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("filelock.FileLock.acquire", none_left)
    with pytest.raises(ResourceError, match="No space left"):
        store.start_run(SPEC)
    monkeypatch.undo()
    assert [run.state for run in store.list_runs()] == ["done"], "no half-started run"


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (sqlite3.SQLITE_BUSY, ResourceError, "locked"),
        (sqlite3.SQLITE_READONLY | 1 << 8, ResourceError, "permissions"),
        (sqlite3.SQLITE_FULL, ResourceError, "disk space"),
        (sqlite3.SQLITE_CORRUPT, StoreError, AFRESH),
        (sqlite3.SQLITE_NOTADB, StoreError, AFRESH),
        (sqlite3.SQLITE_ERROR, StoreError, "Check the disk"),
    ],
)
def test_only_a_damaged_file_is_to_be_moved_away(store: RunStore, code: int, kind: type[UserError], said: str) -> None:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    told = schema.as_user_error(store.database, error)
    assert type(told) is kind
    assert said in str(told)
    assert (AFRESH in str(told)) == (said == AFRESH)


@pytest.mark.parametrize("body", ["'{'", "'{}'", "x'ff00'", "replace(body, 'sha256-1', 'sha256-2')"])
def test_a_damaged_certificate_costs_its_answers_until_they_are_asked_anew(store: RunStore, body: str) -> None:
    for evaluation, recipe_id in (("base", None), ("edit", "sha256-r")):
        store.put_items(evaluation, [item("a")], certificate(recipe_id))
    assert configurations_tried(store.database, {"a": ""}) == (1, 0)
    change(store, f"UPDATE certificates SET body = {body} WHERE body LIKE '%sha256-r%'")
    assert configurations_tried(store.database, {"a": ""}) == (1, 1), "what cannot be read counts as tried, and is told"
    assert store.get_items("edit", {"a": ""}, skip_damaged=True) == {}
    assert list(store.get_items("base", {"a": ""})) == ["a"]
    store.put_items("edit", [item("a")], certificate("sha256-r"))
    assert list(store.get_items("edit", {"a": ""})) == ["a"]
    assert configurations_tried(store.database, {"a": ""}) == (1, 0)


@pytest.mark.parametrize("column", ["evaluation_id", "certificate"])
def test_no_change_of_an_answer_changes_silently_what_was_tried(store: RunStore, column: str) -> None:
    store.put_items("base", [item("a")], certificate(None))
    store.put_items("edit", [item("a")], certificate("sha256-r"))
    base = next(iter(store.get_items("base", {"a": ""})))
    assert base == "a"
    change(store, f"UPDATE items SET {column} = 'other' WHERE evaluation_id = 'edit'")
    tried = configurations_tried(store.database, {"a": ""})
    assert tried == (1, 1)


@pytest.mark.parametrize("change_of", ["model = 'other'", "problem_id = 'p9'", "kind = 'x'", "digest = ''"])
def test_no_change_of_what_was_tuned_on_is_silent(store: RunStore, change_of: str) -> None:
    put_tuned_on(store.database, "m", "dose", ["p1", "p2"])
    assert tuned_on(store.database, "m", ["p1", "p2"]) == ({"p1", "p2"}, 0)
    change(store, f"UPDATE tuned_on SET {change_of} WHERE problem_id = 'p1'")
    found = tuned_on(store.database, "m", ["p1", "p2"])
    assert found.damaged == 1
    assert found.problem_ids == ({"p2"} if "p9" in change_of else {"p1", "p2"})


@pytest.mark.parametrize(
    "change_of", ["state = 'paused'", "created_at = 'soon'", "created_at = 1.0", "pinned = x'00'", "title = 'else'"]
)
def test_a_damaged_run_is_named_and_asked_anew(store: RunStore, change_of: str) -> None:
    (run,) = store.list_runs()
    change(store, f"UPDATE runs SET {change_of}")
    (listed,) = store.list_runs()
    assert (listed.run_id, listed.state, listed.created_at) == (run.run_id, "damaged", 0.0)
    assert listed.about.startswith("damaged")
    for use in (store.get_run, store.load_result, lambda run_id: store.set_pinned(run_id, True)):
        with pytest.raises(StoreError, match="damaged"):
            use(run.run_id)
    assert store.find_result(SPEC) is None
    again = store.start_run(SPEC)
    assert again != run.run_id
    store.delete_run(run.run_id)
    assert [listed.run_id for listed in store.list_runs()] == [again]


def test_a_measured_list_under_another_key_is_not_believed(store: RunStore) -> None:
    put_measured(store.database, "one", [1.0])
    change(store, "UPDATE measured SET key = 'two'")
    assert get_measured(store.database, "two") is None
