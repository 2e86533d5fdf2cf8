"""Input typed while the page reruns is kept and shown."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.serving import ROOT, served

LONG_MS = 120_000
SCRIPT = r"""
import time
from pathlib import Path

import streamlit as st

from screens.shared import jobs, mirror
from screens.shared.fragment import fragment

HERE = Path(__file__).parent
chosen = st.session_state
for name, value in {"n": 100, "seed": 0, "turn": 0}.items():
    chosen.setdefault(name, value)
chosen["turn"] += 1
turn = chosen["turn"]


@fragment()
def plan():
    while (chosen["n"], chosen["seed"]) == (7, 0) and not (HERE / "seed").exists():
        time.sleep(0.02)
    st.slider("n", 2, 500, **mirror.mirror("n", "n-slider", "value", linked=True))
    st.number_input("n", 2, 500, **mirror.mirror("n", "n-box", "value", linked=True))
    st.number_input("seed", 0, 500, **mirror.mirror("seed", "seed-box", "value"))
    st.text(f"asked: {chosen['n']} and {chosen['seed']}")


@fragment(run_every=0.1)
def live():
    jobs.draw_again(turn == 1)  # as the status strip does when a job has ended


def wait_for(name):
    while turn == 2 and not (HERE / name).exists():
        time.sleep(0.02)


with mirror.drawing():
    st.text(f"drawing {turn}")
    wait_for("typed")
    plan()
    live()
    st.text(f"drawn {turn}")
    wait_for("shown")
"""


@pytest.fixture
def script(tmp_path: Path, chromium: str) -> Iterator[tuple[Path, str]]:
    path = tmp_path / "typed_while_drawn.py"
    path.write_text(SCRIPT)
    with served(path, {"PYTHONPATH": str(ROOT)}, tmp_path / "server.txt") as url:
        yield path, url


def test_what_is_typed_while_a_job_s_end_draws_the_page_again_is_kept(page: Any, script: tuple[Path, str]) -> None:
    path, url = script
    page.goto(url)
    expect(page.get_by_text("drawing 2")).to_be_visible(timeout=LONG_MS)
    box = page.locator(".st-key-n-box input")
    box.fill("6")
    box.press("Enter")
    path.with_name("typed").touch()
    expect(page.get_by_text("drawn 2")).to_be_visible(timeout=LONG_MS)
    path.with_name("shown").touch()
    expect(page.get_by_text("asked: 6 and 0")).to_be_visible(timeout=LONG_MS)
    assert box.input_value() == "6"
    seed = page.locator(".st-key-seed-box input")
    seed.fill("3")
    seed.press("Enter")
    expect(page.get_by_text("asked: 6 and 3")).to_be_visible(timeout=LONG_MS)
    assert box.input_value() == "6"


def test_two_values_typed_one_after_the_other_are_both_kept(page: Any, script: tuple[Path, str]) -> None:
    """The second value is sent together with the slider's old value."""
    path, url = script
    for name in ("typed", "shown"):
        path.with_name(name).touch()
    page.goto(url)
    expect(page.get_by_text("drawn 2")).to_be_visible(timeout=LONG_MS)
    expect(page.get_by_test_id("stStatusWidget")).to_have_count(0, timeout=LONG_MS)
    for key, value in (("n-box", "7"), ("seed-box", "3")):
        box = page.locator(f".st-key-{key} input")
        box.fill(value)
        box.press("Enter")
    path.with_name("seed").touch()
    expect(page.get_by_text("asked: 7 and 3")).to_be_visible(timeout=LONG_MS)
    expect(page.get_by_test_id("stSliderThumbValue")).to_have_text("7", timeout=LONG_MS)
