"""The compact table of firings returns every number of the dense one."""

import numpy as np
import pytest

from stethoscope.sae.rates import FiringRates, stack_tables

RNG = np.random.default_rng(0)
N_TOKENS = np.array([10, 4, 7, 1, 20])
RATES = {
    0: (RNG.random((5, 6)) * (RNG.random((5, 6)) < 0.5)).astype(np.float32),
    3: (RNG.random((5, 70_000)) * (RNG.random((5, 70_000)) < 0.001)).astype(np.float32),
}
RATES[0][2] = 0  # a document in which nothing fires
MASS = {layer: rates * RNG.random(rates.shape, dtype=np.float32) * 9 for layer, rates in RATES.items()}
TABLE = FiringRates.from_dense(RATES, N_TOKENS, MASS)


@pytest.mark.parametrize("layer", [0, 3])
def test_every_number_comes_back(layer: int) -> None:
    rates, mass = RATES[layer], MASS[layer]
    assert TABLE.layers == (0, 3)
    assert TABLE.n_documents == 5
    assert TABLE.d_sae(layer) == rates.shape[1]
    np.testing.assert_array_equal(TABLE.dense(layer), rates)
    np.testing.assert_array_equal(TABLE.mass(layer), mass)
    np.testing.assert_array_equal(TABLE.n_firing(layer), (rates > 0).sum(0))
    np.testing.assert_array_equal(TABLE.mean_rate(layer), rates.mean(0, dtype=np.float64))
    np.testing.assert_array_equal(TABLE.mean_mass(layer), mass.mean(0, dtype=np.float64))
    np.testing.assert_allclose(TABLE.total_mass(layer), mass.sum(1, dtype=np.float64), rtol=1e-12)
    assert TABLE.dense(layer).dtype == TABLE.mass(layer).dtype == np.float32


@pytest.mark.parametrize("latents", [[5, 0, 3], [1], [], [2, 2, 0]])
def test_some_latents_in_their_order(latents: list[int]) -> None:
    np.testing.assert_array_equal(TABLE.dense(0, latents), RATES[0][:, latents])
    np.testing.assert_array_equal(TABLE.mass(0, np.array(latents, dtype=int)), MASS[0][:, latents])


def test_some_documents_one_of_them_twice() -> None:
    chosen = [4, 2, 0, 4]
    some = TABLE.of(chosen)
    np.testing.assert_array_equal(some.n_tokens, N_TOKENS[chosen])
    for layer in TABLE.layers:
        np.testing.assert_array_equal(some.dense(layer), RATES[layer][chosen])
        np.testing.assert_array_equal(some.mass(layer), MASS[layer][chosen])
    assert TABLE.of([]).dense(0).shape == (0, 6)


def test_tables_of_successive_documents_stack() -> None:
    parts = [TABLE.of(documents).tables[3] for documents in ([0, 1], [2], [3, 4])]
    np.testing.assert_array_equal(stack_tables(parts).starts, TABLE.tables[3].starts)
    np.testing.assert_array_equal(stack_tables(parts).latents, TABLE.tables[3].latents)
    np.testing.assert_array_equal(stack_tables(parts).masses, TABLE.tables[3].masses)


def test_without_mass_every_firing_weighs_one() -> None:
    table = FiringRates.from_dense({0: RATES[0]}, N_TOKENS)
    np.testing.assert_array_equal(table.mass(0), RATES[0])


def test_it_is_small() -> None:
    entries = sum(int((rates > 0).sum()) for rates in RATES.values())
    assert TABLE.size_bytes <= 12 * entries + 2 * 6 * 8
    assert TABLE.size_bytes < 0.01 * sum(rates.nbytes for rates in RATES.values())


def test_a_latent_that_is_not_there_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"latents outside 0\.\.5"):
        TABLE.dense(0, [6])
