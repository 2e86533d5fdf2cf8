"""The CSV button in a table's toolbar, clicked in a real browser."""

import csv
from pathlib import Path
from typing import Any

from playwright.sync_api import expect

from tests.browser.serving import ROOT, served

SCRIPT = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from screens.shared import ui
rows = [{{"arm": "=1+1", "difference": "+5.0", "share": -0.5}}, {{"arm": "plain", "difference": "0", "share": None}}]
ui.table(rows, key="rows", alt="Rows")
"""


def test_the_toolbar_saves_text_and_numbers_and_no_formula(browser: Any, tmp_path: Path) -> None:
    script = tmp_path / "tables.py"
    script.write_text(SCRIPT)
    with served(script, {}, tmp_path / "log.txt") as url:
        context = browser.new_context()
        page = context.new_page()
        page.add_init_script("delete window.showSaveFilePicker")  # no dialog of the system: a download
        page.goto(url)
        table = page.get_by_test_id("stDataFrame")
        expect(table).to_be_visible(timeout=60_000)
        table.hover()
        with page.expect_download() as download:
            page.get_by_role("button", name="Download as CSV").click()
        rows = list(csv.reader(Path(download.value.path()).read_text("utf-8-sig").splitlines()))
        context.close()
    assert rows == [["arm", "difference", "share"], ["'=1+1", "'+5.0", "-0.5"], ["plain", "0", ""]]
