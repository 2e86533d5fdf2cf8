"""Each score against its definition, written out slowly; ties, constants and too few latents; every draw alike."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stethoscope.progress import Progress
from stethoscope.records import SCORE_NAMES
from stethoscope.sae import resampling
from stethoscope.sae.resampling import Bootstrap, Design, Permuted
from stethoscope.sae.scores import SCORES, CrossFitted, LayerSample, Selection
from stethoscope.statistics import benjamini_hochberg, mann_whitney_auroc

N_DOMAIN, N_CONTROL = 24, 28
DESIGN = Design.of(N_DOMAIN, N_CONTROL, n_splits=3, seed=5)


def a_sample(seed: int = 0, *, latents: int = 40, top_k: int = 4, dense_rate: float = 0.3) -> LayerSample:
    """Rates of 20 tokens with a few domain latents, and masses that go with them."""
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0.02, 0.2, latents)
    rates = rng.binomial(20, rate, size=(N_DOMAIN + N_CONTROL, latents)) / 20
    rates[:N_DOMAIN, :3] = rng.binomial(20, 0.4, size=(N_DOMAIN, 3)) / 20
    rates += rng.uniform(0, 1e-3, rates.shape) * (rates > 0)  # no ties but those of zeros
    mass = rates * rng.uniform(0.5, 2, size=rates.shape)
    total = mass.sum(1) * 1.5
    return LayerSample(
        rates=rates.astype(np.float32),
        mass=mass.astype(np.float32),
        total_mass=total,
        top_k=top_k,
        dense_rate=dense_rate,
        floor=1 / 1120,
    )


def by_definition(score: str, sample: LayerSample, design: Design) -> float:
    """The cross-fitted scores of method, one split and half at a time, in float64 (no ties in these samples)."""
    rates = sample.rates.astype(np.float64)
    values = []
    for split in design.splits:
        for select, judge in ((0, 1), (1, 0)):
            p, q = (rates[side[select]].mean(0) for side in (split.domain, split.control))
            order = [j for j in np.argsort(-(p - q), kind="stable") if q[j] <= sample.dense_rate][: sample.top_k]
            domain, control = split.domain[judge], split.control[judge]
            p, q = rates[domain].mean(0)[order], rates[control].mean(0)[order]
            if score == "mean_rate_difference":
                values.append((p - q).mean())
            elif score == "log_ratio":
                values.append(np.log((p + sample.floor) / (q + sample.floor)).mean())
            else:
                shares = [
                    sample.mass[side][:, order].mean(0).sum() / sample.total_mass[side].mean()
                    for side in (domain, control)
                ]
                values.append(shares[0] - shares[1])
    return float(np.mean(values))


@pytest.mark.parametrize("score", ["mean_rate_difference", "log_ratio", "activation_mass"])
def test_cross_fitted_scores_are_their_definition(score: str) -> None:
    sample = a_sample()
    assert SCORES[score].observed(sample, DESIGN) == pytest.approx(by_definition(score, sample, DESIGN), rel=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_a_draw_is_the_score_of_the_documents_that_it_stands_for(score: str) -> None:
    """Permuting documents and scoring them anew gives the permuted draw: labels move for domain and control alike."""
    sample = a_sample()
    permuted = Permuted(DESIGN, 3)
    drawn = SCORES[score].permuted(sample, permuted, Progress())
    for draw in range(3):
        order = permuted.order[draw]
        moved = LayerSample(
            sample.rates[order], sample.mass[order], sample.total_mass[order], 4, sample.dense_rate, sample.floor
        )
        assert drawn[draw] == pytest.approx(SCORES[score].observed(moved, DESIGN), rel=1e-4, abs=1e-6)


def test_a_bootstrap_draw_is_the_score_of_copied_documents() -> None:
    """Copying the documents of a draw, each into its own half, and selecting and judging by plain means."""
    sample, bootstrap = a_sample(), Bootstrap(DESIGN, 4)
    for score in ("mean_rate_difference", "log_ratio", "activation_mass"):
        drawn = SCORES[score].bootstrap(sample, bootstrap, Progress())
        for draw in range(4):
            copies = np.repeat(np.arange(len(sample.rates)), bootstrap.counts[draw].astype(int))
            position = {old: np.flatnonzero(copies == old) for old in range(len(sample.rates))}

            def moved(documents: np.ndarray, where: dict[int, np.ndarray] = position) -> np.ndarray:
                return np.concatenate([where[int(i)] for i in documents])

            splits = tuple(
                resampling.Split(tuple(map(moved, split.domain)), tuple(map(moved, split.control)))
                for split in DESIGN.splits
            )
            copied = LayerSample(
                sample.rates[copies], sample.mass[copies], sample.total_mass[copies], 4, sample.dense_rate, sample.floor
            )
            design = Design(N_DOMAIN, N_CONTROL, splits, False, 0)
            assert drawn[draw] == pytest.approx(by_definition(score, copied, design), rel=1e-4, abs=1e-6)


def test_specific_share_is_mann_whitney_with_benjamini_hochberg() -> None:
    sample = a_sample(3)
    sample.rates[N_DOMAIN:, :2] = 0
    domain, control = sample.rates[:N_DOMAIN], sample.rates[N_DOMAIN:]
    p = stats.mannwhitneyu(domain.astype(float), control.astype(float), method="asymptotic", axis=0)
    passing = stats.false_discovery_control(p.pvalue) <= 0.05
    above = p.statistic / (N_DOMAIN * N_CONTROL) > 0.5
    expected = np.mean(passing & above & (control.mean(0) < 0.01))
    assert expected == pytest.approx(2 / 40)
    assert SCORES["specific_share"].observed(sample, DESIGN) == pytest.approx(expected)


def test_specific_shares_bootstrap_counts_pairs_of_copied_documents() -> None:
    sample, bootstrap = a_sample(3), Bootstrap(DESIGN, 12)
    sample.rates[N_DOMAIN:, :3] = 0
    drawn = SCORES["specific_share"].bootstrap(sample, bootstrap, Progress())
    ties = mann_whitney_auroc(sample.rates[:N_DOMAIN], sample.rates[N_DOMAIN:])
    assert ties.p[0] < 1e-3
    for draw in range(12):
        copies = np.repeat(np.arange(len(sample.rates)), bootstrap.counts[draw].astype(int))
        domain, control = sample.rates[copies[:N_DOMAIN]], sample.rates[copies[N_DOMAIN:]]
        test = mann_whitney_auroc(domain, control)  # with the draw's own ties: p differs in the third digit
        expected = np.mean((benjamini_hochberg(test.p) <= 0.05) & (test.auroc > 0.5) & (control.mean(0) < 0.01))
        assert drawn[draw] == pytest.approx(expected, abs=1 / 40)


def test_names_formulas_and_sources_are_told() -> None:
    assert tuple(SCORES) == SCORE_NAMES, "records offer the names, this package defines them"
    for name, score in SCORES.items():
        assert score.name == name
        assert len(score.formula) > 20
        assert "ours" in score.source
        assert re.match(r"[TNML] = ", type(score).__doc__ or ""), "the docstring opens with the formula"
    assert "2411.14257" in SCORES["mean_rate_difference"].source


def as_mean(delta: np.ndarray, effect: np.ndarray, k: int) -> np.ndarray:
    chosen = Selection.largest(delta, k)
    return chosen.mean(effect[chosen.draws, chosen.latents])


@given(st.integers(1, 12), st.integers(1, 20), st.integers(0, 10_000), st.integers(2, 8))
@settings(max_examples=60, deadline=None)
def test_top_k_is_the_mean_over_all_orders_of_the_tied(k: int, width: int, seed: int, levels: int) -> None:
    """Ties share their slots: the same as sorting with ties broken at random, averaged over many sorts."""
    rng = np.random.default_rng(seed)
    delta = rng.integers(0, levels, (1, width)) / levels
    delta[rng.random((1, width)) < 0.2] = -np.inf
    effect = rng.random((1, width))
    got = as_mean(delta, effect, k)[0]
    finite = np.flatnonzero(np.isfinite(delta[0]))
    if len(finite) == 0:
        assert np.isnan(got)
        return
    taken = min(k, len(finite))
    kth = np.sort(delta[0, finite])[::-1][taken - 1]
    above = finite[delta[0, finite] > kth]
    tied = finite[delta[0, finite] == kth]
    expected = (effect[0, above].sum() + (taken - len(above)) * effect[0, tied].mean()) / taken
    assert got == pytest.approx(expected)


def test_top_k_of_a_row_does_not_hang_on_the_other_rows() -> None:
    delta = np.array([[3.0, 1.0, 1.0, 1.0, 0.0], [-np.inf] * 5, [1.0, -np.inf, -np.inf, -np.inf, -np.inf]])
    effect = np.array([[10.0, 1.0, 2.0, 3.0, 99.0], [9.0] * 5, [4.0, 9.0, 9.0, 9.0, 9.0]])
    got = as_mean(delta, effect, 2)
    assert got[[0, 2]] == pytest.approx([(10 + 2) / 2, 4])
    assert np.isnan(got[1])
    assert Selection.largest(delta, 2).n_slots.tolist() == [2, 0, 1]


@pytest.mark.parametrize("score", SCORES)
def test_constant_latents_score_nothing(score: str) -> None:
    rates = np.full((N_DOMAIN + N_CONTROL, 6), 0.05, dtype=np.float32)
    sample = LayerSample(rates, rates, rates.sum(1, dtype=np.float64), 2, 0.3, 0.01)
    assert SCORES[score].observed(sample, DESIGN) == pytest.approx(0, abs=1e-7)
    assert SCORES[score].permuted(sample, Permuted(DESIGN, 5), Progress()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_no_latents_is_no_score_and_few_latents_are_all_taken(score: str) -> None:
    none = a_sample(latents=3)
    empty = LayerSample(none.rates[:, :0], none.mass[:, :0], none.total_mass, 4, 0.3, 0.01)
    assert np.isnan(SCORES[score].observed(empty, DESIGN))
    assert np.isnan(SCORES[score].bootstrap(empty, Bootstrap(DESIGN, 3), Progress())).all()
    assert np.isnan(SCORES[score].permuted(empty, Permuted(DESIGN, 3), Progress())).all()
    if isinstance(SCORES[score], CrossFitted):
        few, all_of_them = a_sample(latents=5, top_k=500), a_sample(latents=5, top_k=5)
        assert SCORES[score].observed(few, DESIGN) == SCORES[score].observed(all_of_them, DESIGN)
        dense = a_sample(dense_rate=0.0)
        dense.rates[:, :] = np.maximum(dense.rates, 0.05)
        assert np.isnan(SCORES[score].observed(dense, DESIGN)), "dense latents are not selected"


@pytest.mark.parametrize("score", SCORES)
def test_blocks_of_draws_change_no_score(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, bootstrap, permuted = a_sample(), Bootstrap(DESIGN, 50), Permuted(DESIGN, 50)
    whole = [
        SCORES[score].bootstrap(sample, bootstrap, Progress()),
        SCORES[score].permuted(sample, permuted, Progress()),
    ]
    monkeypatch.setattr(resampling, "BLOCK_ELEMENTS", 40 * 7)
    parts = [
        SCORES[score].bootstrap(sample, bootstrap, Progress()),
        SCORES[score].permuted(sample, permuted, Progress()),
    ]
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
