"""The figure shows the result's numbers, and the caption explains them for every outcome."""

import sys
from pathlib import Path

import pytest

from stethoscope.figures import agreement
from stethoscope.figures.theme import BLUE, ORANGE
from stethoscope.profiles import MINI
from stethoscope.records import GainSpec
from stethoscope.results import AgreementRow, GainResult

sys.path.insert(0, str(Path(__file__).parent.parent / "screens"))

from fake_front import gain


@pytest.fixture(scope="module")
def result() -> GainResult:
    return gain(GainSpec(diagnosis=MINI.diagnose_spec(), task_vector=MINI.task_vectors[0]))


def with_taus(result: GainResult, **taus: tuple[float | None, float | None]) -> GainResult:
    """Change tau and p of some predictors."""

    def changed(row: AgreementRow) -> AgreementRow:
        tau, p = taus.get(row.predictor, (row.kendall_tau, row.p))
        return row.model_copy(update={"kendall_tau": tau, "p": p})

    return result.model_copy(update={"agreement": tuple(changed(row) for row in result.agreement)})


def test_points_are_score_against_gain_with_both_intervals_and_picked_layers_are_orange(result: GainResult) -> None:
    figure = agreement.scatter(result, "all", [3, 6])
    others, picked = figure.data
    assert (others.marker.color, picked.marker.color) == (BLUE, ORANGE)
    assert list(picked.text) == ["<b>3</b>", "<b>6</b>"]
    gains = {cell.layer: cell for cell in result.cells if cell.subject == "all"}
    assert list(picked.y) == [gains[3].gain, gains[6].gain]
    assert list(picked.x) == pytest.approx([0.1 + 20 * gains[3].gain, 0.1 + 20 * gains[6].gain])
    assert list(picked.error_y.array) == pytest.approx([0.002, 0.002])
    assert list(picked.error_x.arrayminus) == pytest.approx([0.03, 0.03])
    assert "layer 3" in picked.hovertext[0]
    assert len(agreement.scatter(result, "all", []).data) == 1


def test_a_layer_without_a_score_is_not_drawn(result: GainResult) -> None:
    cells = tuple(c.model_copy(update={"value": None} if c.layer == 4 else {}) for c in result.predictors)
    figure = agreement.scatter(result.model_copy(update={"predictors": cells}), "geometry", [])
    assert "<b>4</b>" not in figure.data[0].text
    assert len(figure.data[0].x) == 9


def test_the_forest_has_a_row_a_predictor_and_the_score_on_trial_in_orange(result: GainResult) -> None:
    figure = agreement.forest(result, "all")
    blue, orange = figure.data
    assert list(orange.y) == ["specificity: mean rate difference"]
    assert list(orange.x) == [0.3]
    assert list(orange.error_x.arrayminus) == pytest.approx([0.3])
    assert dict(zip(blue.y, blue.x, strict=True)) == {"first-order effect": 0.8, "depth": 0.42}
    said = {note.y: note.text for note in figure.layout.annotations}
    assert said["linear probe AUROC"] == "same value in every layer"
    band = next(shape for shape in figure.layout.shapes if shape.type == "rect")
    assert (band.x0, band.x1) == (-0.47, 0.47)


def test_the_caption_says_what_the_numbers_say(result: GainResult) -> None:
    said = agreement.caption(result, "all")
    assert "does not predict which layers help better than chance (τ +0.30, p = .200)" in said
    assert "and is no better than layer depth (τ +0.42)." in said
    assert "Best predictor: first-order effect (τ +0.80)." in said
    assert "n = 16 dev problems" in said
    better = agreement.caption(with_taus(result, mean_rate_difference=(0.7, 0.01)), "all")
    assert "predicts which layers help (τ +0.70, p = .010), and is better than layer depth" in better
    against = agreement.verdict(with_taus(result, mean_rate_difference=(-0.7, 0.01)), "all")
    assert "in the opposite order of their gain" in against
    assert "no better than layer depth" in against
    unknown = agreement.verdict(with_taus(result, mean_rate_difference=(None, None)), "all")
    assert unknown == "Mean rate difference has the same value in all layers."


def test_a_tau_over_few_layers_is_said_to_be_unable_and_idle_layers_are_named(result: GainResult) -> None:
    rows = [
        row.model_copy(update={"n_layers": 4, "cannot_be_significant": row.predictor != "probe_auroc"})
        for row in result.agreement
    ]
    cells = [
        cell.model_copy(update={"gain": None, "ci_low": None, "ci_high": None} if cell.layer < 6 else {})
        for cell in result.cells
    ]
    few = result.model_copy(
        update={"agreement": tuple(rows), "cells": tuple(cells), "idle": tuple(range(6)), "top_n": 2}
    )
    said = agreement.caption(few, "all")
    assert "cannot be significant at this size" in agreement.verdict(few, "all")
    assert "does not predict" not in said
    assert "layers 0-5" in said
    assert "4 layers injected one at a time" in said
    assert [text for trace in agreement.scatter(few, "all", [7]).data for text in trace.text] == [
        "<b>6</b>",
        "<b>8</b>",
        "<b>9</b>",
        "<b>7</b>",
    ]
    assert {mark for trace in agreement.forest(few, "all").data for mark in trace.marker.symbol} == {"x-thin-open"}
    assert {mark for trace in agreement.forest(result, "all").data for mark in trace.marker.symbol} == {"circle"}


def test_harm_to_control_text_is_said_only_where_the_interval_is_clear_of_zero(result: GainResult) -> None:
    assert "No layer makes control text significantly less likely." in agreement.caption(result, "all")
    cells = tuple(
        c.model_copy(
            update={5: {"gain": -0.3, "ci_high": -0.1}, 6: {"gain": -0.4}}.get(c.layer, {}) if c.is_control else {}
        )
        for c in result.cells
    )
    said = agreement.caption(result.model_copy(update={"cells": cells}), "geometry")
    assert "less likely in layers 5 (at worst −0.3000 nats per token, layer 5)" in said


def test_sets_are_ranked_in_words(result: GainResult) -> None:
    said = agreement.sets_caption(result, "all")
    assert (
        "top 4 by mean rate difference (3, 6, 7, 9) gain +0.0136; 20 of 99 random sets do as well (p = .210)." in said
    )
