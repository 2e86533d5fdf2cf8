"""A failing download on the real worker and a local hub: one banner on Setup, and a retry that works."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from streamlit.testing.v1 import AppTest

from stethoscope import hub as fetching
from stethoscope import jobs
from stethoscope.hub import transfer
from stethoscope.jobs.worker import JobFront
from stethoscope.store.runs import RunStore
from tests.hub import contents
from tests.hub.server import READER, STRANGER, LoopbackHub, Trouble, point_at

APP = str(Path(__file__).parents[2] / "app.py")
Break = Callable[[LoopbackHub, pytest.MonkeyPatch, Path], None]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[JobFront]:
    """The real front and worker, on an empty store."""
    front = JobFront(RunStore(tmp_path / "runs"), device="cpu")
    monkeypatch.setattr(jobs, "front", lambda: front)
    monkeypatch.setattr(transfer, "RETRY_WAIT_S", 0.01)
    yield front
    front.close()


def settle(app: AppTest, worker: JobFront) -> AppTest:
    """Wait until the worker is idle, then rerun the page."""
    while worker.active():
        time.sleep(0.05)
    return app.run()


def no_access(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    point_at(monkeypatch, hub.endpoint, home, token=STRANGER)


def no_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    point_at(monkeypatch, hub.endpoint, home)


def wrong_token(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    point_at(monkeypatch, hub.endpoint, home, token="mistyped")


def cut_off(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    hub.troubles[a_shard()] = Trouble(cut_after=0, pause_s=0.01)


def too_short(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    hub.troubles[a_shard()] = Trouble(short_by=10)


def no_room(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setattr(fetching.cache, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))


def a_shard() -> str:
    return sorted(file.name for file in (contents.made_once() / contents.GEMMA).glob("model-*.safetensors"))[1]


CASES: dict[str, tuple[Break, str, str]] = {
    "no access": (no_access, "is gated", "Accept the terms on the repository's page"),
    "no token": (no_token, "is gated", "log in with"),
    "wrong token": (wrong_token, "rejected the token", "Log in again"),
    "cut off": (cut_off, "the hub cannot be reached", "downloaded files are kept"),
    "too short": (too_short, "with a different size than announced", "Try again later"),
    "no room": (no_room, "not enough disk space", "Free some disk space, or set HF"),
}


@pytest.mark.parametrize("cause", CASES)
def test_one_banner_with_the_next_step_and_a_retry_that_works(
    hub: LoopbackHub, worker: JobFront, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    breaks, said, step = CASES[cause]
    contents.fill(hub, gated=True)
    home = tmp_path / "hf"
    point_at(monkeypatch, hub.endpoint, home, token=READER)
    app = AppTest.from_file(APP, default_timeout=600)
    app.session_state["profile"] = "gemma-3-4b-it"
    app.switch_page("screens/setup/setup.py").run()
    assert app.selectbox(key="profile-choice").value == "gemma-3-4b-it"
    with monkeypatch.context() as broken:
        breaks(hub, broken, home)
        settle(app.button(key="info-load").click().run(), worker)
        assert len(app.error) == 1, [error.value for error in app.error]
        banner = app.error[0]
        assert said in banner.value
        assert "Next step: " in banner.value
        assert step in banner.value
        assert not app.exception
        assert "mistyped" not in banner.value
        app.switch_page("screens/runs/runs.py").run()
        assert not app.exception
        assert not app.error, "the other pages go on"
        app.switch_page("screens/setup/setup.py").run()
        assert len(app.error) == 1, "and it still stands here"
    hub.troubles.clear()
    settle(app.button(key="info-again").click().run(), worker)
    assert not app.error
    assert app.button(key="unload-model")
    status = worker.status()
    assert status.model is not None
    assert (status.model.id, status.model.n_layers) == (contents.GEMMA, contents.N_LAYERS)
    assert any(metric.label == "Layers" and metric.value == str(contents.N_LAYERS) for metric in app.metric)
