"""Every page on a fake front: `open_page` runs app.py in AppTest with synthetic results and an empty store."""

import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

sys.path.insert(0, str(Path(__file__).parent))

from fake_front import FakeFront

from screens.shared.jobs import spec_key
from stethoscope import jobs
from stethoscope.locations import EMBEDDED_PREFIX
from stethoscope.minerva.problems import Problem
from stethoscope.profiles import MINI, load_profile
from stethoscope.records import SCORE_NAMES
from stethoscope.store.runs import RunStore

APP = str(Path(__file__).parent.parent.parent / "app.py")


@pytest.fixture(scope="session", autouse=True)
def _one_scan_of_the_packages() -> Iterator[None]:
    """Search the installed packages for components once, not again for every `AppTest`: that takes most of its time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(manifest_scanner, "scan_component_manifests", cache(manifest_scanner.scan_component_manifests))
        yield


@pytest.fixture
def front(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeFront:
    """A fake front whose jobs are done at once; set `.state` for the others."""
    fake = FakeFront(RunStore(tmp_path / "runs"))
    monkeypatch.setattr(jobs, "front", lambda: fake)

    def problems(location: str, split: str, revision: str | None = None) -> list[Problem]:
        return [Problem(f"What is {n} + 3?", "", "algebra", str(n + 3), f"{n:016x}") for n in range(3)]

    monkeypatch.setattr("screens.edit.prompt.load_problems", problems)
    return fake


@pytest.fixture
def open_page(front: FakeFront) -> Callable[..., AppTest]:
    """Factory `open_page(name, query=..., **session) -> AppTest` of a page that has run.

    The page is drawn once, with `session` set before and the diagnosis of the profile at hand, as if the Diagnose page
    had been looked at. With a `query`, that page follows the address first, and `session` is set behind it.
    """

    def open_(name: str, *, query: dict[str, str] | None = None, **session: object) -> AppTest:
        app = AppTest.from_file(APP, default_timeout=600)
        if query:
            for key, value in query.items():
                app.query_params[key] = value
            app.run()
        elif name != "diagnose":
            session = {"slots": diagnosed(front, session)} | session
        for key, value in session.items():
            app.session_state[key] = value
        if name != "diagnose":
            app.switch_page(f"screens/{name}/{name}.py")
        return app.run()

    return open_


def diagnosed(front: FakeFront, session: Mapping[str, object]) -> dict[str, dict[str, str]]:
    """Return the session's slots behind a look at the Diagnose page; empty where that asks for nothing by itself."""
    profile = load_profile(str(session.get("profile", MINI.name)))
    if profile.cannot_listen() is not None or not profile.model.id.startswith(EMBEDDED_PREFIX):
        return {}
    spec = profile.diagnose_spec(control=profile.problems.control_names[0], top_k=profile.top_k, score=SCORE_NAMES[0])
    return {"diagnosis": {"spec": spec_key(spec), "job": front.submit(spec, title="Diagnosis")}}
