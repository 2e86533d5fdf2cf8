"""A benchmark in a real browser: plan, start, intermediate look, pause, resume, flips, saved numbers."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import expect
from test_walk import SLOW_MS, at_rest, open_page

from tests.browser.serving import ROOT, served

NASTY = r"""
import streamlit as st
from stethoscope.figures import flips, maths
TEXT = (
    "Find $x^2$ and \\(y\\). ![pixel](http://far.invalid/a.png) [link](http://far.invalid/b) "
    "<img src='http://far.invalid/c'>\n$\\includegraphics{http://far.invalid/d}$ "
    "$\\href{http://far.invalid/e}{z}$ http://far.invalid/f www.far.invalid me@far.invalid "
    ":red[no] :smile: # no heading\n1. no list"
)
with st.container(key="problem"):
    st.markdown(maths.markdown(TEXT))
with st.container(key="answer"):
    answer = "<img src='http://far.invalid/f' onerror='document.title=1'> $a$ ![g](http://far.invalid/g)"
    st.html(flips.answer_html(answer, 3))
st.radio("r", [maths.escape(TEXT)], key="radio")
"""


def test_start_look_pause_resume_flip_and_save(page: Any, app_url: str) -> None:
    page.goto(app_url)
    expect(page.locator(".st-key-heatmap .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    page.locator(".st-key-pick-top button").first.click()
    expect(page.locator(".st-key-layer-pills button[aria-pressed='true']")).to_have_count(4, timeout=SLOW_MS)
    open_page(page, "Benchmark")
    expect(page.locator(".st-key-bench-power").first).to_contain_text("n = 100 per subject", timeout=SLOW_MS)
    at_rest(page)
    for key, value in (("bench-n", "6"), ("bench-seed", "3"), ("bench-tokens", "64")):
        box = page.locator(f".st-key-{key} input").first
        box.fill(value)
        box.press("Enter")
        expect(page.locator(".st-key-bench-power").first).to_contain_text("n = 6 per subject", timeout=SLOW_MS)
        at_rest(page)
    page.locator(".st-key-bench-more button").first.click()
    expect(page.locator(".st-key-bench-margin input").first).to_have_value(re.compile("^3"), timeout=SLOW_MS)
    block = page.locator(".st-key-bench-block input").first
    block.fill("8")
    block.press("Enter")
    page.keyboard.press("Escape")
    page.locator(".st-key-bench-standard button").first.click()
    expect(page.get_by_text(re.compile(r"11 arms × 7 subjects × 6 problems: 462 answers")).first).to_be_visible(
        timeout=SLOW_MS
    )
    expect(page.locator(".st-key-run-bench button").first).to_be_enabled(timeout=SLOW_MS)
    page.locator(".st-key-run-bench button").first.click()

    expect(page.locator(".st-key-bench-partial").first).to_contain_text("partial: ", timeout=SLOW_MS)
    expect(page.locator(".st-key-bench-partial .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".st-key-bench-running").first).to_contain_text("block ", timeout=SLOW_MS)
    page.locator(".st-key-bench-pause button").first.click()
    expect(page.locator(".st-key-bench-stopped").first).to_contain_text("Paused", timeout=SLOW_MS)
    expect(page).to_have_url(re.compile("run="), timeout=SLOW_MS)
    page.reload()
    expect(page.locator(".st-key-bench-badges").first).to_contain_text("of 6 blocks", timeout=SLOW_MS)
    page.locator(".st-key-bench-resume button").first.click()
    expect(page.locator(".st-key-bench-stopped")).to_have_count(0, timeout=SLOW_MS)
    expect(page.locator(".st-key-bench-totals").first).to_contain_text("95% CI", timeout=3 * SLOW_MS)
    expect(page.locator(".st-key-bench-badges").first).not_to_contain_text("partial", timeout=SLOW_MS)

    page.locator(".st-key-flip-kind button").last.click()  # all
    expect(page.locator(".st-key-flip-steps").first).to_contain_text("1 of 42", timeout=SLOW_MS)
    page.keyboard.press("Alt+n")
    expect(page.locator(".st-key-flip-steps").first).to_contain_text("2 of 42", timeout=SLOW_MS)
    shown = page.locator(".st-key-flip-problem").first.inner_text()
    expect(page).to_have_url(re.compile(r"flip=[0-9a-f]{16}"), timeout=SLOW_MS)
    page.reload()
    expect(page.locator(".st-key-flip-problem").first).to_have_text(shown, timeout=SLOW_MS, use_inner_text=True)
    with page.expect_download() as download:
        page.locator(".st-key-flips-csv button").first.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("problem_id,subject,gold,gold_reading,reference,reference_answer,")
    with page.expect_download() as download:
        page.locator(".st-key-bench-json button").first.click()
    saved = json.loads(Path(download.value.path()).read_text())
    assert (len(saved["items"]), saved["complete"], saved["blocks_done"]) == (462, True, 6)


@pytest.fixture
def nasty_url(tmp_path: Path, chromium: str) -> Iterator[str]:
    """A page with a problem and an answer full of markup."""
    script = tmp_path / "nasty.py"
    script.write_text(NASTY)
    with served(script, {"PYTHONPATH": str(ROOT)}, tmp_path / "server.txt") as url:
        yield url


def test_a_problem_and_an_answer_fetch_nothing_and_are_shown_as_they_are(page: Any, nasty_url: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(nasty_url)
    problem, answer = page.locator(".st-key-problem"), page.locator(".st-key-answer")
    expect(answer).to_contain_text("onerror=", timeout=SLOW_MS)
    expect(problem.locator(".katex")).to_have_count(2, timeout=SLOW_MS)
    assert page.locator("a[href*='far.invalid']").count() == 0
    said = problem.inner_text().replace("\u200b", "")
    for part in (
        "![pixel](http://far.invalid/a.png)",
        "<img src=",
        r"\includegraphics{http",
        r"\href{",
        ":red[no]",
        ":smile:",
        "# no heading",
        "1. no list",
    ):
        assert part in said, part
    page.wait_for_timeout(500)
    assert page.locator("img[src*='far.invalid']").count() == 0
    assert not [url for url in asked if "far.invalid" in url]
    assert page.title() != "1"
