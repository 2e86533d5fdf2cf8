"""Every figure by layer, for a model with SAEs on layers 2, 3 and 6 and a task vector on 1, 3, 4 and 6.

Every point is at its own layer and has the result's value. Missing values are not drawn, and the reason is given.
"""

from collections.abc import Callable, Iterable
from typing import Any

import plotly.graph_objects as go
import pytest

from stethoscope.figures import agreement, energy, rank, sizes, specificity, stability, strengths
from stethoscope.figures.tables import to_csv
from stethoscope.profiles import Profile
from stethoscope.records import (
    EditRecipe,
    EnergySpec,
    GainSpec,
    InfoSpec,
    LayerAlpha,
    PreflightSpec,
    RankSpec,
    StabilitySpec,
)
from stethoscope.results import DiagnosisResult, EnergyResult, GainResult, PreflightResult, StabilityResult

HEARD = (2, 3, 6)
MOVED = (1, 3, 4, 6)
ALL = tuple(range(8))
SUBJECT = "geometry"
Run = Callable[..., Any]


def columns(figure: go.Figure, kind: str) -> dict[tuple[int, int], float]:
    """Return the values of the heatmaps (or bars) of `figure` by x and row, without missing ones."""
    found: dict[tuple[int, int], float] = {}
    for trace in figure.to_dict()["data"]:
        if trace["type"] == kind:
            rows = trace["z"] if kind == "heatmap" else [trace["y"]]
            for row, values in enumerate(rows):
                found |= {(x, row): value for x, value in zip(trace["x"], values, strict=True) if value is not None}
    return found


def notes(figure: go.Figure, text: str) -> set[int]:
    """Return the x positions of the annotation `text` in `figure`."""
    return {note["x"] for note in figure.to_dict()["layout"].get("annotations", ()) if note["text"] == text}


def tick_layers(figure: go.Figure) -> tuple[int, ...]:
    return tuple(figure.to_dict()["layout"]["xaxis"]["tickvals"])


def strings(value: Any) -> Iterable[str]:
    """Yield every text in a figure."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from strings(item)


def assert_no_words_for_nothing(figure: go.Figure, *captions: str) -> None:
    for text in (*strings(figure.to_dict()), *captions):
        assert not {"None", "nan", "NaN", "inf"} & set(text.replace(",", " ").split()), text
        assert ",," not in text
        assert "– to –" not in text


@pytest.fixture(scope="module")
def diagnosis(partial_profile: Profile, partial_run: Run) -> DiagnosisResult:
    return partial_run(partial_profile.diagnose_spec())


@pytest.fixture(scope="module")
def without_a_score(diagnosis: DiagnosisResult) -> DiagnosisResult:
    """The diagnosis if no latent of layer 3 were live for the subject."""
    gone = {"score": None, "ci_low": None, "ci_high": None, "p": None, "p_adjusted": None, "specific": None}
    cells = tuple(
        cell.model_copy(update={**gone, "n_live": 0, "p_top": None})
        if (cell.layer, cell.subject) == (3, SUBJECT)
        else cell
        for cell in diagnosis.cells
    )
    return diagnosis.model_copy(update={"cells": cells, "order": diagnosis.order | {SUBJECT: (2, 6, 3)}})


def test_a_diagnosis_stands_at_the_layers_that_have_an_sae(diagnosis: DiagnosisResult) -> None:
    figure = specificity.heatmap(diagnosis, [3, 4], SUBJECT)
    rows = {subject: row for row, subject in enumerate(diagnosis.subjects)}
    expected = {(cell.layer, rows[cell.subject]): cell.score for cell in diagnosis.cells}
    assert {layer for layer, _ in expected} == set(HEARD)
    assert columns(figure, "heatmap") == expected
    clicks = figure.to_dict()["data"][3]
    assert clicks["customdata"] == [[cell.layer, cell.subject] for cell in diagnosis.cells]
    assert clicks["x"] == [cell.layer for cell in diagnosis.cells]
    assert notes(figure, "no SAE") == set(ALL) - set(HEARD)
    assert tick_layers(figure) == ALL
    strip = specificity.strip(diagnosis, SUBJECT, [3, 4])
    points = [point for trace in strip.to_dict()["data"] for point in zip(trace["x"], trace["y"], strict=True)]
    assert sorted(points) == [(cell.layer, cell.score) for cell in diagnosis.cells if cell.subject == SUBJECT]
    for drawn in (figure, strip):
        assert_no_words_for_nothing(
            drawn, specificity.caption(diagnosis, SUBJECT), specificity.strip_caption(diagnosis, SUBJECT)
        )


def test_a_layer_without_a_live_latent_is_named_and_is_not_the_best(without_a_score: DiagnosisResult) -> None:
    figure = specificity.heatmap(without_a_score, [], SUBJECT)
    row = without_a_score.subjects.index(SUBJECT)
    assert {layer for layer, of in columns(figure, "heatmap") if of == row} == {2, 6}
    assert notes(figure, "no score") == {3}
    assert "Best layers for geometry: 2, 6." in specificity.caption(without_a_score, SUBJECT)
    figure = specificity.strip(without_a_score, SUBJECT, [])
    assert {x for trace in figure.to_dict()["data"] for x in trace["x"]} == {2, 6}


def test_the_order_of_the_layers_is_drawn_where_there_is_an_sae(partial_profile: Profile, partial_run: Run) -> None:
    result: StabilityResult = partial_run(StabilitySpec(diagnosis=partial_profile.diagnose_spec()))
    figure = stability.rank_heatmap(result, SUBJECT)
    rows = [row for row in result.rows if row.subject == SUBJECT]
    expected = {(layer, at): row.order.index(layer) + 1 for at, row in enumerate(rows) for layer in HEARD}
    assert columns(figure, "heatmap") == expected
    assert notes(figure, "no SAE") == set(ALL) - set(HEARD)
    assert "over n = 3 layers" in stability.caption(result, SUBJECT)
    assert_no_words_for_nothing(figure, stability.caption(result, SUBJECT))
    assert {row["layer"] for row in stability.numbers(result, SUBJECT)} == set(HEARD)


@pytest.fixture(scope="module")
def energies(partial_profile: Profile, partial_run: Run) -> dict[str, EnergyResult]:
    def of(name: str) -> EnergyResult:
        spec = EnergySpec(
            diagnosis=partial_profile.diagnose_spec(),
            task_vector=partial_profile.task_vector(name),
            subject=SUBJECT,
            k=(4, 8),
        )
        return partial_run(spec)

    return {name: of(name) for name in ("some", "nothing")}


def test_energy_stands_at_the_layers_that_move_and_are_served(energies: dict[str, EnergyResult]) -> None:
    result, k = energies["some"], 8
    figure = energy.enrichment_heatmap(result, k, [3])
    labels = [text.removeprefix("<b>").removesuffix("</b>") for text in figure.to_dict()["layout"]["yaxis"]["ticktext"]]
    names = ["all" if label == "layer" else label for label in labels]
    drawn = {(layer, names[row]) for layer, row in columns(figure, "heatmap")}
    known = {(c.layer, c.matrix) for c in (*result.layers, *result.cells) if c.k == k and c.retention is not None}
    assert drawn == known
    assert {layer for layer, _ in drawn} == {3, 4, 6}  # of the moved layers, 1 has no SAE of its own nor before it
    writers, readers = {"o_proj", "down_proj"}, {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"}
    assert {matrix for layer, matrix in drawn if layer == 4} == {"all", *readers}, "served by layer 3's SAE"
    assert {matrix for layer, matrix in drawn if layer == 6} == {"all", *writers}
    assert notes(figure, "no SAE") >= {0, 1, 5}
    assert notes(figure, "no change") == {2, 7}
    assert f"over {len(drawn) - 3} matrices" in energy.heatmap_caption(result, k)
    assert_no_words_for_nothing(figure, energy.heatmap_caption(result, k), energy.caption(result, k))
    assert [row["layer"] for row in energy.geometry_rows(result, k)] == [3, 4, 6]
    assert energy.left_out(result, k) == "Without a row: layers 2, 7 (unchanged by the task vector)."
    for row in energy.geometry_rows(result, k):
        cell = next(cell for cell in result.layers if (cell.layer, cell.k) == (row["layer"], k))
        assert (row["enrichment"], row["z"]) == (cell.enrichment, cell.z)


def test_no_curve_is_drawn_for_a_layer_that_stays_and_the_picture_says_why(energies: dict[str, EnergyResult]) -> None:
    result = energies["some"]
    for layer in (2, 7):
        figure = energy.retention_curves(result, layer, 8)
        assert not any(trace.get("x") for trace in figure.to_dict()["data"])
        assert [note["text"] for note in figure.to_dict()["layout"]["annotations"]] == [
            f"layer {layer}: unchanged by the task vector"
        ]
    for layer in (3, 4, 6):
        figure = energy.retention_curves(result, layer, 8)
        kept = next(trace for trace in figure.to_dict()["data"] if trace.get("name") == "selected latents")
        cells = energy.layer_cells(result, layer)
        assert kept["x"] == [cell.k for cell in cells]
        assert kept["y"] == [100 * (cell.retention or 0) for cell in cells]
        assert "annotations" not in figure.to_dict()["layout"]


def test_the_energy_of_a_task_vector_that_moves_nothing_says_so(energies: dict[str, EnergyResult]) -> None:
    result = energies["nothing"]
    figure = energy.enrichment_heatmap(result, 8, [])
    assert not columns(figure, "heatmap")
    assert notes(figure, "no change") == {2, 3, 4, 6, 7}
    assert "changes no matrix that has an SAE" in energy.heatmap_caption(result, 8)
    assert_no_words_for_nothing(figure, energy.heatmap_caption(result, 8))


@pytest.fixture(scope="module")
def gains(partial_profile: Profile, partial_run: Run) -> GainResult:
    diagnosis = partial_profile.diagnose_spec(silent=True)
    vector = partial_profile.task_vector("some")
    return partial_run(GainSpec(diagnosis=diagnosis, task_vector=vector, n=2, top_n=2, random_sets=1))


def test_gains_are_drawn_where_a_layer_has_both_numbers(gains: GainResult) -> None:
    figure = agreement.scatter(gains, "all", [3])
    drawn = {
        int(text.removeprefix("<b>").removesuffix("</b>")): (x, y)
        for trace in figure.to_dict()["data"]
        for text, x, y in zip(trace["text"], trace["x"], trace["y"], strict=True)
    }
    scores = {row.layer: row.value for row in gains.predictors if (row.subject, row.predictor) == ("all", gains.score)}
    measured = {cell.layer: cell.gain for cell in gains.cells if cell.subject == "all"}
    assert drawn == {layer: (scores[layer], measured[layer]) for layer in (3, 6)}
    said = agreement.caption(gains, "all")
    assert "Not shown because they have no score: layers 1, 4." in said
    assert "Unchanged by the task vector: layers 0, 2, 5, 7." in said
    assert "4 layers injected one at a time" in said
    assert "has a value in only 2 of the changed layers" in said
    assert_no_words_for_nothing(figure, said)


def test_predictors_that_cannot_be_ordered_say_why(gains: GainResult) -> None:
    figure = agreement.forest(gains, "all")
    said = {note["y"]: note["text"] for note in figure.to_dict()["layout"]["annotations"]}
    assert said["specificity: mean rate difference"] == "a value in 2 layers only"
    assert said["linear probe AUROC"] == "same value in every layer"
    assert_no_words_for_nothing(figure, agreement.sets_caption(gains, "all"))


def test_gains_without_a_score_in_any_moved_layer_say_so(gains: GainResult) -> None:
    scores = tuple(
        row.model_copy(update={"value": None, "ci_low": None, "ci_high": None})
        if row.predictor == gains.score and row.layer in MOVED
        else row
        for row in gains.predictors
    )
    figure = agreement.scatter(gains.model_copy(update={"predictors": scores}), "all", [])
    assert not figure.to_dict()["data"]
    assert [note["text"] for note in figure.to_dict()["layout"]["annotations"]] == [
        "no layer has both a score and a gain"
    ]


@pytest.mark.parametrize(("name", "moved"), [("some", MOVED), ("four", MOVED), ("whole", ALL), ("nothing", ())])
def test_sizes_say_which_layers_move(
    name: str, moved: tuple[int, ...], partial_profile: Profile, partial_run: Run
) -> None:
    spec = InfoSpec(model=partial_profile.model, saes=partial_profile.saes, task_vectors=partial_profile.task_vectors)
    row = next(row for row in partial_run(spec).task_vectors if row.name == name)
    figure = sizes.relative_norms(row, [3])
    assert columns(figure, "bar") == {(layer, 0): 100 * row.relative_norm_by_layer[layer] for layer in moved}
    assert notes(figure, "–") == set(ALL) - set(moved)
    assert tick_layers(figure) == ALL
    said = sizes.caption(row, [3])
    counted = {MOVED: "4 of 8 layers change (1, 3, 4, 6)", ALL: "n = 8 layers", (): "none of 8 layers changes"}[moved]
    assert counted in said
    assert "0.00%" not in said
    assert_no_words_for_nothing(figure, said)


@pytest.mark.parametrize(("name", "moved"), [("some", MOVED), ("four", MOVED), ("whole", ALL), ("nothing", ())])
def test_preflight_draws_what_moves(
    name: str, moved: tuple[int, ...], partial_profile: Profile, partial_run: Run
) -> None:
    spec = PreflightSpec(
        model=partial_profile.model, task_vector=partial_profile.task_vector(name), problems=partial_profile.problems
    )
    result: PreflightResult = partial_run(spec)
    assert {row.layer for row in result.layers if row.moves} == set(moved)
    assert {row.layer for row in result.matrices if row.moves} == set(moved)
    figure = sizes.matrix_norms(result)
    names = list(figure.to_dict()["layout"]["yaxis"]["ticktext"])
    assert columns(figure, "heatmap") == {
        (row.layer, names.index(row.part)): 100 * (row.relative_norm or 0)
        for row in result.matrices
        if row.layer in moved
    }
    assert set(figure.to_dict()["data"][1]["x"]) == set(ALL) - set(moved)
    assert f"{7 * len(moved)} of 56 matrices change" in sizes.matrix_caption(result)
    drawn = sizes.realised(result)
    for trace in drawn.to_dict()["data"]:
        assert trace["x"] == list(ALL)
        assert {x for x, y in zip(trace["x"], trace["y"], strict=True) if y is not None} == set(moved)
    assert tick_layers(drawn) == ALL
    assert_no_words_for_nothing(figure, sizes.matrix_caption(result), sizes.realised_caption(result))


def test_a_rank_names_the_layers_that_are_drawn_from(partial_profile: Profile, partial_run: Run) -> None:
    recipe = EditRecipe(
        model=partial_profile.model,
        task_vector=partial_profile.task_vector("some"),
        layers={2: LayerAlpha(), 3: LayerAlpha(), 4: LayerAlpha()},
    )
    result = partial_run(RankSpec(recipe=recipe, problems=partial_profile.problems, n=2, n_sets=5))
    assert result.layers == (3, 4)
    assert result.movable == MOVED
    figure, said = rank.strip(result), rank.caption(result)
    texts = [text for trace in figure.to_dict()["data"] for text in trace["text"]]
    assert len([text for text in texts if "layers 1, 6" in text]) == 2
    assert not [text for text in texts if "layers 2" in text or "layers 0" in text]
    assert said.startswith(
        "Layers 3, 4 compared with all 5 other sets of 2 layers that such an edit can change from layers 1, 3, 4, 6; "
        "all subjects"
    )
    assert_no_words_for_nothing(figure, said)
    drawn = strengths.effective(recipe, 8)
    assert {layer for (layer, _), alpha in columns(drawn, "bar").items() if alpha} == {2, 3, 4}
    assert tick_layers(drawn) == ALL


def test_csv_of_every_table_has_the_layers_of_the_record(diagnosis: DiagnosisResult, gains: GainResult) -> None:
    for rows in (diagnosis.cells, diagnosis.latents, gains.cells, gains.predictors):
        header, *lines = to_csv(rows).splitlines()
        at = header.split(",").index("layer")
        assert [int(line.split(",")[at]) for line in lines] == [row.layer for row in rows]
        assert "nan" not in to_csv(rows)
