"""Firing rates and mass equal a naive loop over documents and tokens, whatever the batches; BOS never counts."""

import gc
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stethoscope.errors import Cancelled, CorpusError, SaeError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.records import SaeRef
from stethoscope.results import SaeRow
from stethoscope.sae import bank as bank_module
from stethoscope.sae.bank import Sae, SaeBank, open_bank
from stethoscope.sae.counts import count_firing, sum_by_document
from stethoscope.sae.documents import Document
from stethoscope.sae.formats import Stated
from stethoscope.sae.places import Found

DOCUMENTS = [
    Document(" the prime divisor of 31 and a river", "12 and the circle.", "number_theory"),
    Document("é", "so", "algebra"),
    Document("a story of the river" * 3, None, "stories"),
    Document("Problem: 1+1", "2", "algebra"),
]


@pytest.fixture(scope="module")
def bank(pico_sae_folder: Path) -> SaeBank:
    return open_bank(SaeRef(location=str(pico_sae_folder)), 32)


def naive(loaded: LoadedModel, bank: SaeBank, layer: int, text: str) -> torch.Tensor:
    """Activations [n_tokens, d_sae] of one document at a time, one token at a time, without padding."""
    ids = loaded.encode([text])[0]
    hidden = loaded.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer + 1][0]
    return torch.stack([bank.load(layer).encode(hidden[t]) for t in range(1, len(ids))]).detach()


@pytest.mark.parametrize(
    ("capture_bytes", "batch_tokens", "tokens"),
    [
        (capture_bytes, batch_tokens, ("prompt", "all")[(i + j) % 2])
        for i, capture_bytes in enumerate([1, 10_000, 1 << 30])
        for j, batch_tokens in enumerate([1, 40, 8192])
    ],
)
def test_rates_equal_a_naive_loop(
    capture_bytes: int, batch_tokens: int, tokens: str, pico_loaded: LoadedModel, bank: SaeBank
) -> None:
    progress = Progress()
    found = count_firing(
        pico_loaded,
        bank,
        DOCUMENTS,
        layers=[0, 2],
        tokens=tokens,
        batch_tokens=batch_tokens,
        capture_bytes=capture_bytes,
        progress=progress,
    )
    assert progress.done == len(DOCUMENTS)
    assert found.layers == (0, 2)
    for i, document in enumerate(DOCUMENTS):
        both = tokens == "all" and document.solution is not None
        text = f"{document.problem}\n\n{document.solution}" if both else document.problem
        assert found.n_tokens[i] == len(pico_loaded.encode([text], add_bos=False)[0])
        for layer in found.layers:
            activations = naive(pico_loaded, bank, layer, text)
            counts = (activations > 0).sum(0).numpy()
            np.testing.assert_array_equal(np.rint(found.dense(layer)[i] * found.n_tokens[i]), counts)
            mass = activations.mean(0) * bank.load(layer).W_dec.norm(dim=1)
            np.testing.assert_allclose(found.mass(layer)[i], mass, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(found.total_mass(layer)[i], mass.sum(), rtol=1e-5)
    assert 0 < found.dense(0).mean() < 1


def test_every_layer_of_the_bank_by_default(pico_loaded: LoadedModel, bank: SaeBank) -> None:
    assert count_firing(pico_loaded, bank, DOCUMENTS[:1]).layers == (0, 1, 2, 3)


def test_a_latent_that_fires_on_bos_alone_never_counts(
    pico_loaded: LoadedModel, tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    ids = torch.tensor(pico_loaded.encode([DOCUMENTS[0].problem]))
    hidden = pico_loaded.model(input_ids=ids, output_hidden_states=True).hidden_states[1][0].detach()
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
    assert count_firing(pico_loaded, planted, DOCUMENTS[:1]).dense(0).item() == 0


def test_what_does_not_fit_is_refused(
    pico_loaded: LoadedModel, bank: SaeBank, tmp_path: Path, write_sae_bank: Callable[..., Path]
) -> None:
    deep = open_bank(SaeRef(location=str(write_sae_bank(tmp_path, {0: 0, 7: 7}))), 32)
    with pytest.raises(SaeError, match="has an SAE for layer 7; got a model with 4 layers"):
        count_firing(pico_loaded, deep, DOCUMENTS)
    with pytest.raises(SaeError, match="no SAE for layer 1"):
        count_firing(pico_loaded, deep, DOCUMENTS, layers=[1])
    with pytest.raises(CorpusError, match="a document of algebra is empty; got ''"):
        count_firing(pico_loaded, bank, [Document("", None, "algebra")])


def test_counting_can_be_cancelled(pico_loaded: LoadedModel, bank: SaeBank) -> None:
    progress = Progress()
    progress.cancel()
    with pytest.raises(Cancelled):
        count_firing(pico_loaded, bank, DOCUMENTS, progress=progress)


def random_sae(kind: str, random_sae_tensors: Callable[..., dict[str, torch.Tensor]]) -> Sae:
    tensors = random_sae_tensors(3)
    generator = torch.Generator().manual_seed(0)
    if kind == "jumprelu":
        tensors["threshold"] = torch.rand(24, generator=generator) - 0.2  # some below 0, where relu decides
    elif kind == "relu":
        tensors["threshold"] = torch.zeros(24)
    else:  # a BatchTopK, as it is saved: one threshold for all, set so that 3 of 24 fire on average
        tensors["threshold"] = torch.full((24,), 1.15)
    tensors["b_enc"] = 0.1 * torch.randn(24, generator=generator)
    tensors["W_dec"] = tensors["W_dec"] * torch.rand(24, 1, generator=generator)
    return Sae(layer=0, site="resid_post", apply_b_dec_to_input=kind == "relu", **tensors)


@pytest.mark.parametrize("chunk_tokens", [1, 7, 512])
@pytest.mark.parametrize("kind", ["jumprelu", "relu", "batch_topk"])
def test_sums_equal_those_of_encode(
    kind: str, chunk_tokens: int, random_sae_tensors: Callable[..., dict[str, torch.Tensor]]
) -> None:
    """Documents shorter and longer than a chunk; one whose only token fires nothing."""
    sae = random_sae(kind, random_sae_tensors)
    n_tokens = np.array([3, 40, 1, 1, 12])
    x = torch.randn(57, 32, generator=torch.Generator().manual_seed(1))
    x[44] = -10 * sae.W_enc.sum(1)
    activations = sae.encode(x)
    table = sum_by_document(sae, x, n_tokens, chunk_tokens=chunk_tokens)
    counts = np.stack([(part > 0).sum(0).numpy() for part in activations.split(n_tokens.tolist())])
    means = np.stack([part.mean(0).numpy() for part in activations.split(n_tokens.tolist())])
    found = table.spread(table.rates, None) * n_tokens[:, None]
    assert 0.05 < (activations > 0).float().mean() < 0.6
    np.testing.assert_array_equal(np.rint(found), counts)
    np.testing.assert_allclose(
        table.spread(table.masses, None), means * sae.W_dec.norm(dim=1).numpy(), rtol=1e-5, atol=1e-6
    )
    assert (table.rates > 0).all()


def test_a_planted_latent_is_counted_exactly(random_sae_tensors: Callable[..., dict[str, torch.Tensor]]) -> None:
    tensors = {name: torch.zeros_like(tensor) for name, tensor in random_sae_tensors(0).items()}
    tensors["W_enc"][4, 9] = 1.0  # latent 9 reads coordinate 4
    tensors["W_dec"][9, 4] = 2.0
    tensors["threshold"] += 0.5
    sae = Sae(layer=0, site="resid_post", apply_b_dec_to_input=False, **tensors)
    x = torch.zeros(10, 32)
    x[[0, 1, 8], 4] = torch.tensor([1.0, 3.0, 0.75])
    x[5, 4] = 0.5  # at the threshold: does not fire
    table = sum_by_document(sae, x, np.array([4, 5, 1]), chunk_tokens=3)
    assert table.starts.tolist() == [0, 1, 2, 2]
    assert table.latents.tolist() == [9, 9]
    assert table.rates.tolist() == pytest.approx([2 / 4, 1 / 5])
    assert table.masses.tolist() == pytest.approx([2 * 4 / 4, 2 * 0.75 / 5])


MANY = [Document(" the prime divisor of" * (1 + i % 5), None, "algebra") for i in range(40)]


class Born(TorchDispatchMode):
    """Tracks every tensor that this thread creates while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[weakref.ref[torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        self.tensors += [weakref.ref(leaf) for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)]
        return made

    def bytes_of_vectors(self, d_model: int) -> int:
        """Bytes of the live storages that are large enough for a vector per token."""
        gc.collect()
        alive = [tensor for one in self.tensors if (tensor := one()) is not None]
        return sum(
            {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
                for tensor in alive
                if tensor.dtype == torch.float32 and tensor.ndim in (2, 3) and tensor.shape[-1] == d_model
            }.values()
        )


@pytest.mark.parametrize("capture_bytes", [20_000, 60_000])
def test_an_sae_is_read_once_for_a_super_batch_and_captured_bytes_stay_below_the_bound(
    capture_bytes: int, pico_loaded: LoadedModel, pico_sae_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = open_bank(SaeRef(location=str(pico_sae_folder)), 32, cache_bytes=0)
    reads: Counter[int] = Counter()
    read = bank_module._read_sae

    def counted(ref: SaeRef, found: Found, row: SaeRow, stated: Stated, d_model: int) -> Sae:
        reads[row.layer] += 1
        seen.append(born.bytes_of_vectors(32))
        return read(ref, found, row, stated, d_model)

    seen: list[int] = []
    born = Born()
    monkeypatch.setattr(bank_module, "_read_sae", counted)
    watch = pico_loaded.model.register_forward_hook(lambda *_: seen.append(born.bytes_of_vectors(32)))
    gc.freeze()  # what is there already need not be looked through at every batch
    try:
        with born:
            few = count_firing(pico_loaded, bank, MANY, batch_tokens=40, capture_bytes=capture_bytes)
    finally:
        watch.remove()
        gc.unfreeze()
    bytes_in_all = 4 * 32 * 4 * int(few.n_tokens.sum())
    assert len(set(reads.values())) == 1
    assert bytes_in_all / capture_bytes <= reads[0] <= 3 * bytes_in_all / capture_bytes
    besides = bank.load(0).W_dec.nbytes + 40 * 32 * 4  # one SAE stays loaded; the model holds its last hidden state
    assert capture_bytes / 3 < max(seen) <= capture_bytes + besides
    monkeypatch.undo()
    whole = count_firing(pico_loaded, bank, MANY)
    for layer in whole.layers:
        np.testing.assert_array_equal(few.dense(layer), whole.dense(layer))
        np.testing.assert_allclose(few.mass(layer), whole.mass(layer), rtol=1e-5)
