"""The main workflow in a real browser: diagnose, pick layers, edit, benchmark, reopen from Runs."""

import re
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

CELL = """([layer, row]) => {
  const plot = document.querySelector('.st-key-heatmap .js-plotly-plot');
  const box = plot.getBoundingClientRect();
  const {xaxis, yaxis} = plot._fullLayout;
  return [box.x + xaxis._offset + xaxis.d2p(layer), box.y + yaxis._offset + yaxis.l2p(row)];
}"""
PLOT = "document.querySelector('.st-key-heatmap .js-plotly-plot')"
DRAWN = "document.querySelector('.st-key-heatmap .js-plotly-plot')?._fullLayout?.xaxis?.d2p !== undefined"
OUTLINED = """(layers) => {
  const plots = [...document.querySelectorAll('.st-key-heatmap .js-plotly-plot')];
  const shapes = plots.length === 1 && plots[0]._fullLayout?.shapes;
  return shapes && JSON.stringify(shapes.map((shape) => Math.round(shape.x0 + 0.48))) === JSON.stringify(layers);
}"""
SLOW_MS = 600_000


def at_rest(page: Any) -> None:
    """Wait until no job runs, because the page reruns when a job ends (see test_typed_while_drawn.py for typing
    meanwhile)."""
    for _ in range(2):
        expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0, timeout=SLOW_MS)
        page.wait_for_timeout(1000)


def open_page(page: Any, name: str) -> None:
    page.get_by_test_id("stSidebarNav").get_by_text(name, exact=True).click()
    expect(page.get_by_role("heading", name=name, level=1)).to_be_visible(timeout=SLOW_MS)


def click_cell(page: Any, layer: int, row: int = 2, *, shift: bool = False) -> None:
    page.wait_for_function(DRAWN)
    x, y = page.evaluate(CELL, [layer, row])
    page.mouse.move(x - 2, y - 2)
    page.mouse.move(x, y)
    if shift:
        page.keyboard.down("Shift")
    page.mouse.click(x, y)
    if shift:
        page.keyboard.up("Shift")


def drag_box(page: Any, first: int, last: int) -> None:
    """Drag with the box tool over columns `first` to `last` of the second row."""
    page.wait_for_function(DRAWN)
    page.locator(".st-key-heatmap .js-plotly-plot").first.hover()
    page.locator(".st-key-heatmap .modebar-btn[data-val='select']").first.click(force=True)
    (left, y), (right, _) = page.evaluate(CELL, [first, 1]), page.evaluate(CELL, [last, 1])
    page.mouse.move(left - 12, y - 8)
    page.mouse.down()
    page.mouse.move((left + right) / 2, y, steps=5)
    page.mouse.move(right + 12, y + 8, steps=5)
    page.mouse.up()


def expect_picked(page: Any, *layers: int) -> None:
    """Wait until the pills and the outlines on the heatmap show `layers`, without a new chart."""
    pressed = page.locator(".st-key-layer-pills button[aria-pressed='true']")
    expect(pressed).to_have_text([str(layer) for layer in layers], timeout=SLOW_MS)
    page.wait_for_function(OUTLINED, arg=list(layers), timeout=SLOW_MS)
    page.wait_for_timeout(500)  # a chart is drawn a moment before Streamlit listens to it


def test_listen_pick_inject_judge_and_find_again(page: Any, app_url: str) -> None:
    page.goto(app_url)
    expect(page.locator(".st-key-heatmap .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    expect(page.locator(".st-key-certificate").first).to_contain_text("BASE", timeout=SLOW_MS)

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

    page.locator(".st-key-run-compare button").first.click()
    for side in ("base", "edited"):
        expect(page.locator(f".st-key-text-{side}").first).to_contain_text(re.compile(r"\w{2}"), timeout=SLOW_MS)

    open_page(page, "Benchmark")
    at_rest(page)
    count = page.locator(".st-key-bench-n input").first
    count.fill("3")
    count.press("Enter")
    expect(page.locator(".st-key-bench-power").first).to_contain_text("n = 3 per subject", timeout=SLOW_MS)
    expect(page.locator(".st-key-run-bench button").first).to_be_enabled(timeout=SLOW_MS)
    page.locator(".st-key-run-bench button").first.click()
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


def test_layers_are_picked_frozen_carried_and_linked(page: Any, app_url: str) -> None:
    page.goto(app_url)
    expect(page.locator(".st-key-heatmap .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    click_cell(page, 1)
    expect_picked(page, 1)
    click_cell(page, 3)
    expect_picked(page, 1, 3)
    click_cell(page, 5, row=4, shift=True)
    expect_picked(page, 1, 3, 4, 5)
    click_cell(page, 4)
    expect_picked(page, 1, 3, 5)
    drag_box(page, 6, 7)
    expect_picked(page, 1, 3, 5, 6, 7)
    page.locator(".st-key-pick-undo button").first.click()
    expect_picked(page, 1, 3, 5)
    page.locator(".st-key-layer-pills button").nth(1).press("Space")  # by keyboard
    expect_picked(page, 3, 5)

    pressed = page.locator(".st-key-layer-pills button[aria-pressed='true']")
    for kind in ("top", "bottom", "random"):
        page.locator(".st-key-pick-none button").first.click()
        expect_picked(page)
        page.locator(f".st-key-pick-{kind} button").first.click()
        expect(pressed).to_have_count(4, timeout=SLOW_MS)
    expect(page.locator(".st-key-freeze").first).to_contain_text("4 drawn at random (seed 0)", timeout=SLOW_MS)
    layers = pressed.all_inner_texts()
    page.locator(".st-key-freeze-prediction button").first.click()
    expect(page.locator(".st-key-freeze-prediction button").first).to_be_disabled(timeout=SLOW_MS)
    expect(page).to_have_url(re.compile("layers=" + "%2C".join(layers)), timeout=SLOW_MS)

    address = page.url
    open_page(page, "Edit")
    expect(page.locator(".st-key-edit-layer-pills button[aria-pressed='true']")).to_have_text(layers, timeout=SLOW_MS)
    open_page(page, "Benchmark")
    expect(page.get_by_text("Run the benchmark").first).to_be_visible(timeout=SLOW_MS)

    page.goto(address)
    expect_picked(page, *map(int, layers))
    expect(page.locator(".st-key-freeze-prediction button").first).to_contain_text("Frozen", timeout=SLOW_MS)


def test_a_figure_is_saved_as_a_picture_and_as_numbers(page: Any, app_url: str) -> None:
    page.goto(app_url)
    expect(page.locator(".st-key-heatmap .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
    page.wait_for_function(DRAWN)
    for kind, magic in (("PNG", b"\x89PNG"), ("SVG", b"<svg")):
        page.locator(".st-key-heatmap-save button").first.click()
        menu = page.get_by_test_id("stPopoverBody").first
        menu.get_by_text(kind, exact=True).click()
        page.wait_for_function(f"{PLOT}._context.toImageButtonOptions.format === '{kind.lower()}'", timeout=SLOW_MS)
        page.keyboard.press("Escape")
        page.locator(".st-key-heatmap .js-plotly-plot").first.hover()
        with page.expect_download() as download:
            page.locator(".st-key-heatmap .modebar-btn[data-title*='ownload']").first.click(force=True)
        assert download.value.suggested_filename == f"heatmap.{kind.lower()}"
        assert Path(download.value.path()).read_bytes().startswith(magic)
    page.locator(".st-key-heatmap-save button").first.click()
    with page.expect_download() as download:
        page.locator(".st-key-heatmap-csv button").first.click()
    lines = Path(download.value.path()).read_text().splitlines()
    assert lines[0].startswith("layer,subject,score,ci_low,ci_high")


def test_a_broken_profile_is_a_message_and_the_app_goes_on(page: Any, app_url: str) -> None:
    page.goto(f"{app_url}/setup")
    expect(page.get_by_role("heading", name="Setup", level=1)).to_be_visible(timeout=SLOW_MS)
    page.goto(f"{app_url}/?run=r-that-never-was")
    expect(page.get_by_test_id("stAlert").first).to_be_visible(timeout=SLOW_MS)
    assert "Traceback" not in page.inner_text("body")
    open_page(page, "Diagnose")
    expect(page.locator(".st-key-heatmap .js-plotly-plot").first).to_be_visible(timeout=SLOW_MS)
