"""An export whose process is killed (SIGKILL) after the folder is renamed and before the store records it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.delta import export
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, ExportSpec, LayerAlpha
from stethoscope.results import ExportResult
from stethoscope.store.runs import RunStore

DRIVER = """
import sys, time
from pathlib import Path
from stethoscope import pipeline
from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import ExportSpec
from stethoscope.store.runs import RunStore

root, spec, reached = sys.argv[1:]

def wait(*_, **__):  # where the record would be written
    Path(reached).touch()
    time.sleep(600)

RunStore.finish_run = wait
pipeline.run(ExportSpec.model_validate_json(spec), Context(RunStore(Path(root)), device="cpu"), Progress())
"""


def test_an_export_that_was_killed_before_its_record_is_taken_and_recorded(
    pico_profile: Profile, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EditRecipe(
        model=pico_profile.model, task_vector=pico_profile.task_vectors[0], layers={2: LayerAlpha(attention=0.5)}
    )
    spec, reached = ExportSpec(recipe=recipe, out=str(tmp_path / "edited")), tmp_path / "reached"
    command = [sys.executable, "-c", DRIVER, str(context.store.root), spec.model_dump_json(), str(reached)]
    child = subprocess.Popen(command, cwd=Path(__file__).parent.parent.parent)
    try:
        while not reached.exists():
            assert child.poll() is None, "it ended by itself"
            time.sleep(0.02)
        os.kill(child.pid, signal.SIGKILL)
    finally:
        child.kill()
        assert child.wait() == -signal.SIGKILL
    before = {path: path.stat().st_mtime_ns for path in Path(spec.out).rglob("*")}
    assert (Path(spec.out) / "model.safetensors").is_file()
    store = RunStore(context.store.root)
    assert [run.state for run in store.list_runs()] == ["interrupted"]

    def nothing_is_written_again(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr(export, "_write_parts", nothing_is_written_again)
    again = pipeline.run(spec, context, Progress())
    assert isinstance(again.result, ExportResult)
    assert again.result.max_abs_difference == 0
    assert store.get_run(again.run_id or "").state == "done"
    assert {path: path.stat().st_mtime_ns for path in Path(spec.out).rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(("edited", ".edited"))] == ["edited"]
