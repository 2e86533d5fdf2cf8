"""The run store keeps and finds every run, and reports damaged rows."""

import errno
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from stethoscope.errors import ResourceError, StoreError
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    EditRecipe,
    Grade,
    GradeStatus,
    ModelRef,
    ProblemsRef,
    TaskVectorRef,
)
from stethoscope.results import BenchItem, Certificate, ExportResult
from stethoscope.store import schema
from stethoscope.store.ids import content_id
from stethoscope.store.runs import RunStore
from stethoscope.use_cases import use_case_of

MODEL = ModelRef(id="embedded:base")
PROBLEMS = ProblemsRef(problems="p", controls="c", shots="s", subjects=("algebra",), control_names=("facts",))
SPEC = BenchSpec(model=MODEL, problems=PROBLEMS, arms=(BenchArm(name="base"),), subjects=("algebra",))
CERTIFICATE = Certificate(
    recipe_id=None,
    base_checksum="sha256-1",
    edited_checksum="sha256-1",
    restored_checksum="sha256-1",
    touched=(),
    layers_edited=(),
)
RESULT = ExportResult(out="out", files=("a", "b"), size_bytes=3, max_abs_difference=0.1)


def recipe(alpha: float) -> EditRecipe:
    return EditRecipe(model=MODEL, task_vector=TaskVectorRef(name="math", tuned="t"), layers={0: alpha})


def item(problem_id: str, completion: str = " 7") -> BenchItem:
    grade = Grade(exact_match=GradeStatus.CORRECT, math_verify=GradeStatus.TIMEOUT, marked=True, answer="7")
    return BenchItem(
        arm="base",
        subject="algebra",
        problem_id=problem_id,
        problem="3+4?",
        gold="7",
        completion=completion,
        n_tokens=2,
        truncated=False,
        grade=grade,
    )


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs")


def tamper(store: RunStore, statement: str) -> None:
    with sqlite3.connect(store.root / "runs.sqlite3") as opened:
        assert opened.execute(statement).rowcount > 0
    opened.close()


def test_recipes_are_found_by_id_and_unique_prefix(store: RunStore) -> None:
    recipe_id = store.put_recipe(recipe(0.5))
    assert recipe_id == content_id(recipe(0.5)) == store.put_recipe(recipe(0.5))
    assert store.get_recipe(recipe_id) == recipe(0.5)
    assert store.get_recipe(recipe_id[7:15]) == recipe(0.5)
    assert store.get_recipe(recipe_id[:15]) == recipe(0.5)
    other = store.put_recipe(recipe(0.7))
    assert [stored.recipe_id for stored in store.list_recipes()] == [other, recipe_id]
    for unknown in ("sha256-" + "0" * 64, "0000", "abc", "*", "sha256-[a]aaa", ""):
        with pytest.raises(StoreError):
            store.get_recipe(unknown)


def test_an_ambiguous_prefix_is_refused(store: RunStore) -> None:
    recipe_id = store.put_recipe(recipe(0.5))
    twin = recipe_id[:-1] + ("0" if recipe_id[-1] != "0" else "1")
    tamper(store, f"INSERT INTO recipes SELECT '{twin}', body, created_at FROM recipes")
    with pytest.raises(StoreError, match="several recipe ids"):
        store.get_recipe(recipe_id[:20])


@pytest.mark.parametrize("change", ["replace(body, '0.5', '0.6')", "'{}'", "'not json'", "x'ff'"])
def test_a_tampered_recipe_is_an_error_and_left_out_of_the_list(store: RunStore, change: str) -> None:
    recipe_id, other = store.put_recipe(recipe(0.5)), store.put_recipe(recipe(0.9))
    tamper(store, f"UPDATE recipes SET body = {change} WHERE recipe_id = '{recipe_id}'")
    with pytest.raises(StoreError, match="damaged"):
        store.get_recipe(recipe_id)
    assert [stored.recipe_id for stored in store.list_recipes()] == [other]


def test_a_run_from_start_to_found_again(store: RunStore) -> None:
    assert store.find_result(SPEC) is None
    run_id = store.start_run(SPEC, title="algebra, base")
    record = store.get_run(run_id)
    assert (record.state, record.kind, record.title, record.spec) == ("running", "bench", "algebra, base", SPEC)
    assert use_case_of(SPEC).kind == "bench"
    assert store.find_result(SPEC) is None
    with pytest.raises(StoreError, match="has no result"):
        store.load_result(run_id)
    store.finish_run(run_id, state="done", result=RESULT, elapsed_s=1.5)
    assert store.load_result(run_id) == RESULT
    assert store.find_result(SPEC) == (run_id, RESULT)
    assert store.get_run(run_id).elapsed_s == 1.5
    assert store.find_result(SPEC.model_copy(update={"seed": 1})) is None
    assert store.find_result(SPEC, extra=("checksum",)) is None
    assert RunStore(store.root).load_result(run_id) == RESULT  # another process


def test_the_newest_done_run_is_found(store: RunStore) -> None:
    newest = RESULT.model_copy(update={"size_bytes": 4})
    ids = [store.start_run(SPEC) for _ in range(4)]
    store.finish_run(ids[0], state="done", result=RESULT, elapsed_s=1.0)
    store.finish_run(ids[1], state="done", result=newest, elapsed_s=1.0)
    store.finish_run(ids[2], state="cancelled", result=RESULT, elapsed_s=1.0)
    store.finish_run(ids[3], state="failed", error="what; got x", elapsed_s=1.0)
    assert store.find_result(SPEC) == (ids[1], newest)
    assert store.load_result(ids[2]) == RESULT  # a partial result is kept too
    assert store.get_run(ids[3]).error == "what; got x"


def test_run_ids_sort_by_time_and_never_repeat(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1795354321.999999)  # frozen, at the end of a second
    ids = [store.start_run(SPEC) for _ in range(5)]
    assert ids == sorted(set(ids))
    assert ids[0] == "r20261122-133201-ffff"
    assert ids[1] == "r20261122-133202-0000"
    assert [record.run_id for record in store.list_runs()] == ids[::-1]


def test_list_by_kind_limit_and_pin(store: RunStore) -> None:
    ids = [store.start_run(SPEC) for _ in range(3)]
    assert [record.run_id for record in store.list_runs(limit=2)] == [ids[2], ids[1]]
    assert len(store.list_runs("bench")) == 3
    assert store.list_runs("probe") == []
    store.set_pinned(ids[0], True)
    assert store.get_run(ids[0]).pinned
    store.set_pinned(ids[0], False)
    assert not store.get_run(ids[0]).pinned
    for unknown in (
        lambda: store.set_pinned("r0", True),
        lambda: store.get_run("r0"),
        lambda: store.load_result("r0"),
        lambda: store.finish_run("r0", state="done", elapsed_s=0.0),
    ):
        with pytest.raises(StoreError, match="no run"):
            unknown()


@pytest.mark.parametrize(
    "change", ["kind = 'magic'", "spec = '{}'", "spec = 'x'", "spec = x'ff00'", "spec = CAST(x'ff00' AS TEXT)"]
)
def test_a_damaged_run_does_not_break_the_list(store: RunStore, change: str) -> None:
    run_id, healthy = store.start_run(SPEC), store.start_run(SPEC)
    tamper(store, f"UPDATE runs SET {change} WHERE run_id = '{run_id}'")
    assert [record.run_id for record in store.list_runs()] == [healthy, run_id]
    with pytest.raises(StoreError):
        _ = store.list_runs()[1].spec
    with pytest.raises(StoreError):
        store.get_run(run_id)


def test_a_damaged_result_is_never_returned(store: RunStore) -> None:
    first, second = store.start_run(SPEC), store.start_run(SPEC)
    store.finish_run(first, state="done", result=RESULT, elapsed_s=1.0)
    store.finish_run(second, state="done", result=RESULT.model_copy(update={"size_bytes": 9}), elapsed_s=1.0)
    blob = store.blobs.path(store.get_run(second).result_id or "")
    blob.write_bytes(blob.read_bytes().replace(b"9", b"8"))
    with pytest.raises(StoreError, match="damaged"):
        store.load_result(second)
    assert store.find_result(SPEC) == (first, RESULT)
    alien = store.blobs.put_json({"kind": "Path", "data": {}})
    with pytest.raises(StoreError, match="is not a result"):
        store._read_result(alien)
    tamper(store, f"UPDATE runs SET result_id = '{alien}' WHERE run_id = '{first}'")
    with pytest.raises(StoreError, match="damaged"):
        store.load_result(first)
    assert store.find_result(SPEC) is None


def unnamed(problem_ids: Iterable[str]) -> dict[str, str]:
    """Prompts for items without one."""
    return dict.fromkeys(problem_ids, "")


def test_another_prompt_is_another_answer(store: RunStore) -> None:
    yesterday, today = (item("a", said).model_copy(update={"prompt_id": said}) for said in ("7", "8"))
    store.put_items("e", [yesterday], CERTIFICATE)
    assert store.get_items("e", {"a": "8"}) == {}
    store.put_items("e", [today], CERTIFICATE)
    for stored in (yesterday, today):
        assert store.get_items("e", {"a": stored.prompt_id})["a"].item == stored
    assert store.stored_answers("e") == {("a", "7"), ("a", "8")}


def test_items_are_idempotent_and_all_or_none(store: RunStore) -> None:
    store.put_items("e", [item("b"), item("a")], CERTIFICATE)
    store.put_items("e", [item("b"), item("a"), item("c")], CERTIFICATE)
    store.put_items("other", [item("a", " 8")], CERTIFICATE)
    store.put_items("e", [], CERTIFICATE)
    assert store.stored_answers("e") == {("a", ""), ("b", ""), ("c", "")}
    assert list(store.get_items("e", unnamed(["c", "d", "a"]))) == ["c", "a"]
    assert store.get_items("e", unnamed(["a"]))["a"] == (item("a"), CERTIFICATE)
    store.put_items("e", [item("a", " 9")], CERTIFICATE)  # a block that is run again replaces
    assert store.get_items("e", unnamed(["a"]))["a"].item.completion == " 9"
    assert store.get_items("nothing", unnamed(["a"])) == {}
    assert store.stored_answers("nothing") == frozenset()


def test_each_answer_keeps_the_certificate_of_its_own_block(store: RunStore) -> None:
    other = CERTIFICATE.model_copy(update={"restored_checksum": "sha256-2"})
    store.put_items("e", [item("a"), item("b")], CERTIFICATE)
    store.put_items("e", [item("c"), item("b")], other)
    assert {name: stored.certificate for name, stored in store.get_items("e", unnamed("abc")).items()} == {
        "a": CERTIFICATE,
        "b": other,
        "c": other,
    }


@pytest.mark.parametrize("change", ["body = replace(body, 'sha256-1', 'sha256-3')", "body = '{}'"])
def test_an_answer_of_unknown_weights_is_no_answer(store: RunStore, change: str) -> None:
    store.put_items("e", [item("a")], CERTIFICATE)
    tamper(store, f"UPDATE certificates SET {change}")
    with pytest.raises(StoreError, match="certificate"):
        store.get_items("e", unnamed(["a"]))
    assert store.get_items("e", unnamed(["a"]), skip_damaged=True) == {}


def test_more_problems_than_a_statement_takes(store: RunStore) -> None:
    ids = [f"p{number}" for number in range(1_201)]
    store.put_items("e", [item(problem_id) for problem_id in ids], CERTIFICATE)
    assert list(store.get_items("e", unnamed(ids[::-1]))) == ids[::-1]


@pytest.mark.parametrize("change", ["body = replace(body, '7', '8')", "body = '{}'", "digest = ''"])
def test_a_tampered_item_is_an_error_or_left_out_for_a_resume(store: RunStore, change: str) -> None:
    store.put_items("e", [item("a"), item("b")], CERTIFICATE)
    tamper(store, f"UPDATE items SET {change} WHERE problem_id = 'a'")
    with pytest.raises(StoreError, match="damaged"):
        store.get_items("e", unnamed(["a", "b"]))
    assert list(store.get_items("e", unnamed(["a", "b"]), skip_damaged=True)) == ["b"]


def test_a_full_disk_leaves_the_run_without_result(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    run_id = store.start_run(SPEC)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", fail)
        with pytest.raises(ResourceError):
            store.finish_run(run_id, state="done", result=RESULT, elapsed_s=1.0)
    assert store.get_run(run_id).state == "running"
    assert store.find_result(SPEC) is None
    store.finish_run(run_id, state="done", result=RESULT, elapsed_s=1.0)
    assert store.find_result(SPEC) == (run_id, RESULT)


def test_a_full_database_stores_no_part_of_a_block(store: RunStore) -> None:
    store.put_items("e", [item("kept")], CERTIFICATE)
    real = sqlite3.connect

    def limited(*arguments: object, **options: object) -> sqlite3.Connection:
        opened = real(*arguments, **options)  # pyright: ignore
        opened.execute("PRAGMA max_page_count=20")
        return opened

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(schema.sqlite3, "connect", limited)
        with pytest.raises(ResourceError):
            store.put_items("e", [item(str(number), " 7" * 4000) for number in range(50)], CERTIFICATE)
    assert store.stored_answers("e") == {("kept", "")}


def test_threads_race_without_losing_anything(store: RunStore) -> None:
    failures: list[BaseException] = []
    ids: list[str] = []
    stores: list[RunStore] = []  # a run is its store's: it is interrupted when that goes

    def work(number: int) -> None:
        try:
            own = RunStore(store.root)  # each opens, and would migrate, the same file
            stores.append(own)
            for block in range(5):
                ids.append(own.start_run(SPEC))
                own.put_items("e", [item(f"{number}-{block}-{index}") for index in range(4)], CERTIFICATE)
                own.put_recipe(recipe(0.5))
        except BaseException as error:  # noqa: BLE001 - reported by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(ids)) == 30 == len(store.list_runs())
    assert len(store.stored_answers("e")) == 6 * 5 * 4
    assert len(store.list_recipes()) == 1


def test_two_processes_create_the_same_store(tmp_path: Path) -> None:
    code = "import sys, pathlib; from stethoscope.store.runs import RunStore; RunStore(pathlib.Path(sys.argv[1]))"
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "new")]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]


def test_a_newer_or_alien_file_is_refused(tmp_path: Path) -> None:
    RunStore(tmp_path / "newer")
    opened = sqlite3.connect(tmp_path / "newer" / "runs.sqlite3")
    opened.execute("PRAGMA user_version=99")
    opened.close()
    with pytest.raises(StoreError, match="another version"):
        RunStore(tmp_path / "newer")
    (tmp_path / "alien").mkdir()
    (tmp_path / "alien" / "runs.sqlite3").write_bytes(b"not a database, " * 100)
    with pytest.raises(StoreError, match=r"runs\.sqlite3"):
        RunStore(tmp_path / "alien")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StoreError):
        RunStore(tmp_path / "file")
