"""Latents and examples equal a naive reading of the same documents; mismatches raise clear errors."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stethoscope import pipeline
from stethoscope.errors import CorpusError, SaeError, UserError
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.examples import candidates
from stethoscope.pipeline.listening import corpus_documents
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec, LatentExamplesSpec, LatentsSpec, Record, SaeRef
from stethoscope.results import DiagnosisResult, LatentExamplesResult, LatentsResult
from stethoscope.sae.rates import FiringRates
from stethoscope.store.runs import RunStore


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return Context(RunStore(tmp_path_factory.mktemp("runs")), device="cpu")


@pytest.fixture
def diagnosis(pico_profile: Profile) -> DiagnoseSpec:
    return pico_profile.diagnose_spec(n_bootstrap=20, n_permutations=20, dense_rate=0.3)


def activations_of(context: Context, diagnosis: DiagnoseSpec, corpus: str, layer: int) -> list[torch.Tensor]:
    """Activations [n_tokens, d_sae] of each document, one at a time and without BOS."""
    loaded = context.load(diagnosis.model, Progress())
    sae = context.bank(diagnosis.saes, loaded, Progress()).load(layer)
    found = []
    for document in corpus_documents(diagnosis, corpus):
        ids = torch.tensor(loaded.encode([document.problem]))
        with torch.no_grad():
            hidden = loaded.model(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1][0, 1:]
        found.append(sae.encode(hidden))
    return found


def test_latents_are_those_of_the_documents(diagnosis: DiagnoseSpec, context: Context) -> None:
    result = pipeline.run(LatentsSpec(diagnosis=diagnosis, subject="geometry", layer=1), context, Progress()).result
    assert isinstance(result, LatentsResult)
    assert (result.n_documents, result.d_sae, result.n_dead) == (20, 24, 24 - len(result.rows))
    assert result.link is None
    domain, control = (activations_of(context, diagnosis, corpus, 1) for corpus in ("geometry", "stories"))
    norms = (
        context.bank(diagnosis.saes, context.load(diagnosis.model, Progress()), Progress()).load(1).W_dec.norm(dim=1)
    )
    p, q = (torch.stack([(a > 0).float().mean(0) for a in corpus]).mean(0).numpy() for corpus in (domain, control))
    mass = (torch.stack([a.mean(0) for a in domain]).mean(0) * norms).numpy()
    assert len({row.latent for row in result.rows}) == len(result.rows) > 3
    for row in result.rows:
        j = row.latent
        assert row.domain_rate == pytest.approx(p[j], abs=1e-6)
        assert row.control_rate == pytest.approx(q[j], abs=1e-6)
        assert row.effect == pytest.approx(p[j] - q[j], abs=1e-6)
        assert row.mass == pytest.approx(mass[j], rel=1e-4)
        assert row.dense == (q[j] > 0.3)
        assert row.p <= row.q_value <= 1
        assert all(math.isfinite(value) for value in row.model_dump().values())
    assert [row.effect for row in result.rows] == sorted((row.effect for row in result.rows), reverse=True)
    assert {True, False} == {row.dense for row in result.rows}


def test_the_ringed_latents_are_those_of_the_diagnosis(diagnosis: DiagnoseSpec, context: Context) -> None:
    latents = pipeline.run(LatentsSpec(diagnosis=diagnosis, subject="geometry", layer=2), context, Progress()).result
    whole = pipeline.run(diagnosis, context, Progress()).result
    assert isinstance(latents, LatentsResult)
    assert isinstance(whole, DiagnosisResult)
    of_layer = [row.latent for row in whole.latents if row.layer == 2 and row.subject == "geometry"]
    assert sorted(of_layer) == sorted(row.latent for row in latents.rows if row.selected)
    assert len(of_layer) == diagnosis.top_k


@pytest.mark.parametrize("n", [1, 3, 50])
def test_examples_are_the_strongest_documents_token_by_token(n: int, diagnosis: DiagnoseSpec, context: Context) -> None:
    latent = 5
    spec = LatentExamplesSpec(diagnosis=diagnosis, subject="geometry", layer=1, latent=latent, n=n)
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, LatentExamplesResult)
    for corpus in ("geometry", "stories"):
        texts = [document.problem for document in corpus_documents(diagnosis, corpus)]
        of_document = [a[:, latent] for a in activations_of(context, diagnosis, corpus, 1)]
        firing = [i for i, a in enumerate(of_document) if a.max() > 0]
        peaks = sorted((of_document[i].max().item() for i in firing), reverse=True)[:n]
        found = [example for example in result.examples if example.corpus == corpus]
        assert [max(example.activations) for example in found] == pytest.approx(peaks, rel=1e-4)
        for example in found:
            i = texts.index("".join(example.tokens))
            np.testing.assert_allclose(example.activations, of_document[i], rtol=1e-4, atol=1e-5)


def test_no_strong_document_is_left_out() -> None:
    """Few strong firings against many weak ones: the peak is bounded by mean and sum, not estimated from them."""
    rng = np.random.default_rng(0)
    for _ in range(200):
        documents = [rng.gamma(0.3, size=30) * (rng.random(30) < rng.random()) for _ in range(40)]
        rate = np.array([[(a > 0).mean()] for a in documents], dtype=np.float32)
        mass = np.array([[2.5 * a.mean()] for a in documents], dtype=np.float32)
        rates = FiringRates.from_dense({0: rate}, np.full(40, 30), {0: mass})
        strongest = np.argsort([-a.max() for a in documents])[:4]
        kept = candidates(rates, 0, 0, 4)
        assert set(strongest) <= set(kept)
    lone = FiringRates.from_dense({0: np.eye(20, 1, dtype=np.float32)}, np.full(20, 30))
    assert candidates(lone, 0, 0, 4).tolist() == [0]


def changed(spec: Record, **fields: object) -> Record:
    return type(spec).model_validate(spec.model_dump() | fields)


def test_what_does_not_fit_is_a_clear_error(
    diagnosis: DiagnoseSpec,
    context: Context,
    tmp_path: Path,
    write_sae_bank: Callable[..., Path],
    random_sae_tensors: Callable[..., dict[str, torch.Tensor]],
) -> None:
    latents = LatentsSpec(diagnosis=diagnosis, subject="geometry", layer=1)
    examples = LatentExamplesSpec(diagnosis=diagnosis, subject="geometry", layer=1, latent=2)

    def refused(spec: Record, kind: type[UserError], message: str) -> None:
        with pytest.raises(kind, match=message):
            pipeline.run(spec, context, Progress())  # type: ignore[arg-type]

    for spec in (latents, examples):
        refused(changed(spec, layer=9), SaeError, "no SAE for layer 9 in .*; got layers 0, 1, 2, 3")
        refused(changed(spec, subject="poetry"), CorpusError, "no subject of that name; got 'poetry'; expected one of")
        few = changed(diagnosis, documents=30)
        refused(changed(spec, diagnosis=few), CorpusError, "too few problems in geometry; got 24; expected 30")
        wide = write_sae_bank(tmp_path / type(spec).__name__, {1: random_sae_tensors(0, d_model=40)})
        misfit = changed(diagnosis, saes=SaeRef(location=str(wide)))
        refused(changed(spec, diagnosis=misfit), SaeError, "does not match the width .*; got d_in 40; expected 32")
    refused(
        changed(examples, latent=24), SaeError, "layer 1 has no latent 24; got an SAE with 24 latents; expected 0 to 23"
    )


@pytest.mark.parametrize(
    ("named", "link"),
    [
        ("gemma-3-4b-it/17-res-16k", "https://www.neuronpedia.org/gemma-3-4b-it/17-res-16k/{latent}"),
        (None, None),
        ("javascript:alert(1)//x", None),
        ("a/b/{latent}", None),
        (7, None),
    ],
)
def test_the_link_is_that_of_cfg_json(
    named: object,
    link: str | None,
    diagnosis: DiagnoseSpec,
    context: Context,
    tmp_path: Path,
    write_sae_bank: Callable[..., Path],
) -> None:
    bank = SaeRef(location=str(write_sae_bank(tmp_path, {1: 1}, metadata={"neuronpedia_id": named})))
    spec = LatentsSpec(diagnosis=diagnosis.model_copy(update={"saes": bank}), subject="geometry", layer=1)
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, LatentsResult)
    assert result.link == link


def test_one_layer_is_listened_to_alone_until_all_have_been_heard(
    diagnosis: DiagnoseSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows equal those of all layers; later layers do not run, and nothing is recomputed after a full diagnosis."""
    context = Context(RunStore(tmp_path), device="cpu")
    loaded = context.load(diagnosis.model, Progress())
    ran: list[int] = []
    for layer in range(4):
        module = loaded.model.get_submodule(f"{loaded.layout.layers}.{layer}")
        module.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    spec = LatentsSpec(diagnosis=diagnosis, subject="geometry", layer=1)
    alone = pipeline.run(spec, context, Progress()).result
    assert set(ran) == {0, 1}
    again = LatentExamplesSpec(diagnosis=diagnosis, subject="geometry", layer=1, latent=3, n=2)
    ran.clear()
    pipeline.run(again, context, Progress())
    assert len(ran) <= 2 * 2 * 4, "examples read single documents; nothing is counted again"
    pipeline.run(diagnosis, context, Progress())
    assert set(ran) == {0, 1, 2, 3}
    ran.clear()
    whole = pipeline.run(spec.model_copy(update={"layer": 2}), context, Progress()).result
    assert not ran
    assert isinstance(whole, LatentsResult)
    other = Context(RunStore(tmp_path / "other"), device="cpu")
    pipeline.run(diagnosis, other, Progress())
    assert pipeline.run(spec, other, Progress()).result == alone
