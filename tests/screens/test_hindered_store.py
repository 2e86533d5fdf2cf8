"""A store that cannot be written: a banner says so, and computed results are still shown."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.shared import ui
from stethoscope.errors import ResourceError
from stethoscope.jobs.job import JobSnapshot, describe_error
from stethoscope.records import BenchSpec
from stethoscope.store.runs import RunStore

Open = Callable[..., AppTest]
FULL = ResourceError("cannot write runs.sqlite3", got="a full disk", expected="free disk space", next_step="Free some.")


def hinder(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FULL

    monkeypatch.setattr(RunStore, name, fail)


def banners(app: AppTest) -> int:
    return sum("a full disk" in error.value for error in app.error)


@pytest.mark.parametrize(
    ("page", "button", "write"),
    [
        ("runs", "pin-run", "set_pinned"),
        ("edit", "save-recipe", "put_recipe"),
        ("diagnose", "freeze-prediction", "put_prediction"),
    ],
)
def test_a_button_that_cannot_write_says_why_and_the_page_goes_on(
    page: str, button: str, write: str, front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "runs":
        app = open_page("benchmark", layers=[3, 5])
        app.button(key="run-bench").click().run()
        app.switch_page("screens/runs/runs.py").run()
    else:
        app = open_page(page, layers=[3, 5])
    with monkeypatch.context() as patched:
        hinder(write, patched)
        app.run()  # the buttons hold the store's methods as they were when they were drawn
        app.button(key=button).click().run()
        assert not app.exception
        assert banners(app) == 1
        assert app.button(key=button).disabled is False
    app.run()
    app.button(key=button).click().run()
    assert banners(app) == 0, "written at the second try"


@pytest.mark.parametrize("said", ["The disk is full ($5 *left* <b>1</b>).", ""])
def test_what_a_running_job_tells_stands_under_its_bar_once(
    said: str, front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot: Any = front.snapshot
    notes = (said, "Another [note].") if said else ()
    app = open_page("benchmark", layers=[3, 5])
    front.state = "running"
    monkeypatch.setattr(front, "snapshot", lambda job_id: replace(snapshot(job_id), notes=notes))
    app.button(key="run-bench").click().run()
    assert not app.exception
    shown = [warning.value for warning in app.warning]
    for note in notes:
        assert shown.count(ui.escape(note)) == 1, shown
    assert not any(char in "".join(shown).replace("\\" + char, "") for char in "$*<[")
    assert bool(said) == ("disk is full" in "".join(shown))


def test_a_result_that_could_not_be_kept_is_shown_beside_the_reason(
    front: FakeFront, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = front.snapshot

    def unkept(job_id: str) -> Any:
        job: JobSnapshot | None = snapshot(job_id)
        if job is None or not isinstance(job.spec, BenchSpec):
            return job
        return replace(job, run_id=None, error=describe_error(FULL))

    monkeypatch.setattr(front, "snapshot", unkept)
    app = open_page("benchmark", layers=[3, 5])
    app.button(key="run-bench").click().run()
    assert not app.exception
    assert banners(app) == 1
    assert any("forest" in str(chart.proto.id) for chart in app.get("plotly_chart"))
