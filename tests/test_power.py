"""A benchmark's power, compared with published and simulated values; error rates under repeated looks."""

import functools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stethoscope import statistics as S
from stethoscope.statistics.power import _critical_losses, discordant_rates

mcnemar_exact = functools.cache(S.mcnemar_exact)  # simulated tables hold the same counts many times
BASE, GAIN, CORRELATION = 160 / 540, 53 / 540, 0.45  # the abstract's number theory: 29.6% to 39.4%, +9.8 points


def simulated_tables(n: int, base: float, difference: float, correlation: float, trials: int, seed: int) -> np.ndarray:
    """Draw 2x2 tables [trials, (n11, n10, n01, n00)] of answers with these accuracies and correlation."""
    arm = base + difference
    both = arm * base + correlation * math.sqrt(arm * (1 - arm) * base * (1 - base))
    shares = [both, arm - both, base - both, 1 - arm - base + both]
    return np.random.default_rng(seed).multinomial(n, shares, size=trials)


@pytest.mark.parametrize(("n", "power"), [(50, 0.19), (100, 0.41), (200, 0.76)])
def test_power_of_the_abstracts_effect(n: int, power: float) -> None:
    assert round(S.mcnemar_power(n, BASE, GAIN, CORRELATION), 2) == power


@pytest.mark.parametrize(
    ("n", "base", "difference", "correlation"), [(60, 0.3, 0.15, 0.45), (150, 0.6, -0.1, 0.3), (40, 0.5, 0.3, -0.2)]
)
def test_power_is_what_simulation_finds(n: int, base: float, difference: float, correlation: float) -> None:
    tables = simulated_tables(n, base, difference, correlation, 6000, seed=n)
    found = [mcnemar_exact(n10, n01) < 0.05 and (n10 - n01) * difference > 0 for _, n10, n01, _ in tables.tolist()]
    sd = 0.0065  # binomial, at most
    assert S.mcnemar_power(n, base, difference, correlation) == pytest.approx(np.mean(found), abs=4 * sd)


@pytest.mark.parametrize("level", [0.05, 0.05 / 7, 0.0625])
def test_the_critical_count_is_the_last_one_that_the_test_itself_rejects(level: float) -> None:
    for pairs, losses in enumerate(_critical_losses(60, level).tolist()):
        rejected = [lost for lost in range(pairs // 2 + 1) if mcnemar_exact(pairs - lost, lost) < level]
        assert losses == max(rejected, default=-1), pairs


def test_without_a_difference_power_is_the_one_sided_error() -> None:
    for n in (20, 100, 500):
        assert 0 < S.mcnemar_power(n, 0.3, 0.0, 0.45) <= 0.025
    assert S.mcnemar_power(5, 0.3, 0.3, 0.45) == 0.0, "five discordant pairs cannot reach .05"
    assert S.mcnemar_power(100, 0.3, 0.0, 1.0) == 0.0, "no discordant pairs at all"


@given(st.floats(0.02, 0.9), st.floats(0.0, 0.4), st.floats(-1, 1), st.integers(5, 300))
@settings(max_examples=60, deadline=None)
def test_power_grows_with_the_effect_and_the_level(base: float, gain: float, phi: float, n: int) -> None:
    gain = min(gain, 1 - base)
    rates = discordant_rates(base, gain, phi)
    assert rates.gained - rates.lost == pytest.approx(gain, abs=1e-9)
    assert min(rates) >= -1e-12
    assert rates.gained + rates.lost <= 1 + 1e-12
    power = S.mcnemar_power(n, base, gain, phi)
    assert 0 <= power <= 1 + 1e-9
    assert S.mcnemar_power(n, base, gain, phi, level=0.01) <= power + 1e-12
    mirrored = S.mcnemar_power(n, base + gain, -gain, phi)  # the arms change names
    assert mirrored == pytest.approx(power, abs=1e-9)


def test_detectable_difference_is_where_power_crosses() -> None:
    for n in (50, 100, 474, 1187):
        found = S.detectable_difference(n, BASE, CORRELATION)
        assert found is not None
        assert S.mcnemar_power(n, BASE, found, CORRELATION) >= 0.8
        assert S.mcnemar_power(n, BASE, found - 2e-4, CORRELATION) < 0.8
    detectable = [S.detectable_difference(n, BASE, CORRELATION) or 1 for n in (50, 100, 200, 400, 1187)]
    assert detectable == sorted(detectable, reverse=True)
    assert round(100 * detectable[0]) == 22  # fifty problems cannot see less than 22 points
    holm = S.detectable_difference(200, BASE, CORRELATION, power=0.5, level=0.05 / 7) or 1
    assert S.mcnemar_power(200, BASE, holm, CORRELATION, level=0.05 / 7) >= 0.5
    assert S.mcnemar_power(200, BASE, holm - 2e-4, CORRELATION, level=0.05 / 7) < 0.5
    assert S.detectable_difference(5, BASE, CORRELATION) is None
    assert S.detectable_difference(100, 1.0, CORRELATION) is None, "nothing is above 100%"


def test_found_after_holm_is_what_simulation_finds() -> None:
    for n, published in ((100, 1.4), (200, 4.0)):
        expected = S.expected_found((n,) * 7, BASE, GAIN, CORRELATION)
        assert expected == pytest.approx(published, abs=0.15)
        tables = simulated_tables(n, BASE, GAIN, CORRELATION, 7 * 1500, seed=n)
        p = np.array([mcnemar_exact(n10, n01) if n10 > n01 else 1.0 for _, n10, n01, _ in tables.tolist()])
        found = [(S.holm(family) < 0.05).sum() for family in p.reshape(-1, 7)]
        assert expected == pytest.approx(np.mean(found), abs=4 * np.std(found) / math.sqrt(1500))
    alone = S.expected_found((100,), BASE, GAIN, CORRELATION)
    assert alone == pytest.approx(S.mcnemar_power(100, BASE, GAIN, CORRELATION), abs=4 * 0.5 / math.sqrt(20_000))


def test_subjects_of_different_sizes_are_found_between_the_smallest_and_the_largest() -> None:
    math_sizes = (1187, 474, 479, 903, 540, 871, 546)
    gain = 0.04
    few, own, many = (S.expected_found(n, BASE, gain, CORRELATION) for n in ((474,) * 7, math_sizes, (1187,) * 7))
    assert few < own < many
    first = S.expected_found((5, 1187), BASE, GAIN, CORRELATION)  # five problems can show nothing
    assert first == pytest.approx(S.mcnemar_power(1187, BASE, GAIN, CORRELATION, level=0.025), abs=0.02)


def test_a_margin_of_three_points_needs_more_than_a_thousand_problems() -> None:
    n = S.n_for_margin(BASE, CORRELATION, 0.03)
    assert n > 1000
    tables = simulated_tables(n, BASE, 0.0, CORRELATION, 1500, seed=3)
    lows = [S.newcombe_paired(*table).low for table in tables.tolist()]
    assert np.mean(np.array(lows) > -0.03) == pytest.approx(0.8, abs=0.05)
    gaining = S.n_for_margin(BASE, CORRELATION, 0.03, difference=0.1)
    tables = simulated_tables(gaining, BASE, 0.1, CORRELATION, 1500, seed=4)
    found = np.diff(tables[:, [2, 1]], axis=1)[:, 0] / gaining
    sd = math.sqrt(sum(discordant_rates(BASE, 0.1, CORRELATION)) - 0.1**2) / math.sqrt(gaining)
    assert found.std() == pytest.approx(sd, rel=0.06), "sd of a paired difference"
    assert gaining == math.ceil((sd * math.sqrt(gaining) * (1.959964 + 0.841621) / 0.13) ** 2)
    assert S.n_for_margin(BASE, CORRELATION, 0.03, difference=0.03) < n / 3


def test_fast_enough_for_a_slider() -> None:
    S.detectable_difference.cache_clear()
    S.mcnemar_power.cache_clear()
    started = time.process_time()
    for n in range(20, 1187, 60):
        S.detectable_difference(n, 0.31, 0.4)
    assert time.process_time() - started < 2.0  # 20 settings; a shared machine is slow, a slider needs one
    started = time.process_time()
    for n in range(20, 1187, 60):
        S.detectable_difference(n, 0.31, 0.4)
    assert time.process_time() - started < 0.01


def test_the_e_value_keeps_its_error_under_continuous_peeking_where_mcnemar_does_not() -> None:
    generator = np.random.default_rng(4)
    trials, length = 1500, 300
    flips = generator.random((trials, length)) < 0.5
    gained = flips.cumsum(axis=1)
    total = range(1, length + 1)
    place = np.arange(length)
    e = np.array([[S.discordant_e_value(g, k - g) for g in range(k + 1)] + [0.0] * (length - k) for k in total])
    crossed = (e[place, gained] >= 20).any(axis=1).mean()
    assert 0.005 < crossed <= 0.05, "P(sup e >= 20) <= 1/20 (Ville)"
    p = np.array([[mcnemar_exact(g, k - g) for g in range(k + 1)] + [1.0] * (length - k) for k in total])
    assert (p[place, gained] < 0.05).any(axis=1).mean() > 0.2, "what the e-value is for"


def test_the_e_value_is_a_mean_of_likelihood_ratios() -> None:
    """E[e] = 1 under the null at every fixed length: the sum over all outcomes of probability times e."""
    for k in (1, 7, 40):
        expected = sum(math.comb(k, g) * 0.5**k * S.discordant_e_value(g, k - g) for g in range(k + 1))
        assert expected == pytest.approx(1.0)


def test_the_totals_bootstrap_covers_the_truth() -> None:
    generator = np.random.default_rng(5)
    covered = {"macro": 0, "micro": 0}
    trials, sizes = 250, {"a": 60, "b": 120, "c": 40}
    gains = {"a": 0.15, "b": 0.0, "c": 0.05}
    truth = {"macro": 0.2 / 3, "micro": (60 * 0.15 + 40 * 0.05) / 220}
    for trial in range(trials):
        arm, reference = {}, {}
        for name, n in sizes.items():
            tables = generator.multinomial(n, [0.3, 0.1 + gains[name], 0.1, 0.5 - gains[name]])
            cells = np.repeat(np.array([(1, 1), (1, 0), (0, 1), (0, 0)], dtype=bool), tables, axis=0)
            arm[name], reference[name] = cells[:, 0], cells[:, 1]
        for kind in ("macro", "micro"):
            total = S.stratified_paired_bootstrap(arm, reference, kind=kind, draws=600, seed=trial)
            covered[kind] += total.low <= truth[kind] <= total.high
    for kind, times in covered.items():
        assert times / trials >= 0.91, kind  # nominal 95%; binomial sd 1.4%


def test_the_claim_about_layers_covers_with_three_draws() -> None:
    generator = np.random.default_rng(6)
    trials, n = 600, 100
    for sd in (0.0, 0.06, 0.15):  # draws differ in their own accuracy around .45; ours is .5
        covered = rejected = 0
        for _ in range(trials):
            rates = np.clip(generator.normal(0.45, sd, 3), 0, 1)
            ours = {s: generator.random(n) < 0.5 for s in "abcdefg"}
            draws = {s: generator.random((3, n)) < rates[:, None] for s in "abcdefg"}
            found = S.difference_to_draws(ours, draws)
            covered += found.low <= 0.05 <= found.high
            rejected += found.p < 0.05
            assert (found.p < 0.05) == (not found.low <= 0 <= found.high), "p and interval say the same"
        assert covered / trials >= 0.935, sd  # nominal 95%; binomial sd .9%
    assert rejected / trials < 0.15, "draws that differ that much leave little to say"


def test_the_claim_about_layers_is_its_formula() -> None:
    """Against the formula written out with scipy's t, at sizes where each degree of freedom and each term counts."""
    ours = {"a": [1, 1, 1, 0, 1], "b": [1, 0, 1]}
    draws = {"a": [[1, 0, 1, 0, 0], [0, 0, 1, 0, 1], [0, 0, 0, 0, 0]], "b": [[0, 0, 1], [1, 0, 0], [0, 1, 0]]}
    d = {s: np.array(ours[s]) - np.mean(draws[s], axis=0) for s in "ab"}
    v = 0.0
    for stratum in d.values():  # half a problem in each cell: differences 1, -1, 0, 0
        pairs = np.concatenate([np.repeat(stratum, 2), [1, -1, 0, 0]])  # in half problems
        v += pairs.var() * (len(pairs) / 2) / (len(pairs) / 2 - 1) / len(stratum) / 2**2
    by_draw = (np.mean(draws["a"], axis=1) + np.mean(draws["b"], axis=1)) / 2
    w = np.var(by_draw, ddof=1) / 3
    quantile = (v * stats.t.ppf(0.9, 5 + 3 - 2) + w * stats.t.ppf(0.9, 3 - 1)) / (v + w)
    mean = (d["a"].mean() + d["b"].mean()) / 2
    as_bool = [{s: np.array(of[s], dtype=bool) for s in of} for of in (ours, draws)]
    found = S.difference_to_draws(*as_bool, level=0.8)
    assert found.difference == pytest.approx(mean)
    assert found.low == pytest.approx(mean - quantile * math.sqrt(v + w))
    assert found.high == pytest.approx(mean + quantile * math.sqrt(v + w))
    assert -1 < found.low < found.high < 1, "cut off, the bounds would show nothing"
    one = S.difference_to_draws({"a": np.array(ours["a"], dtype=bool)}, {"a": np.array(draws["a"][:1], dtype=bool)})
    # the paired table (2, 2, 0, 1) of 5, half a problem added to each cell: variance of a difference 3 - 4 / 7
    assert one.p == pytest.approx(2 * stats.t.sf(0.4 / math.sqrt((3 - 4 / 7) / 6 / 5), 4))


def test_the_p_of_a_claim_falls_with_the_difference_down_to_nothing() -> None:
    others = np.zeros((2, 400), dtype=bool)
    others[:, :40] = True
    p = [S.difference_to_draws({"a": np.arange(400) < n}, {"a": others}).p for n in (40, 60, 100, 400)]
    assert p[0] == 1.0
    assert p == sorted(p, reverse=True)
    assert p[-1] < 1e-50
