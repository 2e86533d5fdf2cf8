"""Start-up time of the dashboard: first paint, and the mini diagnosed and on screen, in headless Chromium.

The peer is the same page as a typical Streamlit app, which imports torch, transformers and sae_lens at the top of the
script. Each server starts with an empty home and is opened as soon as it responds. Run: python -m benchmarks.startup
"""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).parent.parent
EAGER = "import torch, transformers, sae_lens\nimport streamlit as st\nst.title('Layer diagnosis')\n"
FLAGS = "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run".split()  # noqa: SIM905


def start_server(script: Path, home: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start `script` on a free port and return the process and its URL once it responds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(script), "--server.port", str(port)],
        cwd=ROOT,
        env=os.environ | {"STETHOSCOPE_HOME": str(home)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{url}/_stcore/health", timeout=1)
            return server, url
        except OSError:
            assert server.poll() is None, "the server did not start"
            time.sleep(0.02)


def seconds_to(page: Page, url: str, *selectors: str) -> list[float]:
    """Open `url` and return the seconds until each selector is visible, in the given order."""
    started = time.perf_counter()
    page.goto(url)
    seen = []
    for selector in selectors:
        page.locator(selector).first.wait_for(state="visible", timeout=120_000)
        seen.append(time.perf_counter() - started)
    return seen


def main() -> None:
    """Measure both, print seconds and the ratio."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    assert chromium, "Chromium is required"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        eager = Path(folder) / "eager.py"
        eager.write_text(EAGER, encoding="utf-8")
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        server, url = start_server(ROOT / "app.py", Path(folder) / "home")
        try:
            page = browser.new_page()
            heading, heatmap = seconds_to(page, url, "h1", ".st-key-heatmap .js-plotly-plot")
        finally:
            server.terminate()
            server.wait()
        server, url = start_server(eager, Path(folder) / "peer")
        try:
            (peer,) = seconds_to(browser.new_page(), url, "h1")
        finally:
            server.terminate()
            server.wait()
        browser.close()
    print(f"first paint            {heading:6.2f} s")
    print(f"mini diagnosed, shown  {heatmap:6.2f} s (empty home, nothing precomputed)")
    print(f"peer's first paint     {peer:6.2f} s (torch, transformers, sae_lens imported by the script)")
    print(f"ratio                  {peer / heading:6.2f} x faster than the peer")


if __name__ == "__main__":
    main()
