"""Latents that stand in for the selected ones: live, not selected, and firing about as often.

Whether the selected latents span more of a task vector than chance may be a matter of what they are about, or only of
their being latents that fire this often. Each draw takes, for every selected latent in turn, one of the `NEAREST`
unused live latents whose firing rate is closest to its own.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

NEAREST = 8


def matched_latents(
    rates: Float[np.ndarray, " d_sae"],
    selected: Int[np.ndarray, " k"],
    candidates: Int[np.ndarray, " n"],
    *,
    draws: int,
    seed: Sequence[int],
) -> list[Int[np.ndarray, " at_most_k"]]:
    """Return `draws` seeded sets of latents that match `selected` one by one on firing rate.

    Args:
        rates: mean firing rate of every latent on the subject's documents.
        candidates: live latents to choose from; selected ones among them are left out. A set is shorter than
            `selected` where they run out.
    """
    generator = np.random.default_rng(list(seed))
    free = np.setdiff1d(candidates, selected)
    taken = selected[: len(free)]
    nearby = [_by_distance(rates[free], float(rates[latent]), NEAREST + len(taken)) for latent in taken]
    sets: list[np.ndarray] = []
    for _ in range(draws):
        used, chosen = np.zeros(len(free), dtype=bool), []
        for places in nearby:
            unused = places[~used[places]][:NEAREST]
            place = unused[generator.integers(len(unused))]
            used[place] = True
            chosen.append(place)
        sets.append(free[np.array(chosen, dtype=np.int64)])
    return sets


def _by_distance(rates: Float[np.ndarray, " n"], rate: float, count: int) -> Int[np.ndarray, " at_most_count"]:
    """Return the places of the `count` rates closest to `rate`, closest first, equal distances by place."""
    distance = np.abs(rates - rate)
    if count < len(distance):
        within = np.flatnonzero(distance <= np.partition(distance, count - 1)[count - 1])
    else:
        within = np.arange(len(distance))
    return within[np.argsort(distance[within], kind="stable")][:count]
