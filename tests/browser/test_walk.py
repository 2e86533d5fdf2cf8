"""The main job in a real browser: listen, pick, inject, judge, find it again."""

import re
from typing import Any

from playwright.sync_api import expect

CELL = """([layer, row]) => {
  const plot = document.querySelector('.st-key-heatmap .js-plotly-plot');
  const box = plot.getBoundingClientRect();
  const {xaxis, yaxis} = plot._fullLayout;
  return [box.x + xaxis._offset + xaxis.d2p(layer), box.y + yaxis._offset + yaxis.l2p(row)];
}"""
DRAWN = "document.querySelector('.st-key-heatmap .js-plotly-plot')?._fullLayout?.xaxis?.d2p !== undefined"
SLOW_MS = 120_000


def open_page(page: Any, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_text(name, exact=True).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()


def click_cell(page: Any, layer: int, row: int = 2) -> None:
    page.wait_for_function(DRAWN)
    x, y = page.evaluate(CELL, [layer, row])
    page.mouse.move(x - 2, y - 2)
    page.mouse.click(x, y)


def test_listen_pick_inject_judge_and_find_again(page: Any, app_url: str) -> None:
    page.goto(app_url)
    expect(page.locator(".st-key-heatmap .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".st-key-certificate").first).to_contain_text("BASE")

    for layers in (["3"], ["3", "6"]):
        click_cell(page, int(layers[-1]))
        pressed = page.locator(".st-key-layer-pills button[aria-pressed='true']")
        expect(pressed).to_have_text(layers, timeout=SLOW_MS)

    open_page(page, "Edit")
    expect(page.locator(".st-key-probe .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".st-key-certificate").first).to_contain_text("EDITED: layers 3,6", timeout=SLOW_MS)
    before = page.locator(".st-key-probe").first.inner_text()
    slider = page.locator(".st-key-master-alpha input[type='range']")
    slider.focus()
    for _ in range(4):
        slider.press("ArrowLeft")
    expect(page.locator(".st-key-certificate").first).to_contain_text("alpha 0.8", timeout=SLOW_MS)
    expect(page.locator(".st-key-probe").first).not_to_have_text(before, timeout=SLOW_MS)

    page.locator(".st-key-run-compare button").click()
    for side in ("base", "edited"):
        expect(page.locator(f".st-key-text-{side}").first).to_contain_text(re.compile(r"\w{2}"), timeout=SLOW_MS)

    open_page(page, "Benchmark")
    count = page.locator(".st-key-bench-n input")
    count.fill("3")
    count.press("Enter")
    expect(page.locator(".st-key-run-bench button")).to_be_enabled(timeout=SLOW_MS)
    page.locator(".st-key-run-bench button").click()
    expect(page.locator(".st-key-forest .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".st-key-bench-totals").first).to_contain_text("95% CI", timeout=SLOW_MS)
    shown = page.locator(".st-key-bench-totals").first.inner_text()
    assert "run=" in page.url

    page.reload()
    expect(page.locator(".st-key-bench-totals").first).to_contain_text("95% CI", timeout=SLOW_MS)
    assert page.locator(".st-key-bench-totals").first.inner_text() == shown

    run_id = re.search(r"run=([^&]+)", page.url)
    assert run_id is not None
    open_page(page, "Runs")
    expect(page.locator(".st-key-run-detail").first).to_contain_text(run_id.group(1), timeout=SLOW_MS)


def test_a_broken_profile_is_a_message_and_the_app_goes_on(page: Any, app_url: str) -> None:
    page.goto(f"{app_url}/setup")
    expect(page.get_by_role("heading", name="Setup", level=1)).to_be_visible(timeout=SLOW_MS)
    page.goto(f"{app_url}/?run=r-that-never-was")
    expect(page.get_by_test_id("stAlert").first).to_be_visible(timeout=SLOW_MS)
    assert "Traceback" not in page.inner_text("body")
    open_page(page, "Diagnose")
    expect(page.locator(".st-key-heatmap .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
