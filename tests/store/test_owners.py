"""A run whose process ended is detected; one that any live process runs is left alone."""

import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from stethoscope.errors import ResourceError
from stethoscope.records import BenchArm, BenchSpec, ModelRef, ProblemsRef
from stethoscope.store import schema
from stethoscope.store.runs import RunStore

PROBLEMS = ProblemsRef(problems="p", controls="c", shots="s", subjects=("algebra",), control_names=("facts",))
SPEC = BenchSpec(
    model=ModelRef(id="embedded:base"), problems=PROBLEMS, arms=(BenchArm(name="base"),), subjects=("algebra",)
)
START = """
import sys, pathlib
from stethoscope.records import BenchSpec
from stethoscope.store.runs import RunStore
store = RunStore(pathlib.Path(sys.argv[1]))
print(store.start_run(BenchSpec.model_validate_json(sys.argv[2])), flush=True)
sys.stdin.read()
"""


class Elsewhere:
    """Another process that runs `spec` until it is stopped."""

    def __init__(self, root: Path, spec: BenchSpec = SPEC) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(root), spec.model_dump_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.run_id = self.process.stdout.readline().strip()
        assert self.run_id

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.communicate(timeout=600)


def states(store: RunStore) -> dict[str, str]:
    return {record.run_id: record.state for record in store.list_runs()}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_leaves_an_interrupted_run_that_goes_on_under_its_id(
    tmp_path: Path, how: signal.Signals
) -> None:
    elsewhere, here = Elsewhere(tmp_path), RunStore(tmp_path)
    mine = here.start_run(SPEC.model_copy(update={"seed": 1}))
    assert states(RunStore(tmp_path)) == {elsewhere.run_id: "running", mine: "running"}
    beside = here.start_run(SPEC)
    assert beside != elsewhere.run_id, "what a living process runs is not taken from it"
    here.finish_run(beside, state="failed", error="x", elapsed_s=1.0)
    elsewhere.end(how)
    assert states(here) == {elsewhere.run_id: "interrupted", mine: "running", beside: "failed"}
    other = Elsewhere(tmp_path, SPEC.model_copy(update={"seed": 2}))
    other.end(how)
    created_at = here.get_run(other.run_id).created_at
    assert RunStore(tmp_path).start_run(SPEC.model_copy(update={"seed": 2})) == other.run_id
    assert here.get_run(other.run_id).created_at == created_at, "it goes on; it did not start now"


def test_a_store_that_is_opened_after_a_kill_knows_at_once(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path)
    elsewhere.end(signal.SIGKILL)
    RunStore(tmp_path)
    row = sqlite3.connect(tmp_path / "runs.sqlite3").execute("SELECT state FROM runs").fetchone()
    assert row == ("interrupted",)


def test_a_paused_run_goes_on_and_adds_up_its_time(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id = store.start_run(SPEC, title="mine")
    store.finish_run(run_id, state="paused", elapsed_s=2.0)
    assert states(RunStore(tmp_path)) == {run_id: "paused"}
    assert RunStore(tmp_path).start_run(SPEC.model_copy(update={"seed": 1})) != run_id
    assert store.start_run(SPEC, extra=("other weights",)) != run_id
    assert RunStore(tmp_path).start_run(SPEC) == run_id
    store.finish_run(run_id, state="done", elapsed_s=3.0)
    record = store.get_run(run_id)
    assert (record.state, record.elapsed_s, record.title) == ("done", 5.0, "mine")
    assert store.start_run(SPEC) != run_id, "what is done does not go on"


def test_a_run_whose_end_could_not_be_recorded_is_nobodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = RunStore(tmp_path)
    run_id = store.start_run(SPEC)
    real = sqlite3.connect

    def full(*arguments: object, **options: object) -> sqlite3.Connection:
        opened = real(*arguments, **options)  # pyright: ignore
        opened.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK)
        opened.execute("PRAGMA max_page_count=1")
        return opened

    with monkeypatch.context() as patched:
        patched.setattr(schema.sqlite3, "connect", full)
        with pytest.raises(ResourceError):
            store.finish_run(run_id, state="failed", error="x" * 100_000, elapsed_s=1.0)
    assert states(store) == {run_id: "interrupted"}
    assert store.start_run(SPEC) == run_id


def test_lock_files_go_with_the_runs(tmp_path: Path) -> None:
    store = RunStore(tmp_path)
    run_id = store.start_run(SPEC)
    assert [path.stem for path in (tmp_path / "running").iterdir()] == [run_id]
    store.finish_run(run_id, state="done", elapsed_s=1.0)
    elsewhere = Elsewhere(tmp_path)
    elsewhere.end(signal.SIGKILL)
    assert states(store)[elsewhere.run_id] == "interrupted"
    assert list((tmp_path / "running").iterdir()) == []
