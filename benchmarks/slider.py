"""Latency of the Edit page's slider on the mini: from a slider move to the redrawn figure, in headless Chromium.

Master alpha moves one step at a time with the picked layers, the likelihood check (16 dev problems per subject and 16
texts per control corpus) is run with the edited model, and the status strip shows the new alpha with the certificate.
The peer runs the same check like tools that merge to disk: write the edited checkpoint, load it, score. Run: python -m
benchmarks.slider
"""

import argparse
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from benchmarks.startup import FLAGS, ROOT, start_server
from stethoscope import pipeline
from stethoscope.model.likelihood import encode_solutions, rows_nll
from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.probe_items import batch_size, gold_pairs
from stethoscope.profiles import MINI
from stethoscope.progress import Progress
from stethoscope.recipes.files import to_link
from stethoscope.records import EditRecipe, ExportSpec, LayerAlpha, ModelRef, ProbeSpec
from stethoscope.store.runs import RunStore

LAYERS = (3, 4, 8, 9)


def recipe_at(alpha: float) -> EditRecipe:
    """Return the edit of `LAYERS` at a master alpha."""
    layers = {layer: LayerAlpha() for layer in LAYERS}
    return EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers=layers, master_alpha=alpha)


def moved(page: Page, moves: int) -> list[float]:
    """Move the slider `moves` steps and return the seconds from each key press to the updated status strip."""
    thumb = page.locator(".st-key-master-alpha input[type='range']").first
    seconds = []
    for step in range(1, moves + 1):
        alpha = f"alpha {1 - 0.05 * step:.2f}".rstrip("0")
        thumb.focus()
        started = time.perf_counter()
        thumb.press("ArrowLeft")
        page.locator(".st-key-certificate", has_text=f"{alpha} ·").first.wait_for(timeout=60_000)
        seconds.append(time.perf_counter() - started)
        time.sleep(0.5)
    return seconds


def by_disk(folder: Path, alpha: float, context: Context) -> float:
    """Return the seconds to write the edited checkpoint, load it and score the items of the likelihood check."""
    spec = ProbeSpec(recipe=recipe_at(alpha), problems=MINI.problems)
    started = time.perf_counter()
    out = folder / f"edited-{alpha}"
    pipeline.run(ExportSpec(recipe=spec.recipe, out=str(out), kind="checkpoint"), context, Progress())
    loaded = load_checkpoint(ModelRef(id=str(out)), device="cpu", progress=Progress())
    pairs, _ = gold_pairs(spec.problems, spec.split, spec.n, spec.seed)
    rows, scored = encode_solutions(loaded, pairs)
    rows_nll(loaded, rows, scored, batch_size=batch_size(loaded), progress=Progress())
    return time.perf_counter() - started


def main() -> None:
    """Measure both, print seconds and the ratio."""
    parser = argparse.ArgumentParser(description="Measure the latency from slider to figure.")
    parser.add_argument("--moves", type=int, default=12)
    moves = parser.parse_args().moves
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "Chromium is required"
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        server, url = start_server(ROOT / "app.py", folder / "home")
        try:
            browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
            page = browser.new_page(viewport={"width": 1500, "height": 1200})
            page.goto(f"{url}/edit?recipe={to_link(recipe_at(1.0))}")
            page.get_by_text("Choose alpha here, on dev items").first.wait_for(timeout=120_000)  # the curve is complete
            time.sleep(2)
            ours = moved(page, moves)
            browser.close()
        finally:
            server.terminate()
            server.wait()
        context = Context(RunStore(folder / "peer"), device="cpu")
        context.load(MINI.model, Progress())
        peer = [by_disk(folder, 1 - 0.05 * step, context) for step in range(1, 4)]
        context.close()
    ours.sort()
    print(f"slider to figure    median {statistics.median(ours):.2f} s, slowest {ours[-1]:.2f} s of {moves} moves")
    print(f"write, load, score  median {statistics.median(peer):.2f} s, without a page")
    print(f"ratio               {statistics.median(peer) / statistics.median(ours):.2f} x faster than by disk")


if __name__ == "__main__":
    main()
