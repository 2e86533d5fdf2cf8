"""Each score equals its definition, written out slowly: ties, constants, too few latents, every draw."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stethoscope.progress import Progress
from stethoscope.records import SCORE_NAMES
from stethoscope.sae import judged, resampling, scores
from stethoscope.sae.rates import LayerTable
from stethoscope.sae.resampling import Bootstrap, Design, Permuted
from stethoscope.sae.sample import LayerSample, Ordered
from stethoscope.sae.scores import SCORES, CrossFitted
from stethoscope.sae.top_k import Selection, at_least, descending, kth_largest
from stethoscope.statistics import benjamini_hochberg
from tests.sae import reference
from tests.sae.reference import DenseSample, mann_whitney_auroc

N_DOMAIN, N_CONTROL = 24, 28
DESIGN = Design.of(N_DOMAIN, N_CONTROL, n_splits=3, seed=5)


def a_sample(seed: int = 0, *, latents: int = 40, top_k: int = 4, dense_rate: float = 0.3) -> DenseSample:
    """Rates of 20 tokens with a few domain latents, and masses that go with them."""
    rng = np.random.default_rng(seed)
    rate = rng.uniform(0.02, 0.2, latents)
    rates = rng.binomial(20, rate, size=(N_DOMAIN + N_CONTROL, latents)) / 20
    rates[:N_DOMAIN, :3] = rng.binomial(20, 0.4, size=(N_DOMAIN, 3)) / 20
    rates += rng.uniform(0, 1e-3, rates.shape) * (rates > 0)  # no ties but those of zeros
    mass = rates * rng.uniform(0.5, 2, size=rates.shape)
    total = mass.sum(1) * 1.5
    return DenseSample(
        rates=rates.astype(np.float32),
        mass=mass.astype(np.float32),
        total_mass=total,
        top_k=top_k,
        dense_rate=dense_rate,
        floor=1 / 1120,
    )


def sparse(sample: DenseSample) -> LayerSample:
    """The same latents in the package's format."""
    assert sample.mass is not None
    assert sample.total_mass is not None
    documents, latents = np.nonzero(sample.rates)
    table = LayerTable.of_entries(
        sample.rates.shape[1],
        len(sample.rates),
        documents=documents,
        latents=latents,
        rates=sample.rates[documents, latents],
        masses=sample.mass[documents, latents],
    )
    taken = LayerSample.of_table(
        table,
        np.arange(sample.rates.shape[1]),
        with_mass=True,
        top_k=sample.top_k,
        dense_rate=sample.dense_rate,
        floor=sample.floor,
    )
    return replace(taken, total_mass=torch.from_numpy(sample.total_mass))


def by_definition(score: str, sample: DenseSample, design: Design) -> float:
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
    assert SCORES[score].observed(sparse(sample), DESIGN) == pytest.approx(
        by_definition(score, sample, DESIGN), rel=1e-6
    )


@pytest.mark.parametrize("score", SCORES)
def test_a_draw_is_the_score_of_the_documents_that_it_stands_for(score: str) -> None:
    """Permuting documents and scoring them again gives the permuted draw, for both domain and control labels."""
    sample = a_sample()
    permuted = Permuted(DESIGN, 3)
    drawn = SCORES[score].permuted(sparse(sample), permuted, Progress())
    for draw in range(3):
        order = permuted.order[draw]
        moved = DenseSample(
            sample.rates[order], sample.mass[order], sample.total_mass[order], 4, sample.dense_rate, sample.floor
        )
        assert drawn[draw] == pytest.approx(SCORES[score].observed(sparse(moved), DESIGN), rel=1e-4, abs=1e-6)


def test_a_bootstrap_draw_is_the_score_of_copied_documents() -> None:
    """Compare with copying a draw's documents, each into its own half, and using plain means."""
    sample, bootstrap = a_sample(), Bootstrap(DESIGN, 4)
    for score in ("mean_rate_difference", "log_ratio", "activation_mass"):
        drawn = SCORES[score].bootstrap(sparse(sample), bootstrap, Progress())
        for draw in range(4):
            copies = np.repeat(np.arange(len(sample.rates)), bootstrap.counts[draw].numpy().astype(int))
            position = {old: np.flatnonzero(copies == old) for old in range(len(sample.rates))}

            def moved(documents: np.ndarray, where: dict[int, np.ndarray] = position) -> np.ndarray:
                return np.concatenate([where[int(i)] for i in documents])

            splits = tuple(
                resampling.Split(tuple(map(moved, split.domain)), tuple(map(moved, split.control)))
                for split in DESIGN.splits
            )
            copied = DenseSample(
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
    assert SCORES["specific_share"].observed(sparse(sample), DESIGN) == pytest.approx(expected)


def test_specific_shares_bootstrap_counts_pairs_of_copied_documents() -> None:
    sample, bootstrap = a_sample(3), Bootstrap(DESIGN, 12)
    sample.rates[N_DOMAIN:, :3] = 0
    drawn = SCORES["specific_share"].bootstrap(sparse(sample), bootstrap, Progress())
    ties = mann_whitney_auroc(sample.rates[:N_DOMAIN], sample.rates[N_DOMAIN:])
    assert ties.p[0] < 1e-3
    for draw in range(12):
        copies = np.repeat(np.arange(len(sample.rates)), bootstrap.counts[draw].numpy().astype(int))
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
    chosen = Selection.largest(torch.from_numpy(delta), k)
    return chosen.mean(torch.from_numpy(effect)[chosen.rows, chosen.columns]).numpy()


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
    assert Selection.largest(torch.from_numpy(delta), 2).n_slots.tolist() == [2, 0, 1]


@pytest.mark.parametrize("score", SCORES)
def test_constant_latents_score_nothing(score: str) -> None:
    rates = np.full((N_DOMAIN + N_CONTROL, 6), 0.05, dtype=np.float32)
    sample = DenseSample(rates, rates, rates.sum(1, dtype=np.float64), 2, 0.3, 0.01)
    assert SCORES[score].observed(sparse(sample), DESIGN) == pytest.approx(0, abs=1e-7)
    assert SCORES[score].permuted(sparse(sample), Permuted(DESIGN, 5), Progress()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("score", SCORES)
def test_no_latents_is_no_score_and_few_latents_are_all_taken(score: str) -> None:
    none = a_sample(latents=3)
    empty = DenseSample(none.rates[:, :0], none.mass[:, :0], none.total_mass, 4, 0.3, 0.01)
    assert np.isnan(SCORES[score].observed(sparse(empty), DESIGN))
    assert np.isnan(SCORES[score].bootstrap(sparse(empty), Bootstrap(DESIGN, 3), Progress())).all()
    assert np.isnan(SCORES[score].permuted(sparse(empty), Permuted(DESIGN, 3), Progress())).all()
    if isinstance(SCORES[score], CrossFitted):
        few, all_of_them = a_sample(latents=5, top_k=500), a_sample(latents=5, top_k=5)
        assert SCORES[score].observed(sparse(few), DESIGN) == SCORES[score].observed(sparse(all_of_them), DESIGN)
        dense = a_sample(dense_rate=0.0)
        dense.rates[:, :] = np.maximum(dense.rates, 0.05)
        assert np.isnan(SCORES[score].observed(sparse(dense), DESIGN)), "dense latents are not selected"


def a_wide_sample(seed: int, *, latents: int, top_k: int, tokens: int = 40) -> DenseSample:
    """Rates as SAEs have them: most latents rare, a few frequent or dense, ties, some silent on one side."""
    rng = np.random.default_rng(seed)
    rate = np.minimum(np.exp(rng.normal(-5, 2, latents)), 0.6)
    rate = np.tile(rate, (N_DOMAIN + N_CONTROL, 1))
    rate[:N_DOMAIN, rng.choice(latents, latents // 20, replace=False)] *= 4
    rates = (rng.binomial(tokens, np.minimum(rate, 0.9)) / tokens).astype(np.float32)
    mass = rates * rng.uniform(0.5, 2, rates.shape).astype(np.float32)
    return DenseSample(rates, mass, mass.sum(1, dtype=np.float64) * 1.5, top_k, 0.2, 1 / 1120)


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize(("latents", "top_k"), [(3000, 16), (3000, 1), (200, 150), (40, 4)])
def test_every_draw_is_that_of_a_dense_computation(score: str, latents: int, top_k: int) -> None:
    """All latents of all draws in plain numpy, against bounds, blocks and sparse tables: within 1e-6."""
    sample = a_wide_sample(latents + top_k, latents=latents, top_k=top_k)
    ours, theirs, taken = SCORES[score], reference.SCORES[score], sparse(sample)
    assert ours.observed(taken, DESIGN) == pytest.approx(theirs.observed(sample, DESIGN), abs=1e-9)
    pairs = [
        (
            ours.bootstrap(taken, Bootstrap(DESIGN, 30), Progress()),
            theirs.bootstrap(sample, reference.Bootstrap(DESIGN, 30)),
        ),
        (
            ours.permuted(taken, Permuted(DESIGN, 30), Progress()),
            theirs.permuted(sample, reference.Permuted(DESIGN, 30)),
        ),
    ]
    for got, expected in pairs:
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6)


def test_few_latents_are_looked_at_and_none_that_counts_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = sparse(a_wide_sample(1, latents=6000, top_k=8))
    drawn, looked_at = Permuted(DESIGN, 20), []
    rates = Ordered.rates
    monkeypatch.setattr(Ordered, "rates", lambda self, n: looked_at.append(n) or rates(self, n))
    SCORES["mean_rate_difference"].permuted(sample, drawn, Progress())
    assert max(looked_at) < 0.5 * sample.n_latents
    monkeypatch.setattr(judged, "FIRST_COLUMNS", 16)
    few = SCORES["mean_rate_difference"].permuted(sample, drawn, Progress())
    monkeypatch.setattr(judged, "FIRST_COLUMNS", 10**6)
    np.testing.assert_allclose(few, SCORES["mean_rate_difference"].permuted(sample, drawn, Progress()), atol=1e-6)
    assert max(looked_at) == sample.n_latents


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0])
def test_a_bound_that_was_too_high_or_low_changes_no_draw(margin: float, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, drawn = sparse(a_wide_sample(3, latents=4000, top_k=8)), Permuted(DESIGN, 24)
    expected = SCORES["mean_rate_difference"].permuted(sample, drawn, Progress())
    monkeypatch.setattr(judged, "MARGIN", margin)
    monkeypatch.setattr(judged, "BLOCKS", {"cpu": judged.Block(DESIGN.n_halves, 100, 10**6)})
    got = SCORES["mean_rate_difference"].permuted(sample, drawn, Progress())
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("n_kept", "most_rows"), [(1, DESIGN.n_halves), (10**4, 16 * DESIGN.n_halves)])
def test_a_block_of_draws_keeps_its_table_in_bounds(
    n_kept: int, most_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block's table has at most this many numbers, or consists of a single draw."""
    sample, shapes, select = sparse(a_wide_sample(2, latents=3000, top_k=8)), [], judged._select
    monkeypatch.setattr(judged, "_select", lambda kept, *rest: shapes.append(kept.delta.shape) or select(kept, *rest))
    monkeypatch.setattr(judged, "BLOCKS", {"cpu": judged.Block(10**3, 64, n_kept)})
    SCORES["mean_rate_difference"].permuted(sample, Permuted(DESIGN, 40), Progress())
    assert max(rows for rows, _ in shapes) <= most_rows
    assert all(rows * columns <= n_kept or rows == DESIGN.n_halves for rows, columns in shapes)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_order_statistics_are_torchs(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's code (numpy) and that of other devices (torch, forced here by hiding the device)."""
    values = torch.from_numpy(np.random.default_rng(0).integers(0, 50, (7, 203)) / 50)
    expected = values.sort(dim=1, descending=True).values
    lowest, rows, columns = expected[:, 12:13], *(values >= expected[:, 12:13]).nonzero(as_tuple=True)
    if device == "meta":
        monkeypatch.setattr(torch.Tensor, "device", property(lambda _: torch.device("meta")))
    assert torch.equal(descending(values), expected)
    assert torch.equal(kth_largest(values, 13), expected[:, 12])
    assert all(map(torch.equal, at_least(values, lowest), (rows, columns)))


@pytest.mark.parametrize("score", SCORES)
def test_blocks_of_draws_change_no_score(score: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, bootstrap, permuted = sparse(a_sample()), Bootstrap(DESIGN, 50), Permuted(DESIGN, 50)
    whole = [
        SCORES[score].bootstrap(sample, bootstrap, Progress()),
        SCORES[score].permuted(sample, permuted, Progress()),
    ]
    monkeypatch.setattr(scores, "BLOCK_ELEMENTS", {"cpu": 40 * 7})
    monkeypatch.setattr(judged, "BLOCKS", {"cpu": judged.Block(20, 7, 40 * 7)})
    parts = [
        SCORES[score].bootstrap(sample, bootstrap, Progress()),
        SCORES[score].permuted(sample, permuted, Progress()),
    ]
    np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-6)
