"""Agreement of synthetic predictors and gains: known taus, intervals that include the noise, uniform p."""

import numpy as np
import pytest
from scipy import stats

from stethoscope.pipeline.agreement import Gains, Predictor, agreement_row, predictor_cells
from stethoscope.pipeline.linear_probe import auroc_with_draws, held_out_scores

GAIN = np.array([[0.1, 0.4, 0.2, 0.8, 0.5, 0.9]])


def gains_of(noise: float = 0.0, draws: int = 200) -> Gains:
    generator = np.random.default_rng(0)
    return Gains(GAIN, GAIN + noise * generator.normal(size=(draws, *GAIN.shape)))


def test_the_same_order_is_one_and_the_opposite_minus_one() -> None:
    for sign in (1, -1):
        row = agreement_row(Predictor("x", sign * GAIN), gains_of(), 0, "all", seed=0)
        assert row.kendall_tau == pytest.approx(sign)
        assert (row.ci_low, row.ci_high) == (pytest.approx(sign), pytest.approx(sign))
        assert row.p is not None
        assert row.p < 0.02  # 2 of 720 orders are as extreme
        assert row.null_low is not None
        assert row.null_high is not None
        assert -1 < row.null_low < -0.3
        assert 0.3 < row.null_high < 1


def test_noise_in_the_predictor_and_in_the_gain_both_widen_the_interval() -> None:
    generator = np.random.default_rng(1)
    noisy = Predictor("x", GAIN, GAIN + 0.3 * generator.normal(size=(200, *GAIN.shape)))

    def width(predictor: Predictor, gains: Gains) -> float:
        row = agreement_row(predictor, gains, 0, "all", seed=0)
        assert row.ci_low is not None
        assert row.ci_high is not None
        return row.ci_high - row.ci_low

    exact = Predictor("x", GAIN)
    assert width(exact, gains_of()) == 0
    assert width(noisy, gains_of()) > 0.2
    assert width(exact, gains_of(0.3)) > 0.2


def test_p_is_uniform_for_predictors_that_know_nothing() -> None:
    generator = np.random.default_rng(2)
    p = [
        agreement_row(Predictor("x", generator.normal(size=GAIN.shape)), gains_of(draws=2), 0, "all", seed=i).p or 0.0
        for i in range(200)
    ]
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10
    assert 0.4 < np.mean(p) < 0.65  # ties among the few taus of six layers push p up a little


def test_what_is_constant_or_missing_has_no_tau_and_no_nan() -> None:
    flat = agreement_row(Predictor("x", np.ones_like(GAIN)), gains_of(), 0, "all", seed=0)
    assert (flat.kendall_tau, flat.ci_low, flat.p, flat.null_low, flat.n_layers) == (None, None, None, None, 6)
    values = GAIN.copy()
    values[0, 1:5] = np.nan
    few = agreement_row(Predictor("x", values), gains_of(), 0, "all", seed=0)
    assert (few.kendall_tau, few.n_layers) == (None, 2)
    cells = predictor_cells([Predictor("x", values, np.tile(values, (5, 1, 1)))], ["all"])
    assert [cell.value is None for cell in cells] == [False, True, True, True, True, False]
    assert [cell.ci_low is None for cell in cells] == [False, True, True, True, True, False]
    assert Predictor("x", values).order(0) == [5, 0]
    assert not Predictor("x", np.ones_like(GAIN)).tells_apart(0, range(6))


def test_the_mean_over_subjects_misses_what_one_of_them_misses() -> None:
    predictor = Predictor.of_subjects("x", np.array([[1.0, np.nan, 3.0], [3.0, 1.0, 5.0]]))
    np.testing.assert_array_equal(predictor.values[2], [2.0, np.nan, 4.0])


def test_the_linear_probe_hears_a_planted_direction_and_nothing_in_noise() -> None:
    generator = np.random.default_rng(3)
    domain, control = generator.normal(size=(60, 40)), generator.normal(size=(60, 40))
    noise = held_out_scores(domain, control, seed=0)
    assert auroc_with_draws(*noise, draws=1, seed=0)[0] == pytest.approx(0.5, abs=0.15)  # fitted on itself: 1.0
    domain[:, 7] += 3
    planted = held_out_scores(domain, control, seed=0)
    drawn = auroc_with_draws(*planted, draws=300, seed=0)
    assert drawn[0] > 0.9
    assert drawn[0] == pytest.approx(stats.mannwhitneyu(*planted).statistic / 60**2)
    low, high = np.percentile(drawn[1:], [2.5, 97.5])
    assert low < drawn[0] <= high
    assert 0 < high - low < 0.15
