"""Every p agrees with its interval or threshold, and both with a second computation in arbitrary precision.

If p and the 95% interval come from one distribution, p < .05 exactly if the interval excludes zero.
"""

import math
from collections.abc import Mapping

import mpmath
import numpy as np
import pytest
import torch

from stethoscope import statistics as S
from stethoscope.sae.ranks import mann_whitney_spread, mann_whitney_z, rejected_by_fdr, two_sided_p
from stethoscope.statistics.power import _critical_losses

Strata = dict[str, np.ndarray]
DRAWS = (1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 14, 21, 50, 100)  # degrees of freedom one less


def case(generator: np.random.Generator, n_draws: int, sizes: list[int], effect: float, spread: float) -> tuple:
    """Return right or wrong of one arm and of `n_draws` random ones, which differ in their own accuracy by `spread`."""
    rates = np.clip(0.5 + spread * generator.standard_normal(n_draws), 0, 1)
    names = [f"s{i}" for i in range(len(sizes))]
    ours: Strata = {name: generator.random(n) < 0.5 + effect for name, n in zip(names, sizes, strict=True)}
    draws = {name: generator.random((n_draws, n)) < rates[:, None] for name, n in zip(names, sizes, strict=True)}
    return ours, draws


def upper_tail(t: mpmath.mpf, freedom: int) -> mpmath.mpf:
    """Return P(T > t) of Student's t for t >= 0."""
    half = mpmath.mpf(freedom) / 2
    return mpmath.betainc(half, mpmath.mpf(1) / 2, 0, freedom / (freedom + t**2), regularized=True) / 2


def quantile(tail: mpmath.mpf, freedom: int) -> mpmath.mpf:
    """Return the t >= 0 that is exceeded with probability `tail`, by bisection of its logarithm."""
    low, high = mpmath.mpf("1e-8"), mpmath.mpf("1e8")
    for _ in range(60):
        middle = mpmath.sqrt(low * high)
        low, high = (middle, high) if upper_tail(middle, freedom) > tail else (low, middle)
    return low


def parts(ours: Mapping[str, np.ndarray], draws: Mapping[str, np.ndarray]) -> tuple[float, float, float]:
    """Return the difference and its variance over problems and over draws, each from its definition."""
    difference, over_problems = [], 0.0
    for name, right in ours.items():
        n = len(right)
        each = [float(right[i]) - float(np.mean(draws[name][:, i])) for i in range(n)]
        difference.append(sum(each) / n)
        each_and_halves = [(value, 1.0) for value in each] + [(1.0, 0.5), (-1.0, 0.5), (0.0, 0.5), (0.0, 0.5)]
        mean = sum(w * v for v, w in each_and_halves) / (n + 2)
        over_problems += sum(w * (v - mean) ** 2 for v, w in each_and_halves) / (n + 1) / n / len(ours) ** 2
    accuracies = np.mean([of.mean(axis=1) for of in draws.values()], axis=0)
    over_draws = float(np.var(accuracies, ddof=1)) / len(accuracies) if len(accuracies) > 1 else 0.0
    return float(np.mean(difference)), over_problems, over_draws


@pytest.mark.parametrize("n_draws", DRAWS)
def test_p_of_random_draws_says_what_its_interval_says(n_draws: int) -> None:
    generator = np.random.default_rng(n_draws)
    inside = outside = 0
    for _ in range(60):
        sizes = generator.integers(1, 200, generator.integers(1, 8)).tolist()
        found = S.difference_to_draws(
            *case(generator, n_draws, sizes, generator.choice([0, 0.03, 0.1, 0.3]), generator.choice([0, 0.05, 0.2]))
        )
        excludes = found.low > 0 or found.high < 0
        assert (found.p < 0.05) == excludes
        assert 0 < found.p <= 1
        inside, outside = inside + (not excludes), outside + excludes
    assert inside
    assert outside


@pytest.mark.parametrize("n_draws", DRAWS)
@pytest.mark.parametrize("effect", [0.0, 0.05, 0.45])
def test_p_and_interval_of_random_draws_are_those_of_a_second_computation(n_draws: int, effect: float) -> None:
    generator = np.random.default_rng([n_draws, round(100 * effect)])
    ours, draws = case(generator, n_draws, [30, 7, 60], effect, 0.1)
    found = S.difference_to_draws(ours, draws)
    difference, v, w = parts(ours, draws)
    freedom = sum(map(len, ours.values())) - len(ours)

    def critical(tail: mpmath.mpf) -> mpmath.mpf:
        of_draws = quantile(tail, n_draws - 1) if n_draws > 1 else 0
        return (v * quantile(tail, freedom) + w * of_draws) / (v + w)

    with mpmath.workdps(30):
        half = float(critical(mpmath.mpf("0.025"))) * math.sqrt(v + w)
        assert found.difference == pytest.approx(difference)
        assert (found.low, found.high) == pytest.approx((max(difference - half, -1), min(difference + half, 1)))
        if difference:
            assert float(critical(mpmath.mpf(found.p) / 2)) == pytest.approx(abs(difference) / math.sqrt(v + w))


def test_a_difference_beyond_every_quantile_still_has_a_p() -> None:
    right = np.ones(5000, dtype=bool)
    for n_draws in DRAWS:
        draws = np.zeros((n_draws, 5000), dtype=bool)
        for row in range(n_draws):  # a draw a little better than the next: W > 0
            draws[row, :row] = True
        found = S.difference_to_draws({"a": right, "b": right}, {"a": draws, "b": draws})
        assert found.low > 0.9
        assert 0 <= found.p < 1e-2 / n_draws


@pytest.mark.parametrize(("n10", "n01"), [(1, 0), (5, 0), (6, 0), (40, 15), (300, 0), (900, 500)])
def test_mcnemar_is_the_sum_of_binomial_coefficients(n10: int, n01: int) -> None:
    n = n10 + n01
    exact = mpmath.mpf(2 * sum(math.comb(n, i) for i in range(min(n10, n01) + 1))) / mpmath.mpf(2) ** n
    assert S.mcnemar_exact(n10, n01) == pytest.approx(float(min(exact, mpmath.mpf(1))), rel=1e-9)


@pytest.mark.parametrize("level", [0.05, 0.05 / 7, 0.05 / 34, 1e-6])
def test_power_counts_the_tables_that_mcnemar_rejects(level: float) -> None:
    critical = _critical_losses(150, level)
    for pairs in range(151):
        rejected = [losses for losses in range(pairs // 2 + 1) if S.mcnemar_exact(pairs - losses, losses) < level]
        assert critical[pairs] == max(rejected, default=-1)


def test_e_value_is_its_formula() -> None:
    with mpmath.workdps(40):
        for gained, lost in ((0, 0), (3, 0), (40, 15), (700, 650), (1000, 900)):
            exact = mpmath.mpf(2) ** (gained + lost) * mpmath.beta(gained + 0.5, lost + 0.5) / mpmath.beta(0.5, 0.5)
            assert S.discordant_e_value(gained, lost) == pytest.approx(float(exact), rel=1e-9)


def test_z_and_mann_whitney_take_their_tail_from_the_normal_distribution() -> None:
    for z in (0.0, 0.5, 1.96, 6.0, 20.0, 37.0):
        n1, n2 = 400, 600
        centre, sd = n1 * n2 / 2, math.sqrt(n1 * n2 * (n1 + n2 + 1) / 12)
        u, no_ties = torch.tensor([centre + 0.5 + z * sd], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        p = two_sided_p(mann_whitney_z(u, n1, n2, mann_whitney_spread(n1, n2, no_ties)))
        assert float(p) == pytest.approx(float(mpmath.erfc(z / mpmath.sqrt(2))), rel=1e-9)
    for k1, k2 in ((160, 213), (10, 500), (270, 271), (1, 539)):
        found = S.unpooled_z(k1, 540, k2, 540)
        assert found.p == pytest.approx(float(mpmath.erfc(abs(found.z) / mpmath.sqrt(2))), rel=1e-9)


@pytest.mark.parametrize("n", [2, 3, 5, 30, 1000, 5000])
@pytest.mark.parametrize("level", [0.9, 0.95, 0.999])
def test_the_interval_of_a_mean_is_students(n: int, level: float) -> None:
    values = np.random.default_rng(n).normal(0.2, 1, n)
    found = S.paired_mean_interval(values, level=level)
    error = float(values.std(ddof=1)) / math.sqrt(n)
    with mpmath.workdps(30):
        assert (found.high - found.mean) / error == pytest.approx(float(quantile(mpmath.mpf(1 - level) / 2, n - 1)))


@pytest.mark.parametrize("draws", [19, 99, 299, 1999])
def test_fdr_rejects_as_many_from_the_smallest_as_by_q_values(draws: int) -> None:
    generator = np.random.default_rng(draws)
    for n in (1, 7, 34, 200):  # p values of permutations lie on a lattice, where ties with the level occur
        p = (1 + np.floor((1 + draws) * generator.random((20, n)) ** 4)) / (1 + draws)
        for level in (0.05, 0.2):
            rejected = rejected_by_fdr(torch.from_numpy(np.sort(p)), n, level)
            by_q = [int((S.benjamini_hochberg(row) <= level).sum()) for row in p]
            assert rejected.tolist() == by_q


@pytest.mark.parametrize("kind", ["macro", "micro"])
@pytest.mark.parametrize("n", [1, 5, 100, 540])
@pytest.mark.parametrize("outcome", [(True, True), (False, False), (True, False), (False, True)])
def test_no_total_claims_certainty(kind: str, n: int, outcome: tuple[bool, bool]) -> None:
    """Where all pairs come out alike, other pairs could still differ."""
    arm, reference = ({name: np.full(n, right) for name in "abc"} for right in outcome)
    total = S.stratified_paired_bootstrap(arm, reference, kind=kind)  # type: ignore[arg-type]
    table = (
        3 * n * outcome[0] * outcome[1],
        3 * n * (outcome == (True, False)),
        3 * n * (outcome == (False, True)),
        3 * n * (outcome == (False, False)),
    )
    score = S.newcombe_paired(*table)
    assert total.difference == score.difference
    assert total.low <= total.difference <= total.high
    assert total.high - total.low > 0.3 * (score.high - score.low)
    assert total.high - total.low < 3 * (score.high - score.low)
    assert -1 <= total.low < total.high <= 1


def test_subjects_without_a_discordant_pair_widen_the_total() -> None:
    """Their zero is an estimate, too: the variance of a mixed one is (2 + 1) / 52, that of one of them 1 / 52."""
    arm, reference = np.arange(50) > 0, np.arange(50) != 1  # one pair gained, one lost
    mixed = {f"mixed {i}": (arm, reference) for i in range(10)}
    every = mixed | {f"same {i}": (arm, arm) for i in range(10)}

    def width(pairs: dict[str, tuple[np.ndarray, np.ndarray]]) -> float:
        ours, theirs = ({name: pair[side] for name, pair in pairs.items()} for side in (0, 1))
        total = S.stratified_paired_bootstrap(ours, theirs, draws=40_000)
        return len(pairs) * (total.high - total.low)

    assert width(every) / width(mixed) == pytest.approx(math.sqrt(4 / 3), rel=0.05)


def test_the_totals_spread_is_that_of_its_pairs_with_half_a_pair_in_each_cell() -> None:
    generator = np.random.default_rng(4)
    for n in (1, 4, 40, 400):
        arm, reference = generator.random((2, n)) < 0.6
        total = S.stratified_paired_bootstrap({"a": arm}, {"a": reference}, draws=40_000)
        gained, lost = float((arm & ~reference).sum()) + 0.5, float((~arm & reference).sum()) + 0.5
        mean = (gained - lost) / (n + 2)
        sd = math.sqrt((((gained + lost) / (n + 2)) - mean**2) / n)
        half = 1.96 * sd
        assert total.low == pytest.approx(max(total.difference - half, -1), abs=0.15 * sd + 1.1 / n)
        assert total.high == pytest.approx(min(total.difference + half, 1), abs=0.15 * sd + 1.1 / n)
