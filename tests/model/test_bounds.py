"""Batches are limited in bytes, and the limit changes no number."""

import numpy as np
import pytest
import torch
from torch import Tensor

from stethoscope.model import gradients, likelihood
from stethoscope.model.gradients import first_order_effects
from stethoscope.model.likelihood import bounded_batches, rows_nll
from stethoscope.model.loaded_model import LoadedModel

PAIRS = [("a story of " * n, "the prime and the divisor of the river " * (1 + n % 3)) for n in range(1, 9)]
ROWS = [[2, *range(5, 5 + 6 + 3 * n)] for n in range(8)]
SCORED = [3 + 2 * n for n in range(8)]


@pytest.fixture
def kept(pico_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Logits of each forward pass, in bytes."""
    seen: list[int] = []
    head = pico_loaded.model.get_output_embeddings()

    def note(_module: object, _args: object, output: Tensor) -> None:
        seen.append(output.numel() * output.element_size())

    handle = head.register_forward_hook(note)
    monkeypatch.setattr(likelihood, "batches_abreast", lambda device: 1)
    yield seen
    handle.remove()


def test_logits_stay_within_their_budget_and_nothing_changes(
    pico_loaded: LoadedModel, kept: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_nll(pico_loaded, ROWS, SCORED, batch_size=8)
    widest = max(kept)
    assert len(kept) == 1
    kept.clear()
    budget = widest // 3
    monkeypatch.setattr(likelihood, "LOGITS_BYTES", budget)
    np.testing.assert_allclose(rows_nll(pico_loaded, ROWS, SCORED, batch_size=8), whole, atol=1e-5)
    assert len(kept) >= 3
    assert budget / 2 < max(kept) <= budget


def test_float32_pieces_add_up_to_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 12, 50, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(3 * 20).reshape(3, 20) % 50
    whole = likelihood.mean_nll(logits, ids, [11, 4, 7])
    monkeypatch.setattr(likelihood, "CHUNK_BYTES", 4 * 3 * 50 * 5)
    assert torch.equal(likelihood.mean_nll(logits, ids, [11, 4, 7]), whole)
    expected = torch.nn.functional.cross_entropy(logits[1, -5:-1], ids[1, -4:]).double()
    torch.testing.assert_close(whole[1], expected, atol=1e-6, rtol=0)


def test_a_backward_pass_takes_fewer_rows_where_memory_is_short(
    pico_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def delta(name: str) -> Tensor:
        shape = pico_loaded.parameter(name).shape
        return torch.randn(shape, generator=torch.Generator().manual_seed(len(name)))

    batches: list[list[int]] = []

    def note(*args: object) -> list[list[int]]:
        batches.extend(bounded_batches(*args))  # type: ignore[arg-type]
        return batches

    whole = first_order_effects(pico_loaded, PAIRS, delta, batch_size=8)
    monkeypatch.setattr(gradients, "GRAPH_BYTES", 2_000_000)
    monkeypatch.setattr(gradients, "bounded_batches", note)
    np.testing.assert_allclose(first_order_effects(pico_loaded, PAIRS, delta, batch_size=8), whole, rtol=1e-4)
    assert 1 < len(batches) < 8


def test_a_single_row_is_always_let_through() -> None:
    assert bounded_batches([2, 0, 1], [5, 50, 6], 8, 10, 100) == [[2], [0], [1]]
    assert bounded_batches([0, 1, 2, 3], [5, 5, 5, 6], 2, 10, 1000) == [[0, 1], [2, 3]]
    assert bounded_batches([0, 1, 2], [5, 5, 6], 8, 10, 179) == [[0, 1], [2]]
    assert bounded_batches([0, 1, 2], [5, 5, 6], 8, 10, 180) == [[0, 1, 2]]
