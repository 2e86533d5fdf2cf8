"""Firing rates equal a naive loop over documents and tokens; BOS and padding never count."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stethoscope.errors import Cancelled, CorpusError, SaeError
from stethoscope.model.session import ModelSession
from stethoscope.progress import Progress
from stethoscope.records import SaeRef
from stethoscope.sae.bank import SaeBank, open_bank
from stethoscope.sae.counts import Document, count_firing

DOCUMENTS = [
    Document(" the prime divisor of 31 and a river", "12 and the circle.", "number_theory"),
    Document("é", "so", "algebra"),
    Document("a story of the river" * 3, None, "stories"),
    Document("Problem: 1+1", "2", "algebra"),
]


@pytest.fixture(scope="module")
def bank(pico_sae_folder: Path) -> SaeBank:
    return open_bank(SaeRef(location=str(pico_sae_folder)), 32)


def naive(session: ModelSession, bank: SaeBank, layer: int, text: str) -> np.ndarray:
    """One document at a time, one token at a time, without padding."""
    ids = session.encode([text])[0]
    hidden = session.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
    sae = bank.load(layer)
    fired = [(sae.encode(hidden[t]) > 0).numpy() for t in range(1, len(ids))]
    return np.mean(fired, axis=0)


@pytest.mark.parametrize("batch_tokens", [1, 40, 8192])
@pytest.mark.parametrize("tokens", ["prompt", "all"])
def test_rates_equal_a_naive_loop(batch_tokens: int, tokens: str, pico_session: ModelSession, bank: SaeBank) -> None:
    progress = Progress()
    found = count_firing(
        pico_session, bank, DOCUMENTS, layers=[0, 2], tokens=tokens, batch_tokens=batch_tokens, progress=progress
    )
    assert progress.done == len(DOCUMENTS)
    assert found.layers == (0, 2)
    for i, document in enumerate(DOCUMENTS):
        both = tokens == "all" and document.solution is not None
        text = f"{document.problem}\n\n{document.solution}" if both else document.problem
        assert found.n_tokens[i] == len(pico_session.encode([text], add_bos=False)[0])
        for layer in found.layers:
            np.testing.assert_allclose(found.rates[layer][i], naive(pico_session, bank, layer, text), atol=1e-6)
    assert 0 < found.rates[0].mean() < 1
    some = found.of([3, 1])
    np.testing.assert_array_equal(some.rates[2], found.rates[2][[3, 1]])
    np.testing.assert_array_equal(some.n_tokens, found.n_tokens[[3, 1]])


def test_every_layer_of_the_bank_by_default(pico_session: ModelSession, bank: SaeBank) -> None:
    assert count_firing(pico_session, bank, DOCUMENTS[:1]).layers == (0, 1, 2, 3)


def test_a_latent_that_fires_on_bos_alone_never_counts(
    pico_session: ModelSession, tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    ids = torch.tensor(pico_session.encode([DOCUMENTS[0].problem]))
    hidden = pico_session.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0].detach()
    on_bos = torch.linalg.lstsq(hidden, torch.eye(len(hidden))[0]).solution  # 1 on BOS, 0 elsewhere (12 < 32 tokens)
    sae = {
        "W_enc": on_bos[:, None],
        "b_enc": torch.zeros(1),
        "W_dec": on_bos[None],
        "b_dec": torch.zeros(32),
        "threshold": torch.full((1,), 0.5),
    }
    planted = open_bank(SaeRef(location=str(write_sae_bank(tmp_path, {0: sae}))), 32)
    assert planted.load(0).fires(hidden)[:, 0].tolist() == [True] + [False] * (len(hidden) - 1)
    assert count_firing(pico_session, planted, DOCUMENTS[:1]).rates[0].item() == 0


def test_what_does_not_fit_is_refused(
    pico_session: ModelSession, bank: SaeBank, tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    deep = open_bank(SaeRef(location=str(write_sae_bank(tmp_path, {0: 0, 7: 7}))), 32)
    with pytest.raises(SaeError, match="has an SAE for layer 7; got a model of 4 layers"):
        count_firing(pico_session, deep, DOCUMENTS)
    with pytest.raises(SaeError, match="no SAE for layer 1"):
        count_firing(pico_session, deep, DOCUMENTS, layers=[1])
    with pytest.raises(CorpusError, match="a document of algebra has no text; got ''"):
        count_firing(pico_session, bank, [Document("", None, "algebra")])


def test_counting_can_be_cancelled(pico_session: ModelSession, bank: SaeBank) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        count_firing(pico_session, bank, DOCUMENTS, progress=progress)
