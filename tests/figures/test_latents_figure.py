"""Effect by density shows each live latent once, marks what passes at each level, and treats tokens as text."""

import numpy as np
import pytest

from stethoscope.figures import latents
from stethoscope.results import LatentExample, LatentRow, LatentsResult


def row(
    latent: int, q: float, effect: float, q_value: float, *, dense: bool = False, selected: bool = False
) -> LatentRow:
    return LatentRow(
        latent=latent,
        domain_rate=q + effect,
        control_rate=q,
        effect=effect,
        auroc=0.7,
        p=q_value / 2,
        q_value=q_value,
        mass=1.0,
        dense=dense,
        selected=selected,
    )


RESULT = LatentsResult(
    layer=3,
    subject="number_theory",
    control="stories",
    site="resid_post",
    n_documents=64,
    d_sae=10,
    n_dead=5,
    fdr=0.05,
    link=None,
    rows=(
        row(7, 0.0, 0.30, 0.001, selected=True),
        row(2, 0.01, 0.10, 0.04, selected=True),
        row(9, 0.4, 0.02, 0.03, dense=True),
        row(1, 0.02, 0.01, 0.5),
        row(4, 0.5, -0.2, 0.002, dense=True),
    ),
)


def groups(level: float, latent: int | None = None) -> dict[str, list[int]]:
    figure = latents.effect_against_density(RESULT, level, latent)
    return {trace.name: [data[0] for data in trace.customdata] for trace in figure.data}


def test_every_latent_stands_in_one_group_and_the_selected_are_ringed() -> None:
    assert groups(0.05) == {
        "q > 5%": [1],
        "q ≤ 5%": [7, 2],
        "dense, q ≤ 5%": [9, 4],
        "selected": [7, 2],
    }
    assert groups(0.01)["q > 1%"] == [2, 1]
    assert groups(0.05, latent=9)["latent 9"] == [9]
    assert "latent 8" not in groups(0.05, latent=8)


def test_rate_and_effect_in_percent_and_a_rate_of_zero_at_its_own_tick() -> None:
    figure = latents.effect_against_density(RESULT, 0.05)
    trace = next(trace for trace in figure.data if trace.name == "q ≤ 5%")
    assert list(trace.x) == pytest.approx([0.5, 1.0])  # 0 is drawn at half of the smallest rate, 1%
    assert list(trace.y) == pytest.approx([30.0, 10.0])
    assert figure.layout.xaxis.ticktext[0] == "0"
    assert figure.layout.xaxis.tickvals[0] == pytest.approx(0.5)
    assert figure.layout.xaxis.type == "log"


def test_dense_dots_are_hollow_and_gray_ones_do_not_pass() -> None:
    symbols = {trace.name: trace.marker.symbol for trace in latents.effect_against_density(RESULT, 0.05).data}
    assert symbols["dense, q ≤ 5%"] == "circle-open"
    assert symbols["q ≤ 5%"] == "circle"


def test_caption_counts() -> None:
    text = latents.caption(RESULT, 0.05)
    assert "n = 64 documents each" in text
    assert "5 of 10 latents are live; 4 pass a false discovery rate of 5%, 3 of them fire more" in text


@pytest.mark.parametrize(
    ("event", "latent"),
    [
        ({"selection": {"points": [{"customdata": [7]}]}}, 7),
        ({"selection": {"points": [{"customdata": {"0": 9}}]}}, 9),
        ({"selection": {"points": [{"x": 1}]}}, None),
        ({}, None),
        (None, None),
    ],
)
def test_a_click_names_its_latent(event: object, latent: int | None) -> None:
    assert latents.latent_from_selection(event) == latent


def test_a_strip_is_escaped_cut_around_its_peak_and_tinted_by_activation() -> None:
    tokens = tuple(f" t{i}" for i in range(200)) + ("<script>", "\n")
    activations = tuple(2.0 if i == 190 else 1.0 if i == 200 else 0.0 for i in range(202))
    shown = latents.strip_html(LatentExample(corpus="x", tokens=tokens, activations=activations), full=4.0)
    assert "&lt;script&gt;" in shown
    assert "<script>" not in shown
    assert " t141" not in shown
    assert " t142" in shown
    assert shown.count("<span") == 2
    assert 'rgba(31,131,196,0.37);border-radius:3px;font-weight:600" title="activation 2.000"> t190' in shown
    assert "↵" in shown


def test_no_control_rate_at_all_still_has_an_axis() -> None:
    rows = tuple(latent.model_copy(update={"control_rate": 0.0}) for latent in RESULT.rows)
    figure = latents.effect_against_density(RESULT.model_copy(update={"rows": rows}), 0.05)
    assert figure.layout.xaxis.ticktext[0] == "0"


def drawn_layer(n: int) -> LatentsResult:
    """A layer of n live latents, 16 of them selected, rates as SAEs have them."""
    rng = np.random.default_rng(n)
    control = np.minimum(np.exp(rng.normal(-7.5, 1.8, n)), 0.6) * (rng.random(n) < 0.9)
    effect = control * rng.normal(0, 0.5, n) + rng.normal(0, 1e-4, n)
    q_value, order = rng.random(n) ** 2, np.argsort(-effect)
    selected = set(order[:16].tolist())
    rows = tuple(
        row(i, control[i], effect[i], q_value[i], dense=bool(control[i] > 0.1), selected=i in selected)
        for i in order.tolist()
    )
    return RESULT.model_copy(update={"rows": rows, "d_sae": n})


@pytest.mark.parametrize("n", [16_384, pytest.param(262_144, marks=pytest.mark.slow)])
def test_a_wide_layer_is_drawn_in_a_megabyte_and_what_is_selected_stays_exact(n: int) -> None:
    result, chosen = drawn_layer(n), 5
    figure = latents.effect_against_density(result, 0.05, chosen)
    assert len(figure.to_json()) < 1_000_000
    by_latent = {row.latent: row for row in result.rows}
    exact = {row.latent for row in result.rows if row.selected} | {chosen}
    dots = [
        (data[0], data[1], x, y)
        for trace in figure.data
        if trace.name not in ("selected", f"latent {chosen}")
        for data, x, y in zip(trace.customdata, trace.x, trace.y, strict=True)
    ]
    assert len({latent for latent, *_ in dots}) == len(dots)
    assert {latent for latent, stands_for, *_ in dots if stands_for == 1} >= exact
    assert sum(stands_for for _, stands_for, *_ in dots) == n, "each latent is in one dot"
    floor = latents.density_floor(result.rows)
    for latent, _, x, y in dots:
        assert (x, y) == pytest.approx(
            (100 * max(by_latent[latent].control_rate, floor), 100 * by_latent[latent].effect)
        )
    for side in ("x", "y"):
        drawn = [value for trace in figure.data for value in trace[side]]
        of_all = {
            "x": [100 * max(row.control_rate, floor) for row in result.rows],
            "y": [100 * row.effect for row in result.rows],
        }[side]
        assert (min(drawn), max(drawn)) == pytest.approx((min(of_all), max(of_all)), rel=0.1), "outliers are seen"
