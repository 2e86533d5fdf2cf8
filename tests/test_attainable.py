"""The smallest attainable p of each test is reached, and no outcome goes below it."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stethoscope import statistics as S


@pytest.mark.parametrize("n", range(13))
def test_mcnemars_smallest_p_is_that_of_one_sided_pairs(n: int) -> None:
    every = [S.mcnemar_exact(gained, n - gained) for gained in range(n + 1)]
    assert S.smallest_mcnemar_p(n) == min(every) == min(1.0, 2.0 ** (1 - n))
    assert S.cannot_reach(S.smallest_mcnemar_p(n)) == (n < 6)


def test_a_rank_needs_twenty_sets() -> None:
    assert [S.cannot_reach(S.smallest_rank_p(n)) for n in (1, 19, 20, 99)] == [True, True, False, False]
    assert S.FEWEST_RANDOM_SETS == 20


Family = st.lists(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=8)


@given(Family)
def test_the_smallest_holm_p_is_what_the_best_outcome_of_one_subject_gets(family: list[tuple[int, int]]) -> None:
    p = [S.mcnemar_exact(gained, lost) for gained, lost in family]
    found = S.smallest_holm_p(p, [S.smallest_mcnemar_p(gained + lost) for gained, lost in family])
    assert (np.array(found) <= S.holm(p) + 1e-12).all(), "a significant test never says that it cannot be"
    for place, (gained, lost) in enumerate(family):
        outcomes = []
        for other in range(gained + lost + 1):
            changed = [*p[:place], S.mcnemar_exact(other, gained + lost - other), *p[place + 1 :]]
            outcomes.append(S.holm(changed)[place])
        assert found[place] == pytest.approx(min(outcomes))


def test_seven_subjects_need_nine_pairs_where_no_other_is_significant() -> None:
    """Seven times 2^(1 - m) is below .05 from m = 9 on; a last step of Holm needs six pairs only."""
    for m, cannot in ((8, True), (9, False)):
        p = [S.mcnemar_exact(m, 0), *[0.5] * 6]
        assert S.cannot_reach(S.smallest_holm_p(p, [S.smallest_mcnemar_p(m), *[1e-9] * 6])[0]) == cannot
    for m, cannot in ((5, True), (6, False)):
        p = [S.mcnemar_exact(m, 0), *[1e-9] * 6]
        assert S.cannot_reach(S.smallest_holm_p(p, [S.smallest_mcnemar_p(m), *[1e-9] * 6])[0]) == cannot


@pytest.mark.parametrize("n", range(2, 7))
def test_kendalls_smallest_p_is_two_of_all_orders(n: int) -> None:
    generator = np.random.default_rng(n)
    a, b = generator.normal(size=n), generator.normal(size=n)
    tested = S.kendall_test(a, b, permutations=1999, seed=0)
    assert tested.smallest_p == pytest.approx(2 / math.factorial(n))
    assert S.cannot_reach(tested.smallest_p) == (n <= 4)
    assert S.kendall_test(np.sort(a), np.sort(b), permutations=1999, seed=0).p == pytest.approx(tested.smallest_p)
    taus = [abs(float(S.kendall_tau(a[list(order)], b))) for order in itertools.permutations(range(n))]
    assert tested.p == pytest.approx(np.mean(np.array(taus) >= abs(tested.tau) - 1e-9))
    assert len(tested.null) == math.factorial(n)


def test_ties_leave_fewer_orders() -> None:
    """Five layers of which one stands apart have five orders: 1/5 or 2/5 of them are as far from zero as can be."""
    apart, distinct = np.array([0.0, 0.0, 0.0, 0.0, 1.0]), np.arange(5.0)
    tested = S.kendall_test(apart, distinct, permutations=1999, seed=0)
    assert (tested.p, tested.smallest_p) == (pytest.approx(0.4), pytest.approx(0.4))
    drawn = S.kendall_test(np.eye(9)[0], np.arange(9.0), permutations=1999, seed=0)
    assert drawn.smallest_p == pytest.approx(2 / 9, abs=0.03)
    assert S.cannot_reach(drawn.smallest_p)


def test_drawn_orders_count_the_observed_one() -> None:
    ordered = np.arange(10.0)
    tested = S.kendall_test(ordered, ordered, permutations=1999, seed=3)
    assert tested.tau == 1
    assert tested.p == tested.smallest_p == 1 / 2000
    constant = S.kendall_test(np.ones(4), np.arange(4.0), permutations=1999, seed=0)
    assert np.isnan([constant.tau, constant.p, constant.smallest_p]).all()


@pytest.mark.parametrize("n_draws", [1, 2, 3, 5])
@pytest.mark.parametrize("sizes", [(2,), (3,), (4, 4), (6,), (30, 20, 10)])
def test_no_outcome_against_draws_has_a_smaller_p(n_draws: int, sizes: tuple[int, ...]) -> None:
    n_by_stratum = {f"s{i}": n for i, n in enumerate(sizes)}
    smallest = S.smallest_p_to_draws(n_by_stratum, n_draws)
    generator = np.random.default_rng(len(sizes) + n_draws)
    for _ in range(200):
        rate = generator.random()
        ours = {name: generator.random(n) < rate for name, n in n_by_stratum.items()}
        draws = {name: generator.random((n_draws, n)) < 1 - rate for name, n in n_by_stratum.items()}
        assert S.difference_to_draws(ours, draws).p >= smallest - 1e-12
    assert S.cannot_reach(smallest) == (sizes in [(2,), (3,)])
