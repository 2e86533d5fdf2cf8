"""An address of one screen, opened first in a fresh process, shows that screen inside the app."""

from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.browser.serving import ROOT, served


def test_a_link_into_a_fresh_process_opens_its_screen(browser: Any, tmp_path: Path) -> None:
    with served(ROOT / "app.py", {"STETHOSCOPE_HOME": str(tmp_path / "home")}, tmp_path / "log.txt") as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(f"{url}/runs")
        expect(page.get_by_role("heading", name="Runs", exact=True)).to_be_visible(timeout=120_000)
        expect(page.get_by_role("link", name="Diagnose")).to_be_visible()  # the navigation is there, too
        assert page.url.rstrip("/").endswith("/runs")
        context.close()
