"""Random replacements of the selected latents: live, not selected, and with about the same firing rate.

If the selected latents span more of a task vector than chance, the reason may be their meaning, or only their firing
rate. Each draw replaces every selected latent in turn by one of the `NEAREST` unused live latents with the closest
firing rates.
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
        candidates: live latents to choose from; selected ones are excluded. If they run out, a set is shorter than
            `selected`.
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
    """Return the indices of the `count` rates closest to `rate`, closest first, ties by index."""
    distance = np.abs(rates - rate)
    if count < len(distance):
        within = np.flatnonzero(distance <= np.partition(distance, count - 1)[count - 1])
    else:
        within = np.arange(len(distance))
    return within[np.argsort(distance[within], kind="stable")][:count]
