"""A killed or interrupted benchmark resumes from its finished blocks and ends with the same numbers."""

import contextlib
import io
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.cli import main
from stethoscope.pipeline.bench import bench_problems, blocks_of
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import BenchSpec, EditRecipe
from stethoscope.store.runs import RunStore

ROOT = Path(__file__).parent.parent.parent
N, BLOCK = 6, 2  # of 2 subjects and 3 arms: 36 answers in 18 blocks of an arm
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
STOPPED_AT = """
import os, sys
from stethoscope.cli import main
from stethoscope.progress import Progress

answers, signal, *arguments = sys.argv[1:]
advance = Progress.advance

def counting(self, items=1):
    advance(self, items)
    if self.stage == "Answering problems" and self.done == int(answers):
        os.kill(os.getpid(), int(signal))

Progress.advance = counting
sys.exit(main(arguments))
"""


class Bench:
    """`python -m stethoscope bench` on one home: in a new process if it will be stopped, otherwise in this one."""

    def __init__(self, home: Path, profile: Path, *recipes: Path) -> None:
        self.home = home
        self.arguments = [
            *("bench", *map(str, recipes), "--json", "--profile", str(profile)),
            *("--device", "cpu", "--n", str(N), "--block-size", str(BLOCK), "--batch-size", "1"),
            *("--max-new-tokens", "8"),
        ]

    def to_the_end(self) -> dict[str, object]:
        with pytest.MonkeyPatch.context() as patched, contextlib.redirect_stdout(io.StringIO()) as out:
            patched.setenv("STETHOSCOPE_HOME", str(self.home))
            assert main(self.arguments) == 0
        return json.loads(out.getvalue())

    def stopped_after(self, blocks: int, how: signal.Signals) -> tuple[int, str, str]:
        """Run a process that sends itself a signal at the first answer after the `blocks`-th block of an arm; return
        its exit code and output."""
        ended = subprocess.run(
            [sys.executable, "-c", STOPPED_AT, str(blocks * BLOCK + 1), str(int(how)), *self.arguments],
            cwd=ROOT,
            env=os.environ | ONE_THREAD | {"STETHOSCOPE_HOME": str(self.home)},
            text=True,
            capture_output=True,
            check=False,
        )
        return ended.returncode, ended.stdout, ended.stderr

    def stored(self) -> list[tuple[str, str]]:
        """Evaluation and problem of every stored answer."""
        path = self.home / "runs" / "runs.sqlite3"
        if not path.exists():
            return []
        opened = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            return opened.execute("SELECT evaluation_id, problem_id FROM items").fetchall()
        except sqlite3.OperationalError:  # the tables are being made
            return []
        finally:
            opened.close()


@pytest.fixture
def recipes(pico_profile: Profile, tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for layer, path in enumerate(paths, start=1):
        recipe = EditRecipe(model=pico_profile.model, task_vector=pico_profile.task_vector(), layers={layer: 1.0})
        path.write_text(recipe.model_dump_json(), encoding="utf-8")
    return paths


def answered_again(home: Path, spec: BenchSpec, copy: Path) -> int:
    """Number of answers that a resume generates, counted on a copy of the home."""
    shutil.copytree(home, copy)
    context, progress = Context(RunStore(copy / "runs"), device="cpu"), Progress()
    pipeline.run(spec, context, progress)
    context.close()
    assert (progress.done, progress.total) == (36, 36)
    return progress.done - progress._skipped


def test_killed_in_the_middle_of_a_block_twice_and_resumed(
    profile_file: Path, recipes: list[Path], tmp_path: Path
) -> None:
    uninterrupted = Bench(tmp_path / "whole", profile_file, *recipes).to_the_end()
    spec = BenchSpec.model_validate(uninterrupted["spec"])
    blocks = [frozenset(problem.problem_id for problem in block) for block in blocks_of(bench_problems(spec), BLOCK)]
    bench = Bench(tmp_path / "killed", profile_file, *recipes)
    run_ids = set()
    for kill, after in enumerate((2, 7)):
        code, out, _ = bench.stopped_after(after, signal.SIGKILL)
        assert (code, out) == (-signal.SIGKILL, "")
        stored = bench.stored()
        assert len(stored) == after * BLOCK
        for evaluation in {evaluation for evaluation, _ in stored}:
            answered = {problem for of, problem in stored if of == evaluation}
            assert answered == set().union(*(block for block in blocks if block <= answered)), "half a block is stored"
        (record,) = RunStore(bench.home / "runs").list_runs()
        assert record.state == "interrupted"
        run_ids.add(record.run_id)
        assert answered_again(bench.home, spec, tmp_path / f"copy{kill}") == 36 - len(stored)
    resumed = bench.to_the_end()
    (record,) = RunStore(bench.home / "runs").list_runs()
    assert (record.state, {record.run_id}) == ("done", run_ids), "one run, which went on"
    assert resumed == uninterrupted | {"run_id": record.run_id}


def test_ctrl_c_stores_and_says_how_to_go_on(profile_file: Path, recipes: list[Path], tmp_path: Path) -> None:
    bench = Bench(tmp_path / "home", profile_file, *recipes)
    code, out, err = bench.stopped_after(4, signal.SIGINT)
    assert (code, out) == (130, "")
    assert "of 6 blocks answered and stored. Run the same command again to continue." in err
    assert "Traceback" not in err
    (record,) = RunStore(bench.home / "runs").list_runs()
    assert (record.state, record.result_id is None) == ("paused", False)
    before = len(bench.stored())
    assert bench.to_the_end()["complete"] is True
    assert len(bench.stored()) == 36 > before
    (record,) = RunStore(bench.home / "runs").list_runs()
    assert record.state == "done"
