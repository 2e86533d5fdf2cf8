"""Wherever stdout and stderr go, all work is done and stored, and the user is told how to see it."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pytest

from stethoscope.cli import main
from stethoscope.store.runs import RunStore

ROOT = Path(__file__).parent.parent.parent
FULL = Path("/dev/full")
Ask = Callable[..., int]
pytestmark = pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")


@contextmanager
def closed_pipe() -> Iterator[TextIO]:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w", encoding="utf-8") as stream:
        yield stream


@contextmanager
def closed() -> Iterator[TextIO | None]:
    yield None


def full() -> TextIO:
    return FULL.open("w", encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], RunStore]:
    """Function that opens the commands' store."""
    monkeypatch.setenv("STETHOSCOPE_HOME", str(tmp_path / "home"))
    return lambda: RunStore(tmp_path / "home" / "runs")


@pytest.fixture
def diagnose(profile_file: Path) -> tuple[str, ...]:
    """A command that stores two runs."""
    return ("diagnose", "--documents", "20", "--top-k", "3", "--profile", str(profile_file), "--device", "cpu")


@pytest.mark.parametrize("json_too", [(), ("--json",)], ids=["table", "json"])
@pytest.mark.parametrize(("stdout", "code"), [(full, 2), (closed, 2), (closed_pipe, 0)])
def test_what_cannot_be_printed_is_stored_and_shown_again(
    stdout: Callable[[], object],
    code: int,
    json_too: tuple[str, ...],
    diagnose: tuple[str, ...],
    store: Callable[[], RunStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with stdout() as stream:  # type: ignore[attr-defined]
        with monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            assert main([*diagnose, *json_too]) == code
        err = capsys.readouterr().err
    runs = store().list_runs()
    assert {(run.kind, run.state) for run in runs} == {("diagnose", "done"), ("stability", "done")}
    said = err.splitlines()[-1]
    assert said.startswith("stethoscope: the output could not be printed completely")
    assert all(f"runs show {run.run_id}" in said for run in runs)
    assert main(["runs", "show", runs[0].run_id, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]


def test_a_reader_who_has_seen_enough_is_told_nothing(
    store: Callable[[], RunStore], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store()
    with closed_pipe() as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        assert main(["runs", "list"]) == 0
        assert capsys.readouterr().err == ""
    with full() as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        assert main(["runs", "list"]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_full_stderr_stops_no_work(
    diagnose: tuple[str, ...],
    store: Callable[[], RunStore],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("stethoscope.cli.progress.FILE_S", 0.0)
    with full() as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", stream)
        assert main([*diagnose, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["run_id"] in {run.run_id for run in store().list_runs()}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_of_any_encoding_shows_all_numbers(
    encoding: str,
    profile_file: Path,
    tmp_path: Path,
    store: Callable[[], RunStore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command = ["energy", "--subject", "geometry", "--k", "2", "--profile", str(profile_file), "--device", "cpu"]
    with (tmp_path / "out").open("w", encoding=encoding) as stream, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", stream)
        assert main(command) == 0
    shown = (tmp_path / "out").read_text(encoding=encoding)
    assert len(re.findall(r"0\.\d{3} (?:±|\+/-) 0\.\d{3}", shown)) == 4, shown
    assert "\\u" not in shown


def invoke(
    *argv: str, home: Path, options: tuple[str, ...] = (), **streams: object
) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"STETHOSCOPE_HOME": str(home), "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    return subprocess.run(
        [sys.executable, *options, "-m", "stethoscope", *argv],
        cwd=ROOT,
        env=environment,
        text=True,
        check=False,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams,
    )


def test_python_itself_says_nothing_more_when_it_ends(tmp_path: Path) -> None:
    with full() as stream:
        done = invoke("--help", home=tmp_path, stdout=stream)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
