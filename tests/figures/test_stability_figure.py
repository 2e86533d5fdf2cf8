"""The stability figure: ranks by variant with tau beside each row; the second control corpus."""

import pytest

from stethoscope.figures import specificity, stability
from stethoscope.figures.theme import GRAY
from stethoscope.results import DiagnosisResult, SpecificityCell, StabilityResult, StabilityRow


def row(
    kind: str, variant: str, tau: float | None, order: tuple[int, ...], scores: tuple[float | None, ...]
) -> StabilityRow:
    return StabilityRow(
        subject="number_theory", kind=kind, variant=variant, kendall_tau=tau, order=order, scores=scores
    )


def result() -> StabilityResult:
    """Layers 0 to 3 without an SAE at 2; a variant that cannot score layer 1."""
    same = ((3, 0, 1), (0.2, 0.1, 0.3))
    rows = (
        row("score", "mean_rate_difference", 1.0, *same),
        row("score", "log_ratio", -1.0, (0, 3, 1), (2.0, None, 1.0)),
        row("k", "4", 0.5, *same),
        row("k", "16", 1.0, *same),
        row("k", "64", 0.25, *same),
        row("control", "facts", 1.0, *same),
        row("control", "codes", None, *same),
    )
    return StabilityResult(
        score="mean_rate_difference", top_k=16, control="facts", n_layers=4, layers=(0, 1, 3), rows=rows
    )


def test_ranks_are_the_order_and_missing_layers_stay_empty() -> None:
    figure = stability.rank_heatmap(result(), "number_theory")
    (heat,) = figure.data
    assert [list(values) for values in heat.z[:2]] == [[2, 3, None, 1], [1, None, None, 2]]
    assert list(heat.text[0]) == ["2", "3", "", "1"]
    assert (heat.zmin, heat.zmax) == (1, 3)
    assert "rank 1 of 3, score +0.300" in heat.customdata[0][3]
    assert "layer 0 · log ratio" in heat.customdata[1][0]


def test_rows_are_named_with_their_tau_and_the_reference_is_bold() -> None:
    figure = stability.rank_heatmap(result(), "number_theory")
    assert list(figure.layout.yaxis.ticktext) == [
        "<b>mean rate difference</b>",
        "log ratio",
        "k = 4",
        "<b>k = 16</b>",
        "k = 64",
        "<b>against facts</b>",
        "against codes",
    ]
    texts = [(note.y, note.text) for note in figure.layout.annotations if note.text.startswith("τ")]
    assert texts[:2] == [(0, "τ +1.00"), (1, "τ \N{MINUS SIGN}1.00")]
    assert texts[6] == (6, "τ –")
    assert [line.y0 for line in figure.layout.shapes] == [1.5, 4.5], "a line between the kinds"


def test_the_caption_gives_the_range_of_each_kind_without_the_reference() -> None:
    said = stability.caption(result(), "number_theory")
    assert "across scores \N{MINUS SIGN}1.00; across k +0.25 to +0.50; across control corpora undefined" in said
    assert "k = 16, against facts" in said
    assert "n = 3 layers" in said
    alone = result().model_copy(update={"rows": result().rows[:1]})
    assert "no other variant" in stability.caption(alone, "number_theory")


def test_the_numbers_are_those_of_the_picture() -> None:
    rows = stability.numbers(result(), "number_theory")
    assert len(rows) == 7 * 3
    assert rows[4] == {
        "subject": "number_theory",
        "kind": "score",
        "variant": "log_ratio",
        "kendall_tau": -1.0,
        "layer": 1,
        "score": None,
        "rank": None,
    }
    assert rows[5]["rank"] == 2


def diagnosis(control: str, p_top: dict[int, float | None], *, above: float = 0.0) -> DiagnosisResult:
    cells = tuple(
        SpecificityCell(
            layer=layer,
            subject="algebra",
            score=None if share is None else 0.1 * layer + above,
            ci_low=None if share is None else 0.1 * layer + above - 0.05,
            ci_high=None if share is None else 0.1 * layer + above + 0.15,
            p=0.01,
            p_adjusted=0.02,
            specific=None if share is None else 0.1 * layer + above > 0.05,
            n_live=9,
            n_documents=64,
            p_top=share,
        )
        for layer, share in p_top.items()
    )
    return DiagnosisResult(
        score="mean_rate_difference",
        formula="T = mean(p - q)",
        source="somebody 2024; the rest is ours",
        subjects=("algebra",),
        control=control,
        n_layers=4,
        site="resid_post",
        top_k=16,
        null=0.0,
        cells=cells,
        order={"algebra": (2, 1, 0)},
        latents=(),
    )


def test_both_controls_stand_side_by_side() -> None:
    first = diagnosis("facts", {0: 0.0, 1: 0.07, 2: 0.93})
    second = diagnosis("digits_and_codes", {0: None, 1: 0.6, 2: 0.4}, above=0.3)
    clear, weak, other = specificity.strip(first, "algebra", {2}, second).data
    assert list(clear.x) + list(weak.x) == pytest.approx([0.86, 1.86, -0.14])
    assert list(other.x) == pytest.approx([1.14, 2.14]), "a layer without a score is left out"
    assert list(other.y) == pytest.approx([0.4, 0.5])
    assert list(other.error_y.array) == pytest.approx([0.15, 0.15])
    assert list(other.error_y.arrayminus) == pytest.approx([0.05, 0.05])
    assert other.name == "against digits and codes"
    assert other.marker.symbol == "diamond-open"
    assert other.error_y.color == GRAY
    assert "the same number of digits and codes" in other.text[0]
    said = specificity.strip_caption(first, "algebra", second)
    assert "Layer 2 ranks first in 93% of bootstrap draws, layer 1 in 7%." in said
    assert "against digits and codes. There: Layer 1 ranks first in 60%" in said
    assert "n = 64 documents" in said


def test_rank_confidence_without_a_score_is_said() -> None:
    nothing = diagnosis("facts", {0: None, 1: None})
    assert specificity.rank_confidence(nothing, "algebra") == "No layer has a rank."
    assert list(specificity.strip(nothing, "algebra", set()).data[0].x) == []


def test_hover_and_caption_tell_rank_source_and_how_many_latents_there_were() -> None:
    shown = diagnosis("facts", {0: 0.0, 1: 0.07, 2: 0.93})
    hover = specificity.describe_cell(shown.cells[2], shown)
    assert "ranks first in 93% of bootstrap draws" in hover
    assert "k = 9 of 9 live latents" in hover, "no more can be selected than there are"
    said = specificity.caption(shown, "algebra")
    assert "T = mean(p - q) (somebody 2024; the rest is ours)." in said
    assert "Layer 2 ranks first in 93%" in said
