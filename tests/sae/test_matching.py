"""Random latents matched to the selected ones by firing rate."""

import numpy as np

from stethoscope.sae.matching import NEAREST, matched_latents

RATES = np.concatenate([np.linspace(0.01, 0.05, 40), np.linspace(0.5, 0.6, 40)])
SELECTED = np.array([3, 50, 20, 70])


def test_each_stand_in_fires_about_as_often_as_its_latent() -> None:
    sets = matched_latents(RATES, SELECTED, np.arange(80), draws=50, seed=(0, 1))
    assert len(sets) == 50
    for chosen in sets:
        assert len(set(chosen)) == 4
        assert not set(chosen) & set(SELECTED)
        assert np.abs(RATES[chosen] - RATES[SELECTED]).max() < 0.03  # 8 neighbours of a grid of .001 and .0026
    assert len({tuple(chosen) for chosen in sets}) > 40
    used = {int(chosen[0]) for chosen in sets}
    assert len(used) == NEAREST, "all of the nearest are used, and no other"


def test_only_candidates_and_the_same_for_a_seed() -> None:
    allowed = np.arange(0, 80, 2)
    first = matched_latents(RATES, SELECTED, allowed, draws=3, seed=(5, 1))
    again = matched_latents(RATES, SELECTED, allowed, draws=3, seed=(5, 1))
    other = matched_latents(RATES, SELECTED, allowed, draws=3, seed=(6, 1))
    assert all(set(chosen) <= set(allowed) - set(SELECTED) for chosen in first)
    assert [list(chosen) for chosen in first] == [list(chosen) for chosen in again]
    assert [list(chosen) for chosen in first] != [list(chosen) for chosen in other]


def test_a_set_is_shorter_where_candidates_run_out() -> None:
    (chosen,) = matched_latents(RATES, SELECTED, np.array([3, 4, 5]), draws=1, seed=(0,))
    assert sorted(chosen) == [4, 5]
    (nothing,) = matched_latents(RATES, SELECTED, SELECTED, draws=1, seed=(0,))
    assert len(nothing) == 0


def test_the_nearest_are_those_of_a_full_sort_with_equal_rates_in_order() -> None:
    """Each draw written out: all free latents sorted by distance, one of the first eight taken and struck off."""
    rng = np.random.default_rng(2)
    rates = rng.integers(0, 12, 300) / 12  # about 25 latents share each rate
    selected = rng.choice(300, 20, replace=False)
    candidates = np.setdiff1d(np.arange(300), rng.choice(300, 60, replace=False))
    generator = np.random.default_rng([4, 2])
    for chosen in matched_latents(rates, selected, candidates, draws=6, seed=(4, 2)):
        left, expected = np.setdiff1d(candidates, selected), []
        for latent in selected:
            place = generator.choice(np.argsort(np.abs(rates[left] - rates[latent]), kind="stable")[:NEAREST])
            expected.append(left[place])
            left = np.delete(left, place)
        assert chosen.tolist() == expected
