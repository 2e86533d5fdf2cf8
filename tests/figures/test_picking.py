"""Layers picked on the heatmap by click, box and shift-click, from Streamlit's selection events."""

import pytest

from stethoscope.figures.layer_claims import against_controls, caption
from stethoscope.figures.picking import Pick, picked_after, picked_up_to
from stethoscope.results import LayerClaim


def event(*cells: tuple[int, str], box: bool = False) -> dict[str, object]:
    points = [{"customdata": {"0": layer, "1": subject}} for layer, subject in cells]
    return {"selection": {"points": points, "box": [{"x": [0, 1], "y": [0, 1]}] if box else []}}


def test_a_click_puts_a_layer_in_and_out() -> None:
    assert picked_after(event((3, "algebra")), [5]) == Pick((3, 5), 3)
    assert picked_after(event((5, "geometry")), [3, 5]) == Pick((3,), 5)


def test_a_box_adds_its_layers_and_takes_none_away() -> None:
    assert picked_after(event((1, "a"), (1, "b"), (2, "a"), box=True), [2, 7]) == Pick((1, 2, 7), None)
    assert picked_after(event((2, "a"), box=True), [2]) == Pick((2,), None), "a box of one column is no click"


@pytest.mark.parametrize("nothing", [None, {}, {"selection": {"points": [], "box": []}}, event(box=True)])
def test_an_empty_selection_picks_nothing(nothing: object) -> None:
    assert picked_after(nothing, [3]) is None


def test_a_shift_click_reaches_from_the_last_click_both_ways() -> None:
    assert picked_up_to(6, [1, 4], 4) == Pick((1, 4, 5, 6), 4)
    assert picked_up_to(2, [4], 4) == Pick((2, 3, 4), 4)
    assert picked_up_to(6, [1], None) == Pick((1, 6), 6)


def test_the_outcome_figure_shows_each_control_in_points() -> None:
    row = LayerClaim(
        arm="recipe",
        control="random",
        draws=3,
        n=200,
        difference=0.123,
        ci_low=0.05,
        ci_high=0.2,
        p=0.001,
        p_holm=0.002,
        verdict="better",
    )
    other = row.model_copy(update={"control": "last", "draws": 1, "difference": -0.02, "verdict": "inconclusive"})
    figure = against_controls((row, other), 0.03)
    trace = figure.to_dict()["data"][0]
    assert list(trace["x"]) == pytest.approx([12.3, -2.0])
    assert trace["error_x"]["array"][0] == pytest.approx(7.7)
    assert trace["error_x"]["arrayminus"][0] == pytest.approx(7.3)
    assert list(figure.layout.yaxis.ticktext) == ["random layers", "last layers"]
    said = caption((row, other), 0.03)
    assert "+12.3 points compared with the mean of 3 random draws" in said
    assert "Holm p = .002, n = 200: better" in said
    assert "−2.0 points compared with last layers" in said
