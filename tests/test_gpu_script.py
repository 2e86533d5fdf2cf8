"""The GPU script: its steps fit the time, overruns are stopped and named, numbers are compared."""

import math
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Difference, Step, run_step, smoke, steps


@pytest.mark.parametrize("small", [True, False])
def test_steps_take_at_most_eight_minutes_together(small: bool) -> None:
    assert sum(step.share_s for step in steps("cuda", small)) <= 480


def test_a_step_is_stopped_after_its_share_and_told_from_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sleeps.py").write_text("import time\ntime.sleep(60)\n", encoding="utf-8")
    (tmp_path / "fails.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    (tmp_path / "prints.py").write_text("import sys\nprint(sys.argv[1:])\n", encoding="utf-8")
    monkeypatch.setattr(gpu, "STACKS_BEFORE_S", 1)
    assert run_step(Step("sleeps", ("sleeps",), 3)) == "stopped after its limit of 3 s"
    assert "sleeps.py" in capfd.readouterr().err, "the stacks say where it was"
    assert run_step(Step("fails", ("fails",), 60)) == "failed (status 3)"
    assert run_step(Step("prints", ("prints", "--a", "b"), 60)) == "done"
    assert "['--a', 'b']" in capfd.readouterr().out


def test_failed_steps_are_counted_in_the_exit_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--small"])
    monkeypatch.setattr(gpu, "run_step", lambda step: "done" if step.name == "smoke" else "failed (status 1)")
    with pytest.raises(SystemExit) as ended:
        gpu.main()
    assert ended.value.code == 3


def test_results_are_compared_number_by_number() -> None:
    ours = {"rows": [{"score": 100.0, "elapsed_s": 1.0}, {"score": 0.5, "elapsed_s": 9.0}]}
    theirs = {"rows": [{"score": 101.0, "elapsed_s": 5.0}, {"score": 0.4, "elapsed_s": 2.0}]}
    found = Difference.between(ours, theirs)
    assert (found.path, found.size) == (".rows[1].score", pytest.approx(0.1))
    assert Difference.between({"a": 1.0}, {"b": 1.0}).size == math.inf
    assert not Difference.between({"a": 1.0}, {"a": math.nan}).size <= 0.1, "what is not a number agrees with nothing"


def test_the_smoke_step_runs_on_a_cpu() -> None:
    assert smoke("cpu", small=True) == 0


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu() -> None:
    assert smoke("cuda", small=False) == 0
