"""Every page on a fake front: `open_page` runs app.py by AppTest with synthetic results and a real, empty store."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parent))

from fake_front import FakeFront

from stethoscope import jobs
from stethoscope.minerva.problems import Problem
from stethoscope.store.runs import RunStore

APP = str(Path(__file__).parent.parent.parent / "app.py")


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFront:
    """A fake front whose jobs are done at once; set `.state` for the others."""
    fake = FakeFront(RunStore(tmp_path / "runs"))
    monkeypatch.setattr(jobs, "front", lambda: fake)

    def problems(location: str, split: str, revision: str | None = None) -> list[Problem]:
        return [Problem(f"What is {n} + 3?", "", "algebra", str(n + 3), f"{n:016x}") for n in range(3)]

    monkeypatch.setattr("pages._prompt.load_problems", problems)
    return fake


@pytest.fixture
def open_page(front: FakeFront) -> Callable[..., AppTest]:
    """Factory `open_page(name, query=..., **session) -> AppTest` of a page that has run until it is calm."""

    def open_(name: str, *, query: dict[str, str] | None = None, **session: object) -> AppTest:
        app = AppTest.from_file(APP, default_timeout=600)
        for key, value in (query or {}).items():
            app.query_params[key] = value
        app.run()
        for key, value in session.items():
            app.session_state[key] = value
        if name != "diagnose":
            app.switch_page(f"pages/{name}.py")
        return app.run()

    return open_
