"""Does the server's memory level off? Browsers come, move a slider and go, and the resident set is read after each.

Every browser opens the Edit page of the shipped mini with a recipe of its own layers, so that each move is an edit and
a probe that the server has not answered before. The curve is printed as it grows; at the end stands how much the last
third added to what was there. Streamlit keeps a closed session for a while (two minutes by default), so the curve rises
until the first ones are let go.
Run: python -m benchmarks.soak [--browsers 50] [--moves 20]      (50 x 20 are 1,000 operations, about an hour)
"""

import argparse
import itertools
import shutil
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from benchmarks.startup import FLAGS, ROOT, start_server
from stethoscope.profiles import MINI
from stethoscope.recipes import to_link
from stethoscope.records import EditRecipe, LayerAlpha

N_LAYERS = 10  # of the mini


def resident_mb(pid: int) -> float:
    """Return the resident set of process `pid` in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def visit(browser: Browser, url: str, layers: tuple[int, ...], moves: int) -> None:
    """Open a browser with storage of its own on the Edit page of a recipe, move the slider, and close it."""
    strengths = {layer: LayerAlpha() for layer in layers}
    recipe = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers=strengths)
    visitor = browser.new_context(viewport={"width": 1500, "height": 1200})
    page = visitor.new_page()
    page.goto(f"{url}/edit?recipe={to_link(recipe)}")
    page.locator(".st-key-certificate", has_text="alpha 1 ·").first.wait_for(timeout=600_000)
    for step in range(1, moves + 1):
        move(page, f"{1 - 0.05 * step:.2f}".rstrip("0").rstrip("."))
    visitor.close()


def move(page: Page, alpha: str) -> None:
    """Move the slider down to `alpha` and wait until the strip names it: keys that a redraw swallows are sent again."""
    answered = page.locator(".st-key-certificate", has_text=f"alpha {alpha} ·").first
    while not answered.is_visible():
        thumb = page.locator(".st-key-master-alpha input[type='range']").first
        if abs(float(thumb.input_value()) - float(alpha)) > 1e-6:
            thumb.press("ArrowLeft")
        page.wait_for_timeout(300)


def main() -> None:
    """Print the curve and what the last third of it added."""
    parser = argparse.ArgumentParser(description="Measure the server's memory over many sessions and edits.")
    parser.add_argument("--browsers", type=int, default=50)
    parser.add_argument("--moves", type=int, default=20, help="slider moves of each browser, at most 20")
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "a Chromium is needed"
    recipes = itertools.cycle(itertools.combinations(range(N_LAYERS), 3))
    curve: list[float] = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        server, url = start_server(ROOT / "app.py", Path(folder) / "home")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        started = time.perf_counter()
        try:
            print(f"   0 browsers     0 operations {resident_mb(server.pid):8.0f} MB")
            for number, layers in zip(range(1, options.browsers + 1), recipes, strict=False):
                visit(browser, url, layers, options.moves)
                curve.append(resident_mb(server.pid))
                seconds = time.perf_counter() - started
                print(
                    f"{number:4} browsers {number * options.moves:5} operations {curve[-1]:8.0f} MB, {seconds:.0f} s",
                    flush=True,
                )
        finally:
            browser.close()
            server.terminate()
            server.wait()
    third = max(1, len(curve) // 3)
    before, last = curve[-2 * third : -third] or curve, curve[-third:]
    added = sum(last) / len(last) - sum(before) / len(before)
    print(f"the last third lies {added:+.0f} MB beside the third before it")


if __name__ == "__main__":
    main()
