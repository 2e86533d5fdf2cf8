"""Every figure can be saved: as an image by the camera button, and its numbers as CSV."""

import csv
import io
import json
from collections.abc import Callable

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest

from screens.shared import ui

Open = Callable[..., AppTest]


def camera(app: AppTest) -> list[dict[str, object]]:
    return [json.loads(chart.proto.config)["toImageButtonOptions"] for chart in app.get("plotly_chart")]


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("setup", ["norms"]),
        ("features", ["latents-chart"]),
        ("diagnose", ["heatmap", "strip", "stability", "retention", "enrichment"]),
        ("edit", ["strengths", "probe"]),
        ("benchmark", ["forest"]),
    ],
)
def test_every_figure_is_saved_as_picture_and_as_csv(
    name: str, own: list[str], front: FakeFront, open_page: Open
) -> None:
    app = open_page(name, layers=[3, 5])
    if name == "benchmark":
        app.button(key="run-bench").click().run()
    names = [options["filename"] for options in camera(app)]
    assert set(own) <= set(names)
    buttons = [str(button.proto.id) for button in app.get("download_button")]
    for figure in names:
        assert any(button.endswith(f"-{figure}-csv") for button in buttons), figure


def test_the_chosen_format_is_that_of_every_figure_on_every_page(open_page: Open) -> None:
    app = open_page("diagnose")
    assert {options["format"] for options in camera(app)} == {"png"}
    app.segmented_control(key="strip-picture").set_value("SVG").run()
    app.run()
    assert {options["format"] for options in camera(app)} == {"svg"}
    app.switch_page("screens/setup/setup.py").run()
    assert {options["format"] for options in camera(app)} == {"svg"}


def test_a_csv_holds_the_rows_of_the_figure(monkeypatch: pytest.MonkeyPatch, open_page: Open) -> None:
    written: dict[str, str] = {}

    def keep(label: str, data: Callable[[], str], file_name: str, *_: object, **__: object) -> bool:
        written[file_name] = data()
        return False

    monkeypatch.setattr(ui.st, "download_button", keep)
    app = open_page("diagnose", subject="geometry")
    assert not app.exception
    rows = list(csv.DictReader(io.StringIO(written["strip.csv"])))
    assert {row["subject"] for row in rows} == {"geometry"}
    assert len({row["control"] for row in rows}) == 2
    assert [int(row["layer"]) for row in rows] == [*range(10), *range(10)]
    assert len(list(csv.DictReader(io.StringIO(written["heatmap.csv"])))) == 70
