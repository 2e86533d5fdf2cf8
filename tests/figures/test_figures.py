"""Figures show the result's cells, nulls, outlines, intervals, n and definitions, readable on light and dark."""

import csv
import html
import io
import math
import re

import pytest

from stethoscope.figures import energy, probe, sizes, specificity, tables, text
from stethoscope.figures.theme import BLUE, GRAY, ORANGE, SERIES
from stethoscope.formatting import shown_p, signed
from stethoscope.records import BenchArm, BenchSpec, ModelRef, ProblemsRef
from stethoscope.results import (
    Certificate,
    DiagnosisResult,
    EnergyCell,
    EnergyResult,
    ProbeResult,
    ProbeRow,
    SpecificityCell,
    TaskVectorRow,
    TextColumn,
    TokenChance,
    TopTokens,
)

SUBJECTS = ("algebra", "number_theory")
PAPERS = ("#fcfdfe", "#10151c")
SPEC = BenchSpec(
    model=ModelRef(id="m"),
    problems=ProblemsRef(problems="p", controls="c", shots="s", subjects=SUBJECTS, control_names=("facts",)),
    arms=(BenchArm(name="base"), BenchArm(name="recipe")),
    subjects=SUBJECTS,
)


def diagnosis(null: float = 0.0) -> DiagnosisResult:
    """Layers 0 to 3; layer 2 has no SAE; number_theory at layer 1 is not shown to be specific."""
    cells = tuple(
        SpecificityCell(
            layer=layer,
            subject=subject,
            score=null + 0.1 * layer,
            ci_low=null + (-0.05 if (layer, subject) == (1, "number_theory") else 0.05) + 0.1 * (layer - 1),
            ci_high=null + 0.1 * layer + 0.05,
            p=0.005,
            p_adjusted=0.02,
            specific=layer > (subject == "number_theory"),
            n_live=50,
            n_documents=128,
        )
        for subject in SUBJECTS
        for layer in (0, 1, 3)
    )
    return DiagnosisResult(
        score="mean_rate_difference",
        formula="T = mean(p - q)",
        subjects=SUBJECTS,
        control="facts",
        n_layers=4,
        site="resid_post",
        top_k=16,
        null=null,
        cells=cells,
        order=dict.fromkeys(SUBJECTS, (3, 1, 0)),
        latents=(),
    )


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colour", [BLUE, ORANGE, GRAY, *SERIES])
@pytest.mark.parametrize("paper", PAPERS)
def test_tones_can_be_seen_on_both_papers(colour: str, paper: str) -> None:
    low, high = sorted((luminance(colour), luminance(paper)))
    assert (high + 0.05) / (low + 0.05) >= 3  # the rule for graphics (WCAG 1.4.11)


def test_heatmap_cells_are_strong_or_weak_never_both() -> None:
    figure = specificity.heatmap(diagnosis(), {3}, "algebra")
    strong, weak, dots, overlay = figure.data
    result = diagnosis()
    for row, subject in enumerate(SUBJECTS):
        for layer in range(4):
            cell = next((c for c in result.cells if (c.layer, c.subject) == (layer, subject)), None)
            crosses = cell is not None and not cell.specific
            assert (weak.z[row][layer] is not None) == (cell is not None and crosses)
            assert (strong.z[row][layer] is not None) == (cell is not None and not crosses)
    assert weak.opacity < strong.opacity
    assert (weak.zmin, weak.zmax) == (strong.zmin, strong.zmax), "one scale for both"
    assert len(dots.x) == sum(not c.specific for c in result.cells)
    assert len(overlay.x) == len(result.cells)


def test_heatmap_outlines_the_picked_and_names_missing_saes() -> None:
    figure = specificity.heatmap(diagnosis(), {1, 3}, "algebra")
    assert [(round(s.x0 + s.x1) / 2) for s in figure.layout.shapes] == [1, 3]
    assert [(a.text, a.x) for a in figure.layout.annotations] == [("no SAE", 2)]
    assert figure.layout.yaxis.ticktext == ("<b>algebra</b>", "number theory")
    assert figure.layout.dragmode != "select", "Streamlit mutes clicks while the box tool is on"


def test_hover_names_definition_interval_p_and_n() -> None:
    hover = specificity.heatmap(diagnosis(), set()).data[3].text[0]
    for part in ("layer 0 · algebra", "95% CI", "corrected over layers", "n = 128", "T = mean(p - q)"):
        assert part in hover


@pytest.mark.parametrize("null", [0.0, 0.5, -0.2])
def test_the_scale_is_clear_at_the_null(null: float) -> None:
    scale = specificity.diverging_scale(null - 0.1, null + 0.4, null)
    positions = [position for position, _ in scale]
    assert positions == sorted(positions)
    assert positions[1] == pytest.approx(0.2)
    assert scale[1][1].endswith("0.030)")
    assert scale[2][1].endswith("0.030)")
    assert scale[-1][1].endswith("1.000)")


def test_a_click_comes_back_as_its_layer() -> None:
    overlay = specificity.heatmap(diagnosis(), set()).data[3]
    point = {"curve_number": 3, "customdata": list(overlay.customdata[5])}
    assert specificity.layers_from_selection({"selection": {"points": [point]}}) == [3]
    box = [{"customdata": {"0": 1, "1": "algebra"}}, {"customdata": [0, "algebra"]}, {"curve_number": 0}]
    assert specificity.layers_from_selection({"selection": {"points": box, "box": [{}]}}) == [0, 1]
    for nothing in (None, {}, {"selection": {}}, {"selection": {"points": []}}):
        assert specificity.layers_from_selection(nothing) == []


def test_strip_shows_one_subject_with_its_intervals() -> None:
    figure = specificity.strip(diagnosis(), "number_theory", {3})
    clear, weak = figure.data
    assert list(weak.x) == [0, 1]
    assert list(clear.x) == [3]
    assert clear.error_y.array[0] == pytest.approx(0.05)
    assert "n = 128" in specificity.caption(diagnosis(), "algebra")


def energies() -> EnergyResult:
    """Layers 1 and 2 of three; at k = 16 o_proj of layer 1 is chance, q_proj has no latents, then no change."""

    def cell(layer: int, matrix: str, k: int, **fields: object) -> EnergyCell:
        known: dict[str, object] = {
            "retention": 0.2 * k / 16,
            "enrichment": (0.2 * k / 16) / (k / 96),
            "z": 3.0,
            "percentile": 0.9999,
            "ceiling": 0.6,
            "components": 0.3,
            "control": 0.19,
            "random_mean": 0.17,
            "random_low": 0.16,
            "random_high": 0.18,
            "functional_share": 0.25,
            "rank": k,
        }
        fixed = {"layer": layer, "matrix": matrix, "subject": "algebra", "k": k, "d": 96}
        return EnergyCell.model_validate({**known, **fixed, "null_mean": k / 96, "null_sd": 0.01, **fields})

    undefined = {"retention": None, "enrichment": None, "z": None, "percentile": None}
    return EnergyResult(
        task_vector="math",
        subject="algebra",
        control="facts",
        site="resid_post",
        n_layers=3,
        d_model=96,
        k=(4, 16),
        cells=(
            cell(1, "o_proj", 16, z=1.0),
            cell(2, "o_proj", 16),
            cell(1, "q_proj", 16, rank=0, **undefined),
            cell(2, "q_proj", 16, **undefined),
        ),
        layers=tuple(cell(layer, "all", k) for layer in (1, 2) for k in (16, 4)),
    )


def test_retention_stands_beside_null_ceiling_and_references() -> None:
    figure = energy.retention_curves(energies(), 1, 16)
    named = {trace.name: trace for trace in figure.data if trace.name}
    references = {"principal components", "control latents", "random live latents"}
    assert set(named) == {"null ± 2 sd", "selected latents", "ceiling", *references}, "no reader, no encoder"
    assert list(named["selected latents"].y) == pytest.approx([5.0, 20.0])
    assert list(named["null ± 2 sd"].y) == pytest.approx([100 * (4 / 96 + 0.02), 100 * (16 / 96 + 0.02)])
    assert list(named["ceiling"].y) == [60.0, 60.0]
    assert list(named["principal components"].y) == [30.0, 30.0]
    assert list(named["random live latents"].y) == [17.0, 17.0]
    assert list(figure.data[2].y) == [16.0, 16.0]  # the range of the draws
    assert list(figure.data[3].y) == [18.0, 18.0]
    assert len(energy.retention_curves(energies(), 0).data[-1].x) == 0


def test_enrichment_is_centred_on_one_and_chance_is_pale() -> None:
    figure = energy.enrichment_heatmap(energies(), 16, {2})
    strong, weak, dots = figure.data
    assert figure.layout.yaxis.ticktext == ("<b>layer</b>", "o_proj", "q_proj")
    assert (strong.zmin, strong.zmax) == (weak.zmin, weak.zmax)
    assert strong.zmin == -strong.zmax, "1 lies in the middle"
    assert strong.z[0][1] == pytest.approx(math.log2(1.2))
    assert strong.z[1][2] == pytest.approx(math.log2(1.2))
    assert weak.z[1][1] == pytest.approx(math.log2(1.2))
    assert (weak.z[0][1], strong.z[1][1]) == (None, None), "a cell is strong or weak"
    assert weak.opacity < strong.opacity
    assert (list(dots.x), list(dots.y)) == ([1], [1])
    gaps = {(a.x, a.y, a.text) for a in figure.layout.annotations}
    assert gaps == {(0, 1, "no SAE"), (1, 2, "no latents"), (2, 2, "no change")}
    assert [(shape.x0, shape.x1) for shape in figure.layout.shapes] == [(1.52, 2.48)]
    hover = strong.text[0][1]
    for part in ("layer 1", "null 16.7%", "z +3.0", "percentile > 99.9", "rank 16 of d = 96", "principal components"):
        assert part in hover
    assert strong.text[1][1] == ""
    assert "(1 of 2)" in energy.heatmap_caption(energies(), 16)


def test_three_percent_by_77_of_2560_dimensions_is_called_chance() -> None:
    cell = EnergyCell(
        layer=9,
        matrix="all",
        subject="algebra",
        k=77,
        rank=77,
        d=2560,
        retention=0.0302,
        null_mean=77 / 2560,
        null_sd=0.0005,
        enrichment=0.0302 / (77 / 2560),
        z=0.24,
        percentile=0.62,
        ceiling=0.3,
    )
    assert energy.headline(cell) == (
        "Layer 9: 77 of 2560 dimensions keep 3.0%; a random subspace of the same rank keeps 3.0% ± 0.1% (sd). "
        "Enrichment 1.00, z +0.2, percentile 62.0: no different from chance."
    )
    assert energy.headline(cell.model_copy(update={"z": -4.0})).endswith("below chance.")
    assert energy.headline(cell.model_copy(update={"z": 4.0})).endswith(": above chance.")
    undefined = cell.model_copy(update={"retention": None, "rank": 0})
    assert energy.headline(undefined) == "Layer 9: undefined (no live latent fires more on the subject)."


def test_energy_captions_name_rank_chance_and_what_is_missing() -> None:
    assert "Rank r = 16 of d = 96, so chance is r/d = 16.7%" in energy.caption(energies(), 16)
    assert "scaled by the norm weights" in energy.caption(energies(), 16)
    short = energies().layers[0].model_copy(update={"k": 16, "n_latents": 9, "n_dropped": 2})
    shown = energy.caption(energies().model_copy(update={"layers": (short,), "fold_gains": False}), 16)
    assert "unscaled weights" in shown
    assert "Up to 2 latents per layer are linearly dependent" in shown
    assert "only 9 live latents" in shown
    rows = energy.geometry_rows(energies(), 16)
    assert [(row["layer"], row["kept, %"], row["function, %"]) for row in rows] == [
        (1, pytest.approx(20), pytest.approx(25)),
        (2, pytest.approx(20), pytest.approx(25)),
    ]


def test_probe_keeps_controls_apart() -> None:
    certificate = Certificate(
        recipe_id=None,
        base_checksum="a",
        edited_checksum="b",
        restored_checksum="a",
        touched=("w",),
        layers_edited=(1,),
    )
    rows = tuple(
        ProbeRow(
            subject=subject,
            is_control=subject == "facts",
            n=16,
            base_nll=0.5,
            edited_nll=0.5 + difference,
            difference=difference,
            ci_low=difference - 0.02,
            ci_high=difference + 0.03,
        )
        for subject, difference in (("algebra", -0.1), ("number_theory", -0.2), ("facts", 0.05))
    )
    result = ProbeResult(recipe_id="r", rows=rows, certificate=certificate, elapsed_s=0.4)
    figure = probe.differences(result)
    subjects, controls = figure.data
    assert list(subjects.x) == [-0.1, -0.2]
    assert list(controls.y) == ["facts"]
    assert list(subjects.error_x.arrayminus) == pytest.approx([0.02, 0.02])
    assert "subjects −0.150, control +0.050" in probe.caption(result)
    assert "n = 16" in probe.caption(result)


def test_norm_bars_are_percent() -> None:
    row = TaskVectorRow(name="math", source="x", relative_norm_by_layer=(0.01, 0.02))
    assert list(sizes.relative_norms(row, {1}).data[0].y) == [1.0, 2.0]
    assert "n = 2 layers, 1.00% to 2.00%" in sizes.caption(row)
    assert "Orange: the picked layers" in sizes.caption(row, {1})
    assert "Orange" not in sizes.caption(row)


def text_column(tokens: tuple[str, ...], kl: tuple[float, ...], first: int | None = None) -> TextColumn:
    top = TopTokens(
        edited=(TokenChance(token=' "a"\n', probability=0.625),), base=(TokenChance(token="<b>", probability=0.125),)
    )
    return TextColumn(
        text="".join(tokens),
        ids=tuple(range(len(tokens))),
        tokens=tokens,
        kl=kl,
        top=(top,) * len(tokens),
        first_difference=first,
    )


def test_model_text_never_becomes_markup() -> None:
    body = text.column_html(text_column(("<script>", "x"), (3.0, 0.0), 0))
    assert "<script>" not in body
    assert "&lt;script&gt;" in body
    assert 'aria-label="first difference"' in body
    assert "0.55" in body, "full tint from 2 nats on"
    assert "<img" not in text.plain_html("<img src=x>")


def test_hover_names_kl_and_the_likeliest_tokens_of_both_models() -> None:
    body = text.column_html(text_column(("one", " two"), (0.25, 1.0)))
    titles = re.findall(r'title="([^"]*)"', body)
    assert [html.unescape(title) for title in titles] == [
        f'KL {nats:.3f} nats\nedited: “␣"a"↵” 62.5%\nbase: “<b>” 12.5%' for nats in (0.25, 1.0)
    ]


def test_tokens_that_share_a_character_are_one_span_with_their_largest_kl() -> None:
    body = text.column_html(text_column(("a", "", "é", "b"), (0.0, 2.0, 0.1, 0.0), first=1))
    assert body.count("<span") == 3
    (shared,) = re.findall(r"<span[^>]*>é</span>", body)
    assert "0.55" in shared
    assert 'aria-label="first difference"' in shared
    assert shared.count("KL ") == 2


def test_csv_keeps_numbers_unrounded_and_empty_for_undefined() -> None:
    cell = diagnosis().cells[0].model_copy(update={"score": 1 / 3, "p": None})
    (row,) = csv.DictReader(io.StringIO(tables.to_csv([cell])))
    assert float(row["score"]) == 1 / 3
    assert row["p"] == ""
    assert tables.to_csv([]) == ""


def test_numbers_are_printed_with_a_true_minus() -> None:
    assert signed(-0.5, 1) == "−0.5"
    assert signed(0.0) == "0"
    assert signed(-3e-17, 1, " points") == "0 points"
    assert signed(-0.0003, 3) == "−0.0003"  # never a signed zero
    assert signed(0.04, 1, " points") == "+0.04 points"
    assert signed(-0.00003, 3) == "−3e−05"
    assert signed(0.0006, 3) == "+0.001"
    assert signed(None) == "–"
    assert shown_p(0.0004) == "< .001"
    assert shown_p(0.032) == "= .032"
