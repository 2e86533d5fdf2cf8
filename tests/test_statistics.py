"""Statistics, compared with published values, statsmodels, scipy, and properties that hold for every table."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from stethoscope import statistics as S

counts = st.integers(0, 60)
tables = st.tuples(counts, counts, counts, counts).filter(lambda table: sum(table) > 0)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
@settings(max_examples=60, deadline=None)
def test_wilson_is_statsmodels(case: tuple[int, int], level: float) -> None:
    correct, n = case
    ours = S.wilson(correct, n, level)
    low, high = proportion_confint(correct, n, alpha=1 - level, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((low, high), abs=1e-12)
    assert 0 <= ours.low <= correct / n <= ours.high <= 1
    mirrored = S.wilson(n - correct, n, level)
    assert (mirrored.low, mirrored.high) == pytest.approx((1 - ours.high, 1 - ours.low), abs=1e-12)


def test_wilson_of_nothing_knows_nothing() -> None:
    assert S.wilson(0, 0) == S.Interval(0.0, 1.0)


def test_stderr_is_that_of_the_scores() -> None:
    scores = np.array([1] * 160 + [0] * 380)
    assert S.lm_eval_stderr(160, 540) == pytest.approx(scores.std(ddof=1) / math.sqrt(540), rel=1e-12)
    assert math.isnan(S.lm_eval_stderr(1, 1))


def test_unpooled_z_reproduces_the_abstract() -> None:
    test = S.unpooled_z(160, 540, 213, 540)
    assert round(test.z, 2) == 3.41
    assert round(test.p, 4) == 0.0007
    assert S.unpooled_z(213, 540, 160, 540).z == pytest.approx(-test.z)
    assert math.isnan(S.unpooled_z(5, 5, 5, 5).z)
    assert math.isnan(S.unpooled_z(1, 1, 0, 1).p)


@given(counts, counts)
@settings(max_examples=60, deadline=None)
def test_mcnemar_is_the_binomial_test(n10: int, n01: int) -> None:
    expected = stats.binomtest(n10, n10 + n01).pvalue if n10 + n01 else 1.0
    assert S.mcnemar_exact(n10, n01) == pytest.approx(expected, rel=1e-9)
    assert S.mcnemar_exact(n01, n10) == S.mcnemar_exact(n10, n01)


def test_newcombe_reference_value() -> None:
    paired = S.newcombe_paired(59, 6, 16, 80)
    assert round(paired.difference, 4) == -0.0621
    assert (round(paired.low, 4), round(paired.high, 4)) == (-0.1186, -0.0046)


def test_newcombe_branches_of_phi() -> None:
    # Newcombe 1998, table III: an interval without association is that of the square-and-add method.
    independent = S.newcombe_paired(1, 1, 1, 1)
    first = S.wilson(2, 4)
    half = math.sqrt(2 * (first.high - 0.5) ** 2)
    assert independent.high == pytest.approx(half)
    # negative association widens, positive narrows
    assert S.newcombe_paired(0, 10, 10, 0).high > S.newcombe_paired(5, 5, 5, 5).high
    assert S.newcombe_paired(10, 0, 0, 10).high < S.newcombe_paired(5, 5, 5, 5).high
    # a margin of zero has phi 0 and still an interval
    assert S.newcombe_paired(0, 0, 0, 10).high > 0


@pytest.mark.parametrize(
    ("table", "phi"),
    [
        ((36, 12, 2, 0), -24 / math.sqrt(48 * 2 * 38 * 12)),  # negative: as it is
        ((30, 20, 20, 14), 0.0),  # 0 <= n11 n00 - n10 n01 = 20 <= n / 2 = 42
        ((20, 12, 2, 16), (296 - 25) / math.sqrt(32 * 18 * 22 * 28)),  # positive: less half of n
    ],
)
def test_newcombe_is_wilsons_bounds_joined_by_phi(table: tuple[int, int, int, int], phi: float) -> None:
    n = sum(table)
    p1, p2 = (table[0] + table[1]) / n, (table[0] + table[2]) / n
    (l1, u1), (l2, u2) = (proportion_confint(round(p * n), n, method="wilson") for p in (p1, p2))
    paired = S.newcombe_paired(*table)
    down = (p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2
    up = (u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2
    assert (paired.low, paired.high) == pytest.approx((p1 - p2 - math.sqrt(down), p1 - p2 + math.sqrt(up)))


@given(tables, st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=200, deadline=None)
def test_newcombe_properties(table: tuple[int, int, int, int], level: float) -> None:
    n11, n10, n01, n00 = table
    paired = S.newcombe_paired(n11, n10, n01, n00, level)
    assert -1 <= paired.low <= paired.difference <= paired.high <= 1
    swapped = S.newcombe_paired(n11, n01, n10, n00, level)
    assert (swapped.low, swapped.high) == pytest.approx((-paired.high, -paired.low), abs=1e-12)
    mirrored = S.newcombe_paired(n00, n10, n01, n11, level)  # right and wrong change names in both arms
    assert mirrored.difference == pytest.approx(paired.difference)
    wider = S.newcombe_paired(n11, n10, n01, n00, 0.999)
    assert wider.low <= paired.low + 1e-12
    assert wider.high >= paired.high - 1e-12


@given(p_lists)
@settings(max_examples=20, deadline=None)
def test_corrections_are_statsmodels(p: list[float]) -> None:
    assert S.holm(p) == pytest.approx(multipletests(p, method="holm")[1])
    assert S.benjamini_hochberg(p) == pytest.approx(stats.false_discovery_control(p))
    assert (S.holm(p) >= np.asarray(p)).all()


def correlated(generator: np.random.Generator, rows: int, shared: float, n_layers: int = 34) -> np.ndarray:
    """Return scores [rows, n_layers] of neighbouring layers that vary together, of different spread and skew."""
    noise = math.sqrt(shared) * generator.standard_normal((rows, 1))
    noise = noise + math.sqrt(1 - shared) * generator.standard_normal((rows, n_layers))
    return np.linspace(0.1, 3, n_layers) * np.where(np.arange(n_layers) % 2, noise, np.exp(noise / 3))


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
def test_max_t_keeps_the_family_wise_level_whatever_the_layers_share(shared: float) -> None:
    generator = np.random.default_rng(round(10 * shared))
    smallest = []
    for _ in range(800):
        scores = correlated(generator, 100, shared)
        smallest.append(S.step_down_max_t(scores[0], scores[1:]).min())
    for level in (0.05, 0.2):  # exact but for ties: within 4 binomial standard errors
        assert np.mean(np.array(smallest) <= level) == pytest.approx(
            level, abs=4 * math.sqrt(level * (1 - level) / 800)
        )


def test_max_t_keeps_the_level_of_true_nulls_beside_real_effects() -> None:
    generator = np.random.default_rng(5)
    wrong = []
    for _ in range(600):
        scores = correlated(generator, 200, 0.5)
        scores[0, :10] += 30
        wrong.append((S.step_down_max_t(scores[0], scores[1:])[10:] <= 0.05).any())
    assert np.mean(wrong) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 600)


def with_a_rare_latent(generator: np.random.Generator, sizes: tuple[int, int], n_effects: int) -> np.ndarray:
    """Return scores [1 + 199, 10]: mean differences of two groups of documents, observed and with labels permuted.

    Layer 0 counts a latent that fires in one document of twenty, in bursts of infinite variance (Pareto, exponent 1.2);
    the other layers share half of their variance, and the last `n_effects` of them differ between the groups.
    """
    n, first = sum(sizes), sizes[0]
    documents = generator.normal(size=(n, 10)) + generator.normal(size=(n, 1))
    documents[:, 0] = (generator.random(n) < 0.05) * generator.poisson(5 * generator.pareto(1.2, n) + 1)
    documents[:first, 10 - n_effects :] += 3
    labels = np.where(np.arange(n) < first, 1 / first, -1 / sizes[1])
    shuffled = generator.permuted(np.tile(labels, (199, 1)), axis=1)
    return np.vstack([labels, shuffled]) @ documents


@pytest.mark.parametrize("n_effects", [0, 5])
@pytest.mark.parametrize("sizes", [(20, 20), (20, 80), (80, 20)])
def test_max_t_keeps_the_level_with_a_heavy_tailed_layer(sizes: tuple[int, int], n_effects: int) -> None:
    """docs/significance.md tells the shares of 2,000 repetitions."""
    generator = np.random.default_rng([*sizes, n_effects])
    wrong = []
    for _ in range(400):
        scores = with_a_rare_latent(generator, sizes, n_effects)
        p = S.step_down_max_t(scores[0], scores[1:], np.full(10, 1e-9))
        wrong.append(p[: 10 - n_effects].min() < 0.05)
    assert np.mean(wrong) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_max_t_finds_what_holm_cannot() -> None:
    generator = np.random.default_rng(6)
    found = {"max-T": 0, "Holm": 0}
    for _ in range(40):
        scores = correlated(generator, 300, 0.5)
        scores[0] += np.where(np.arange(34) < 17, 5 * scores[1:].std(0), 0)
        p = (1 + (scores[1:] >= scores[0]).sum(0)) / 300
        adjusted = S.step_down_max_t(scores[0], scores[1:])
        assert (adjusted >= p).all()
        found["max-T"] += int((adjusted[:17] < 0.05).sum())
        found["Holm"] += int((S.holm(p)[:17] < 0.05).sum())
    assert found["Holm"] == 0, "34 layers at 299 draws: .113 at best"
    assert found["max-T"] > 0.8 * 40 * 17


def test_the_floor_of_max_t_is_that_of_one_test() -> None:
    null = correlated(np.random.default_rng(7), 299, 0.3)
    assert S.step_down_max_t(null.max(0) + 1, null) == pytest.approx(np.full(34, 1 / 300))
    constant = np.zeros((299, 3))
    assert S.step_down_max_t(np.array([0.0, 1.0, 0.0]), constant).tolist() == pytest.approx([1.0, 1 / 300, 1.0])
    assert S.step_down_max_t(np.array([1 - 1e-9]), np.ones((19, 1)), np.array([1e-6])).tolist() == [1.0]
    assert len(S.step_down_max_t(np.zeros(0), np.zeros((299, 0)))) == 0


def test_corrections_of_none() -> None:
    assert len(S.holm([])) == 0
    assert len(S.benjamini_hochberg([])) == 0


def test_paired_mean_interval_is_the_t_test() -> None:
    differences = np.random.default_rng(1).normal(0.3, 1, 17)
    ours = S.paired_mean_interval(differences)
    expected = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    assert (ours.mean, ours.low, ours.high) == pytest.approx((differences.mean(), expected.low, expected.high))
    assert math.isnan(S.paired_mean_interval([0.5]).low)
    assert S.paired_mean_interval([0.5]).mean == 0.5


def _pairs(table: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    cells = np.repeat(np.array([(1, 1), (1, 0), (0, 1), (0, 0)], dtype=bool), table, axis=0)
    return cells[:, 0], cells[:, 1]


def test_bootstrap_macro_and_micro_weigh_differently() -> None:
    small, large = _pairs((2, 6, 0, 2)), _pairs((30, 10, 10, 50))
    arm, reference = {"s": small[0], "l": large[0]}, {"s": small[1], "l": large[1]}
    macro = S.stratified_paired_bootstrap(arm, reference, kind="macro")
    micro = S.stratified_paired_bootstrap(arm, reference, kind="micro")
    assert macro.difference == pytest.approx((0.6 + 0.0) / 2)
    assert micro.difference == pytest.approx(6 / 110)
    for total in (macro, micro):
        assert total.low < total.difference < total.high
    assert S.stratified_paired_bootstrap(arm, reference, kind="macro") == macro  # seeded
    swapped = S.stratified_paired_bootstrap(reference, arm, kind="macro")
    assert swapped.difference == -macro.difference
    # 3 Monte-Carlo standard errors of a 2.5% quantile at 10,000 draws are below .02 here
    assert (swapped.low, swapped.high) == pytest.approx((-macro.high, -macro.low), abs=0.02)


def test_bootstrap_sd_is_the_paired_one() -> None:
    """Pairs, not arms, are resampled: the interval's width is that of the paired sd, not of independent arms."""
    arm, reference = _pairs((80, 10, 4, 106))
    total = S.stratified_paired_bootstrap({"a": arm}, {"a": reference}, draws=20_000)
    sd = (arm.astype(int) - reference.astype(int)).std() / math.sqrt(200)
    assert (total.high - total.low) / (2 * 1.96) == pytest.approx(sd, rel=0.06)  # the steps of 1/200 in the quantiles


def test_kendall_tau() -> None:
    assert S.kendall_tau([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0]) == pytest.approx(1)
    assert S.kendall_tau([1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert math.isnan(S.kendall_tau([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]))


@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_kendall_tau_of_draws_is_scipy_row_by_row(n: int, levels: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a = generator.integers(0, levels, (4, n)).astype(float)
    b = generator.integers(0, levels, n).astype(float)
    theirs = [float(np.asarray(stats.kendalltau(row, b))[0]) for row in a]
    np.testing.assert_allclose(S.kendall_tau(a, b), theirs, atol=1e-12)
    np.testing.assert_allclose(S.kendall_tau(b, a), theirs, atol=1e-12)


def test_percentile_interval_leaves_undefined_draws_out() -> None:
    draws = np.append(np.arange(101) / 100, [math.nan] * 30)
    interval = S.percentile_interval(draws, level=0.9)
    assert (interval.low, interval.high) == pytest.approx((0.05, 0.95))
    assert math.isnan(S.percentile_interval([math.nan]).low)


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_benjamini_hochberg_is_scipys(n: int, rows: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    p = generator.random((rows, n)) ** generator.integers(1, 9)
    p = np.round(p, int(generator.integers(2, 9)))  # ties
    for row in range(rows):
        np.testing.assert_allclose(S.benjamini_hochberg(p[row]), stats.false_discovery_control(p[row]), atol=1e-12)


def test_e_value_reference() -> None:
    assert round(S.discordant_e_value(40, 15), 1) == 38.9
    assert S.discordant_e_value(0, 0) == pytest.approx(1.0)
    assert S.discordant_e_value(15, 40) == pytest.approx(S.discordant_e_value(40, 15))


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.10, 0.01, S.BETTER),
        (-0.10, -0.01, 0.01, S.WORSE),
        (0.01, 0.10, 0.06, S.NOT_WORSE),  # the sign alone is not enough
        (-0.02, 0.05, 0.01, S.NOT_WORSE),  # nor is p alone
        (-0.02, 0.05, 0.50, S.NOT_WORSE),
        (-0.03, 0.05, 0.50, S.INCONCLUSIVE),  # at the margin is not above it
        (-0.10, -0.01, 0.06, S.INCONCLUSIVE),
        (0.01, 0.10, 0.05, S.NOT_WORSE),
    ],
)
def test_the_four_verdicts(low: float, high: float, p: float, expected: str) -> None:
    assert S.verdict(low, high, p, 0.03) == expected
