"""Server memory over many visitors, who use the pages of the mini one after another.

A visitor is a separate connection that uses the browser's protocol without rendering. Each visitor opens the Edit page
with a recipe of its own layers (a dose curve), moves the slider to new alphas, opens the energy of a subject on
Diagnose, runs a benchmark with n = 2, and opens Runs. Each of these is one operation, so 50 visitors with two moves
are 300 operations. Memory is printed every 25 operations, and at the end the slope and scatter of the last third.
Streamlit keeps a closed session for two minutes, so memory rises until the first ones are released. Run: python -m
benchmarks.soak [--visitors 50] [--moves 2]        (about 40 minutes on two cores)
"""

import argparse
import itertools
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from streamlit.proto.BackMsg_pb2 import BackMsg
from streamlit.proto.ForwardMsg_pb2 import ForwardMsg
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Subprotocol

from benchmarks.startup import ROOT, start_server
from stethoscope.formatting import pretty
from stethoscope.profiles import MINI
from stethoscope.recipes.files import to_link
from stethoscope.records import EditRecipe, LayerAlpha

N_LAYERS = 10  # of the mini
PROTOCOL = Subprotocol("streamlit")
STEP = 25  # operations between two printed lines
PATIENCE_S = 1800.0  # timeout of one answer: only a hang takes that long
LOOK_S = 1.0


class Point(NamedTuple):
    """One reading: operations so far, visitors so far, and the server's resident set in MB."""

    operations: int
    visitors: int
    resident_mb: float


class Visitor:
    """One session of the dashboard at `page`; it knows its widgets by key."""

    def __init__(self, connection: ClientConnection, page: str, query: str) -> None:
        self._connection = connection
        self._widgets: dict[str, str] = {}
        self._shown = ""
        self._page, self._query = page, query
        self.draw()

    def open(self, page: str) -> None:
        """Go to another page, like a click in the sidebar."""
        self._page, self._query = page, ""
        self.draw()

    def draw(self, key: str | None = None, **value: object) -> None:
        """Rerun the page with a new value of the widget `key` (one field of Streamlit's WidgetState)."""
        message = BackMsg()
        message.rerun_script.page_name, message.rerun_script.query_string = self._page, self._query
        if key is not None:
            state = message.rerun_script.widget_states.widgets.add(id=self._widgets[key])
            for field, given in value.items():
                if isinstance(given, list):
                    getattr(state, field).data.extend(given)
                else:
                    setattr(state, field, given)
        self._connection.send(message.SerializeToString())
        shown = []
        while True:
            raw = self._connection.recv(timeout=PATIENCE_S)
            assert isinstance(raw, bytes)
            answer = ForwardMsg.FromString(raw)
            shown.append(raw.decode("utf-8", "replace"))
            if answer.WhichOneof("type") == "page_info_changed":
                self._query = answer.page_info_changed.query_string
            if answer.WhichOneof("type") == "script_finished" and answer.script_finished in (
                ForwardMsg.FINISHED_SUCCESSFULLY,
                ForwardMsg.FINISHED_EARLY_FOR_RERUN,
            ):
                break
        self._shown = "\n".join(shown)
        self._widgets |= {found[1]: found[0] for found in re.finditer(r"\$\$ID-[0-9a-f]+-([\w.-]+)", self._shown)}

    def wait_for(self, *patterns: str, button: str | None = None) -> None:
        """Rerun the page until it contains all `patterns`, clicking `button` if it is present."""
        deadline = time.monotonic() + PATIENCE_S
        while not all(re.search(pattern, self._shown) for pattern in patterns):
            assert time.monotonic() < deadline, f"{patterns} did not come on {self._page}"
            if button is not None and (asked := re.search(rf"\$\$ID-[0-9a-f]+-{button}\b", self._shown)):
                self._widgets[button] = asked[0]
                self.draw(button, trigger_value=True)
            else:
                time.sleep(LOOK_S)
                self.draw()


def resident_mb(pid: int) -> float:
    """Return the resident set of process `pid` in MB."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) * 1024 / 1e6


def visit(url: str, layers: tuple[int, ...], *, number: int, moves: int) -> Iterator[str]:
    """Open a session, yield the name of each operation when it is finished, and close the session."""
    strengths = {layer: LayerAlpha() for layer in layers}
    recipe = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers=strengths)
    address = f"{url.replace('http', 'ws')}/_stcore/stream"
    with connect(address, subprotocols=[PROTOCOL], max_size=None, open_timeout=PATIENCE_S) as connection:
        visitor = Visitor(connection, "edit", f"recipe={to_link(recipe)}")
        visitor.wait_for(r"alpha 1\b", "dose-csv", button="dose-ask")
        yield "dose"
        for step in range(1, moves + 1):
            alpha = round(1 - 0.05 * step, 2)
            visitor.draw("master-alpha", double_array_value=[alpha])
            visitor.wait_for(rf"alpha {alpha:g}\b")
            yield "edit"
        visitor.open("diagnose")
        visitor.wait_for("subject-select")
        subject = MINI.problems.subjects[number % len(MINI.problems.subjects)]
        visitor.draw("subject-select", string_value=pretty(subject))
        visitor.wait_for("retention-csv", button="energy-ask")
        yield "energy"
        visitor.open("benchmark")
        visitor.wait_for("bench-tokens")
        visitor.draw("bench-n", int_value=2)
        visitor.draw("bench-tokens", int_value=16)
        visitor.wait_for("run-bench")
        visitor.draw("run-bench", trigger_value=True)
        visitor.wait_for("95% CI")
        yield "benchmark"
        visitor.open("runs")
        visitor.wait_for("open-run")
        yield "runs"


def last_third(curve: list[Point]) -> tuple[float, float]:
    """Return the slope of the curve's last third in MB per 100 operations, and the scatter around it in MB (one sd)."""
    third = curve[-max(3, len(curve) // 3) :]
    x, y = np.array([point.operations for point in third]), np.array([point.resident_mb for point in third])
    slope, start = np.polyfit(x, y, 1)
    return 100 * float(slope), float(np.std(y - (slope * x + start), ddof=2))


def main() -> None:
    """Print memory over operations, and the slope of the last third."""
    parser = argparse.ArgumentParser(description="Measure the server's memory over many sessions and edits.")
    parser.add_argument("--visitors", type=int, default=50)
    parser.add_argument("--moves", type=int, default=2, help="slider moves per visitor, at most 20")
    options = parser.parse_args()
    recipes = itertools.cycle(itertools.combinations(range(N_LAYERS), 3))
    curve: list[Point] = []
    with tempfile.TemporaryDirectory() as folder:
        server, url = start_server(ROOT / "app.py", Path(folder) / "home")
        started = time.perf_counter()
        try:
            print(f"   0 operations,  0 visitors {resident_mb(server.pid):6.0f} MB", flush=True)
            for number, layers in zip(range(1, options.visitors + 1), recipes, strict=False):
                for _ in visit(url, layers, number=number, moves=options.moves):
                    point = Point(len(curve) + 1, number, resident_mb(server.pid))
                    curve.append(point)
                    if point.operations % STEP == 0:
                        seconds = time.perf_counter() - started
                        print(
                            f"{point.operations:4} operations, {number:2} visitors {point.resident_mb:6.0f} MB,"
                            f" {seconds:.0f} s",
                            flush=True,
                        )
        finally:
            server.terminate()
            server.wait()
    slope, scatter = last_third(curve)
    print(f"last third: {slope:+.1f} MB per 100 operations, scatter {scatter:.1f} MB")


if __name__ == "__main__":
    main()
