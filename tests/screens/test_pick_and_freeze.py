"""Pick layers, share them by link, freeze them, and see the prediction in a benchmark."""

import json
from collections.abc import Callable

import pytest
from fake_front import FakeFront
from streamlit.testing.v1 import AppTest
from test_pages import asked, texts

from stethoscope.judging.predictions import random_pick
from stethoscope.profiles import MINI
from stethoscope.records import BenchSpec, DiagnoseSpec

Open = Callable[..., AppTest]


def click(app: AppTest, *keys: str) -> AppTest:
    for key in keys:
        app.button(key=key).click().run()
    return app


def order_of(front: FakeFront) -> tuple[int, ...]:
    return front.snapshot(front.submit(MINI.diagnose_spec())).result.order["algebra"]  # type: ignore[union-attr]


def outlined(app: AppTest) -> list[int]:
    shapes = json.loads(app.get("plotly_chart")[0].proto.spec)["layout"].get("shapes", [])
    return [round(shape["x0"] + 0.48) for shape in shapes]


def test_top_bottom_random_undo_and_clear(front: FakeFront, open_page: Open) -> None:
    app, order = open_page("diagnose"), order_of(front)
    app.number_input(key="top-n").set_value(3).run()
    for kind, expected in (
        ("top", sorted(order[:3])),
        ("bottom", sorted(order[-3:])),
        ("random", list(random_pick(10, 3, 0))),
    ):
        click(app, f"pick-{kind}")
        assert app.session_state["layers"] == expected
        assert outlined(app) == expected
    app.number_input(key="pick-seed").set_value(5).run()
    click(app, "pick-random")
    assert app.session_state["layers"] == list(random_pick(10, 3, 5))
    click(app, "pick-none")
    assert app.session_state["layers"] == []
    click(app, "pick-undo")
    assert app.session_state["layers"] == list(random_pick(10, 3, 5))
    click(app, "pick-undo", "pick-undo")
    assert app.session_state["layers"] == sorted(order[-3:])
    click(app, "pick-undo", "pick-undo")
    assert app.session_state["layers"] == []
    assert app.button(key="pick-undo").disabled


def test_the_pick_stands_in_the_link_and_the_link_restores_it(front: FakeFront, open_page: Open) -> None:
    app = click(open_page("diagnose", subject="geometry"), "pick-top")
    layers = app.session_state["layers"]
    assert app.query_params["layers"] == ",".join(map(str, layers))
    assert app.query_params["subject"] == "geometry"
    again = open_page("diagnose", query={"layers": "8,3", "subject": "geometry"})
    assert again.session_state["layers"] == [3, 8]
    assert again.selectbox(key="subject-select").value == "geometry"
    assert outlined(again) == [3, 8]
    drawn = click(again, "pick-random", "freeze-prediction")
    assert drawn.query_params["seed"] == "0"
    query = {name: str(drawn.query_params[name]) for name in ("layers", "subject", "seed")}
    assert open_page("diagnose", query=query).button(key="freeze-prediction").disabled, "it is the same, frozen claim"
    assert open_page("diagnose", query=query | {"seed": "7"}).session_state["layers"] == drawn.session_state["layers"]
    assert not asked(front, BenchSpec)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"layers": "3,x"}, "the link's layers cannot be read"),
        ({"layers": "-1"}, "the link's layers cannot be read"),
        ({"layers": "3," * 500}, "the link's layers cannot be read"),
        ({"subject": "<b>alchemy"}, "the link contains an unknown subject"),
        ({"layers": "3,77"}, "the link contains layers that the model does not have"),
    ],
)
def test_a_link_that_does_not_fit_is_a_message(query: dict[str, str], said: str, open_page: Open) -> None:
    app = open_page("diagnose", query=query)
    assert not app.exception
    assert said in texts(app)
    assert app.session_state["layers"] == []
    assert app.get("plotly_chart")


def test_a_pick_is_frozen_once_with_what_made_it(front: FakeFront, open_page: Open) -> None:
    app = click(open_page("diagnose"), "pick-top", "freeze-prediction")
    (stored,) = front.store.list_predictions()
    prediction, order = stored.prediction, order_of(front)
    assert prediction.picked == "top"
    assert prediction.seed is None
    assert prediction.diagnosis == MINI.diagnose_spec()
    assert list(prediction.recipe.layers) == sorted(order[:4])
    cells = front.snapshot(front.submit(MINI.diagnose_spec())).result.cells  # type: ignore[union-attr]
    scores = {cell.layer: cell.score for cell in cells if cell.subject == "algebra"}
    assert prediction.scores == tuple(scores[layer] for layer in sorted(order[:4]))
    assert app.button(key="freeze-prediction").disabled
    click(app, "pick-random")
    assert not app.button(key="freeze-prediction").disabled
    click(app, "freeze-prediction")
    newest = front.store.list_predictions()[0].prediction
    assert (newest.picked, newest.seed) == ("random", 0)
    assert len(app.dataframe[0].value) == 2
    app.selectbox(key="subject-select").set_value("geometry").run()
    click(app, "pick-undo")
    assert "picked by hand; geometry" in texts(app), "the top of algebra is no top of geometry"


def test_no_pick_and_a_diagnosis_under_way_freeze_nothing(front: FakeFront, open_page: Open) -> None:
    app = open_page("diagnose")
    assert not [button for button in app.button if button.key == "freeze-prediction"]
    click(app, "pick-top")
    front.state = "running"
    app.number_input(key="top-k").set_value(8).run()
    assert asked(front, DiagnoseSpec)[-1].top_k == 8
    assert outlined(app), "the former heatmap stays"
    assert not [button for button in app.button if button.key == "freeze-prediction"]


def run_benchmark(app: AppTest, controls: list[str], draws: int) -> AppTest:
    app.switch_page("screens/benchmark/benchmark.py").run()
    app.session_state["bench_controls"] = controls
    app.session_state["bench_draws"] = draws
    app.run()
    return click(app, "run-bench")


def test_the_benchmark_says_when_it_was_frozen_and_against_what(front: FakeFront, open_page: Open) -> None:
    app = click(open_page("diagnose"), "pick-top", "freeze-prediction")
    run_benchmark(app, ["all layers", "random layers", "last layers", "bottom layers"], 3)
    assert not app.exception
    said = texts(app)
    assert "before this run." in said
    assert "points compared with the mean of 3 random draws" in said
    assert "points compared with last layers" in said
    assert not app.warning
    assert not app.info
    assert "To test the pick" not in said
    app.switch_page("screens/diagnose/diagnose.py").run()
    assert "already been benchmarked" not in texts(app)  # it was frozen first


def test_missing_controls_and_a_late_freeze_are_told(front: FakeFront, open_page: Open) -> None:
    app = run_benchmark(click(open_page("diagnose"), "pick-top"), ["random layers"], 1)
    assert "Frozen prediction" not in texts(app)
    app.switch_page("screens/diagnose/diagnose.py").run()
    assert "already been benchmarked" in texts(app)
    click(app, "freeze-prediction")
    assert "already been benchmarked" in texts(app)
    app.switch_page("screens/benchmark/benchmark.py").run()
    assert "it does not count as a prediction" in texts(app)
    assert app.info[0].value == (
        "To test the pick, add: random layers (at least two draws), bottom layers, last layers, all layers."
    )


def test_totals_are_in_points_and_n_is_said_once(front: FakeFront, open_page: Open) -> None:
    app = run_benchmark(click(open_page("diagnose"), "pick-top"), ["random layers"], 1)
    card = next(metric for metric in app.metric if metric.label == "recipe")
    assert card.value == "+7.0 points"
    assert card.delta == "95% CI [+2.0, +12.0]"
    assert any("n = 700 problems; bootstrap" in caption.value for caption in app.caption)
    table = next(frame.value for frame in app.dataframe if "mean over" in frame.value.columns)
    row = table[table["arm"] == "recipe"].iloc[0].to_dict()
    assert row["mean over"] == "subjects (macro)"
    assert row["difference, points"] == pytest.approx(7.0)
    assert row["95% CI, points"] == "[+2.0, +12.0]"
    assert (row["exact match"], row["its exact match"]) == ("44.0%", "37.0%")


def test_picked_layers_lead_to_their_edit(open_page: Open) -> None:
    for layers in ([], [3, 5]):
        app = open_page("diagnose", layers=layers)
        (link,) = [link for link in app.get("page_link") if "Edit" in link.proto.label]
        assert link.proto.disabled == (not layers)
