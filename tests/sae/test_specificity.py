"""A planted latent ranks its layer first; noise scores about 0 with uniform p, naive selection does not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from stethoscope.errors import Cancelled, CorpusError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.progress import Progress
from stethoscope.records import Cuts, SaeRef
from stethoscope.results import SpecificityCell
from stethoscope.sae.bank import open_bank
from stethoscope.sae.counts import count_firing
from stethoscope.sae.documents import Document
from stethoscope.sae.rates import FiringRates
from stethoscope.sae.scores import SCORES
from stethoscope.sae.selection import latent_statistics, select_latents
from stethoscope.sae.specificity import Variant, observed_scores, rank_first, score_draws
from stethoscope.sae.specificity import specificity as specificity_of_rates

Rates = dict[int, np.ndarray]
TOKENS = 20
OTHERS = {"n_bootstrap": 60, "n_permutations": 99, "top_k": 4}
FEW = OTHERS | {"dense_rate": 0.5}


def firing(rates: Rates) -> FiringRates:
    return FiringRates.from_dense(rates, np.full(len(rates[min(rates)]), TOKENS))


def specificity(domain: Rates, control: Rates, **fields: object) -> list[SpecificityCell]:
    cuts = Cuts(**{name: fields.pop(name) for name in Cuts.model_fields if name in fields})
    return specificity_of_rates(firing(domain), firing(control), cuts=cuts, **fields)


def noise(
    seed: int, n: int = 60, *, layers: int = 4, latents: int = 80, tokens: int = TOKENS, rate: float = 0.05
) -> Rates:
    """Firing rates over `tokens` tokens per document, equally distributed for all labels."""
    rng = np.random.default_rng(seed)
    return {
        layer: (rng.binomial(tokens, rate, size=(n, latents)) / tokens).astype(np.float32) for layer in range(layers)
    }


def plant(rates: Rates, layer: int, latents: list[int], rate: float, seed: int = 9) -> Rates:
    """Let some latents of a layer fire on `rate` of the tokens."""
    table = rates[layer].copy()
    table[:, latents] = np.random.default_rng(seed).binomial(TOKENS, rate, size=(len(table), len(latents))) / TOKENS
    return rates | {layer: table}


def scores_of(rows: list[SpecificityCell]) -> np.ndarray:
    return np.array([row.score for row in rows], dtype=float)


@pytest.mark.parametrize("score", SCORES)
def test_a_planted_layer_comes_first(score: str) -> None:
    domain, control = plant(noise(1), 2, [3, 7, 11, 40], 0.3), plant(noise(2), 2, [3, 7, 11, 40], 0.0)
    rows = specificity(domain, control, score=score, **FEW)
    best = rows[int(np.argmax(scores_of(rows)))]
    assert best.layer == 2
    assert best.p == pytest.approx(1 / 100)
    assert best.p_adjusted == pytest.approx(1 / 100), "the floor of p, whatever the number of layers"
    assert best.specific
    assert best.p_top == 1
    others = [row for row in rows if row.layer != 2]
    assert all(row.p_adjusted is not None and row.p_adjusted > 0.05 and not row.specific for row in others)
    assert all(row.ci_low is not None and row.ci_low <= row.score <= row.ci_high for row in rows)
    assert {(row.n_live, row.n_documents) for row in rows} == {(80, 60)}


def test_the_planted_difference_is_the_score() -> None:
    domain, control = plant(noise(1), 2, [3, 7, 11, 40], 0.3), plant(noise(2), 2, [3, 7, 11, 40], 0.05, seed=8)
    rows = specificity(domain, control, **FEW)
    assert rows[2].score == pytest.approx(0.25, abs=0.02)  # sd of a mean of 4 x 60 documents of 20 tokens: .007
    log_ratio = specificity(domain, control, score="log_ratio", **FEW)[2]
    assert log_ratio.score == pytest.approx(np.log(0.3 / 0.05), abs=0.2)
    share = specificity(domain, plant(control, 2, [3, 7, 11, 40], 0.0), score="specific_share", **FEW)[2]
    assert share.score == pytest.approx(4 / 80)


def test_selecting_and_scoring_on_the_same_documents_is_above_zero_on_noise() -> None:
    fitted, naive = [], []
    for seed in range(8):
        domain, control = noise(seed, 40), noise(100 + seed, 40)
        few = FEW | {"n_bootstrap": 20, "n_permutations": 19, "seed": seed}
        fitted.extend(scores_of(specificity(domain, control, **few)))
        naive.extend(scores_of(specificity(domain, control, cross_fit=False, **few)))
    sd = float(np.std(fitted))
    assert abs(np.mean(fitted)) < 3 * sd / np.sqrt(len(fitted))
    assert np.mean(naive) > 0.01  # the largest 4 of 80 differences of sd .011
    assert min(naive) > 0


@pytest.mark.parametrize("score", SCORES)
def test_shuffled_labels_give_uniform_p(score: str) -> None:
    found: list[float] = []
    for seed in range(12):
        pooled = noise(seed, 60, latents=60)
        rows = specificity(
            {layer: table[:30] for layer, table in pooled.items()},
            {layer: table[30:] for layer, table in pooled.items()},
            score=score,
            **(FEW | {"n_bootstrap": 20, "seed": seed}),
        )
        found.extend(row.p for row in rows if row.p is not None)
    if score == "specific_share":  # almost always 0 on noise, and then p = 1
        assert np.mean(np.array(found) <= 0.1) <= 0.15
    else:
        assert stats.kstest(found, "uniform").pvalue > 0.01


def test_the_bootstrap_interval_covers_the_planted_difference() -> None:
    """95% intervals of a latent that is always selected; 40 of them, so at least 34 cover (binomial p .002)."""
    covered = 0
    for seed in range(40):
        domain = plant(noise(seed, 40, layers=1, latents=10), 0, [4], 0.4, seed=seed)
        control = plant(noise(500 + seed, 40, layers=1, latents=10), 0, [4], 0.1, seed=900 + seed)
        few = FEW | {"top_k": 1, "n_bootstrap": 100, "n_permutations": 19}
        (row,) = specificity(domain, control, **few)
        covered += row.ci_low <= 0.3 <= row.ci_high
    assert covered >= 34


@pytest.mark.parametrize("score", ["mean_rate_difference", "log_ratio", "activation_mass"])
def test_intervals_cover_the_score_of_many_unequal_latents(score: str) -> None:
    """What the score is on average over samples lies in the 95% interval of at least 41 of 48 layers (p .004).

    Twelve latents of falling effect and k = 6, so that which are selected changes from sample to sample.
    """
    rates = np.linspace(0.3, 0.08, 12)
    domain, control = [], []
    for seed in range(12):
        rows = [noise(seed + shift, 60, latents=30) for shift in (0, 300)]
        for layer in range(4):
            for j, rate in enumerate(rates):
                rows[0] = plant(rows[0], layer, [j], rate, seed=1000 * seed + 20 * layer + j)
        domain.append(rows[0])
        control.append(rows[1])
    few = FEW | {"n_bootstrap": 100, "n_permutations": 19, "top_k": 6}
    found = [row for d, c in zip(domain, control, strict=True) for row in specificity(d, c, score=score, **few)]
    mean = np.mean([row.score for row in found])
    assert sum(row.ci_low <= mean <= row.ci_high for row in found) >= 41


def test_results_are_seeded() -> None:
    domain, control = noise(1), noise(2)
    assert specificity(domain, control, **FEW) == specificity(domain, control, **FEW)
    assert specificity(domain, control, **FEW) != specificity(domain, control, seed=1, **FEW)


def test_dense_and_dead_latents_are_not_selected() -> None:
    domain, control = noise(1, layers=1), noise(2, layers=1)
    domain, control = plant(domain, 0, [5], 0.95), plant(control, 0, [5], 0.6)  # dense, with the largest difference
    domain[0][:, 6] = control[0][:, 6] = 0  # dead
    rows = specificity(domain, control, **(FEW | {"top_k": 1}))
    assert rows[0].score < 0.1
    assert rows[0].n_live == 79
    assert 5 not in select_latents(firing(domain), firing(control), 0, 80, cuts=Cuts(dense_rate=0.5))
    assert 6 not in select_latents(firing(domain), firing(control), 0, 80, cuts=Cuts(dense_rate=0.5))
    assert specificity(domain, control, **(FEW | {"top_k": 1, "dense_rate": 1.0}))[0].score > 0.3


def test_selected_latents_come_largest_difference_first() -> None:
    domain, control = plant(plant(noise(1), 0, [9], 0.4), 0, [3], 0.6), noise(2)
    chosen = select_latents(firing(domain), firing(control), 0, 5, cuts=Cuts(dense_rate=0.5))
    delta = domain[0].mean(0) - control[0].mean(0)
    assert chosen[:2].tolist() == [3, 9]
    assert np.all(np.diff(delta[chosen]) <= 0)
    assert len(select_latents(firing(domain), firing(control), 0, 500, cuts=Cuts(dense_rate=1.0))) == 80
    nothing = {0: np.zeros((20, 3), dtype=np.float32)}
    assert len(select_latents(firing(nothing), firing(nothing), 0, 2)) == 0


def test_a_layer_without_live_latents_has_no_score() -> None:
    domain, control = noise(1), noise(2)
    domain[1], control[1] = np.zeros_like(domain[1]), np.zeros_like(control[1])
    rows = specificity(domain, control, **FEW)
    assert rows[1].n_live == 0
    assert (rows[1].score, rows[1].p, rows[1].p_adjusted, rows[1].ci_low, rows[1].p_top, rows[1].specific) == (
        None,
    ) * 6
    assert sum(row.p_top or 0 for row in rows) == pytest.approx(1)
    assert all(row.score is not None for row in rows if row.layer != 1)


def test_too_few_documents_are_refused() -> None:
    with pytest.raises(CorpusError, match="the control corpus is too small .* got 19 documents; expected at least 20"):
        specificity(noise(1), noise(2, 19), **FEW)
    with pytest.raises(CorpusError, match="the domain corpus is too small"):
        specificity(noise(1, 5), noise(2), **FEW)


def test_scoring_can_be_cancelled() -> None:
    progress = Progress()
    progress.cancel()
    for score in SCORES:
        with pytest.raises(Cancelled):
            specificity(noise(1), noise(2), score=score, progress=progress, **FEW)


def token_reader(
    loaded: LoadedModel, documents: list[Document], layer: int, word: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Direction, bias and threshold that read `word` off resid_post of `layer` by least squares, on nothing else."""
    (token,) = loaded.encode([word], add_bos=False)[0]
    hidden, is_word = [], []
    for document in documents:
        ids = loaded.encode([document.problem])[0]
        out = loaded.model(input_ids=torch.tensor([ids]), output_hidden_states=True)
        hidden.append(out.hidden_states[layer + 1][0, 1:])
        is_word.extend(float(other == token) for other in ids[1:])
    design = torch.cat([torch.cat(hidden), torch.ones(len(is_word), 1)], dim=1)
    reader = torch.linalg.lstsq(design, torch.tensor(is_word)[:, None]).solution[:, 0]
    others = (design @ reader)[torch.tensor(is_word) == 0]
    return reader[:-1], reader[-1], float(others.max()) + 1e-3


def test_a_latent_planted_in_the_model_is_heard_at_its_layer(
    pico_loaded: LoadedModel,
    tmp_path: Path,
    write_sae_bank: Callable[..., Path],
    random_sae_tensors: Callable[..., dict[str, torch.Tensor]],
) -> None:
    """Latent 5 of layer 2 reads " prime", which occurs only in the domain; that of the other layers reads " river"."""
    words = [" the", " river", " story", " and", " circle", "a", "b", "7", "x", "y"]
    rng = np.random.default_rng(0)

    def texts(extra: str) -> list[Document]:
        drawn = [(*rng.choice(words, 8), extra, *rng.choice(words, 3)) for _ in range(24)]
        return [Document("".join(pieces), None, extra) for pieces in drawn]

    domain, control = texts(" prime"), texts(" divisor")
    saes = {layer: random_sae_tensors(layer) for layer in range(4)}
    for layer, tensors in saes.items():
        direction, bias, threshold = token_reader(
            pico_loaded, [*domain, *control], layer, " prime" if layer == 2 else " river"
        )
        tensors["threshold"][:] = 1e6
        tensors["W_enc"][:, 5], tensors["b_enc"][5], tensors["threshold"][5] = direction, bias, threshold
    bank = open_bank(SaeRef(location=str(write_sae_bank(tmp_path, saes))), 32)
    p, q = count_firing(pico_loaded, bank, domain), count_firing(pico_loaded, bank, control)
    assert p.dense(2, [5]).mean() > 0.02  # one token in about 20 is " prime"
    assert q.dense(2, [5]).max() == 0
    assert q.dense(0, [5]).mean() > 0
    assert select_latents(p, q, 2, 1, cuts=Cuts(dense_rate=0.5)).tolist() == [5]
    for score in SCORES:
        rows = specificity_of_rates(p, q, score=score, cuts=Cuts(dense_rate=0.5), **(OTHERS | {"top_k": 1}))
        best = max(rows, key=lambda row: row.score or 0)
        assert best.layer == 2
        assert best.p_adjusted is not None
        assert best.p_adjusted < 0.05
        assert best.p_top is not None
        assert best.p_top > 0.95


def test_latent_statistics_are_scipys_over_the_live_latents() -> None:
    domain, control = plant(noise(1), 2, [3, 7, 11, 40], 0.12), plant(noise(2), 2, [3, 7, 11, 40], 0.005)
    domain[2][:, 20], control[2][:, 20] = 0, 0  # dead
    domain[2][:, 21], control[2][:, 21] = 0.6, 0.6  # dense, and the same in every document
    domain[2][:, 22], control[2][:, 22] = 0, 0
    domain[2][5, 22] = 0.05  # fires in one document of 120
    table = latent_statistics(firing(domain), firing(control), 2, cuts=Cuts(live_share=0.01))
    assert np.flatnonzero(~table.live).tolist() == [20, 22]
    assert np.flatnonzero(table.dense).tolist() == [21]
    live = table.live
    wide = (side[2][:, live].astype(np.float64) for side in (domain, control))
    theirs = stats.mannwhitneyu(*wide, method="asymptotic", axis=0)
    np.testing.assert_allclose(table.auroc[live], theirs.statistic / 3600, rtol=1e-12)
    np.testing.assert_allclose(table.p[live], np.nan_to_num(theirs.pvalue, nan=1.0), rtol=1e-9)
    np.testing.assert_allclose(table.q_value[live], stats.false_discovery_control(table.p[live]), rtol=1e-9)
    np.testing.assert_allclose(table.effect, domain[2].mean(0) - control[2].mean(0), atol=1e-7)
    np.testing.assert_allclose(table.domain_rate - table.control_rate, table.effect)
    assert np.isnan(table.p[~live]).all()
    assert (table.auroc[21], table.p[21]) == (0.5, 1.0)
    assert set(np.flatnonzero(live & (np.nan_to_num(table.q_value, nan=1) < 0.05))) >= {3, 7, 11, 40}


def test_a_label_permutation_agrees_with_the_mann_whitney_p() -> None:
    """For a few latents from clear to nothing: the share of 4,000 shuffles with an AUROC as far from .5."""
    rng = np.random.default_rng(4)
    domain, control = noise(1, 40, layers=1, latents=8), noise(2, 40, layers=1, latents=8)
    for latent, rate in enumerate((0.055, 0.06, 0.065, 0.07, 0.075, 0.08)):
        domain = plant(domain, 0, [latent], rate, seed=latent)
    table = latent_statistics(firing(domain), firing(control), 0)
    ranks = stats.rankdata(np.concatenate([domain[0], control[0]]), axis=0)
    shuffles = np.argsort(rng.random((4000, 80)), axis=1)[:, :40]
    auroc = (ranks[shuffles].sum(1) - 40 * 41 / 2) / 1600  # [shuffles, latents]
    shuffled = (np.abs(auroc - 0.5) >= np.abs(table.auroc - 0.5) - 1e-9).mean(0)
    assert table.p.min() < 0.05 < table.p.max()
    sd = np.sqrt(shuffled * (1 - shuffled) / 4000)
    assert np.all(np.abs(shuffled - table.p) < 4 * sd + 0.01)  # .01: normal approximation at 40 + 40 documents


def test_score_draws_are_the_draws_behind_the_interval_and_the_rank() -> None:
    domain, control = plant(noise(1), 2, [3, 7, 11, 40], 0.12), plant(noise(2), 2, [3, 7, 11, 40], 0.05)
    domain[1][:], control[1][:] = 0, 0
    options = {"top_k": 4, "n_bootstrap": 60}
    for score in SCORES:
        draws = score_draws(firing(domain), firing(control), score=score, cuts=Cuts(dense_rate=0.5), **options)
        rows = specificity(domain, control, score=score, n_permutations=19, dense_rate=0.5, **options)
        assert draws.shape == (60, 4)
        assert np.isnan(draws[:, 1]).all()
        for row, column in zip(rows, draws.T, strict=True):
            if row.layer != 1:
                assert (row.ci_low, row.ci_high) == pytest.approx(tuple(np.percentile(column, [2.5, 97.5])))
        first = rank_first(draws)
        assert [row.p_top or 0 for row in rows] == pytest.approx(first.tolist())


def test_rank_first_shares_a_tied_draw() -> None:
    draws = np.array([[1.0, 1.0, 0.0], [0.0, 2.0, np.nan], [np.nan] * 3, [3.0, 0.0, np.nan]])
    assert rank_first(draws).tolist() == pytest.approx([1.5 / 4, 1.5 / 4, 0])


def test_observed_scores_are_the_scores_without_their_uncertainty() -> None:
    domain, control = plant(noise(1), 2, [3, 7, 11, 40], 0.12), noise(2)
    domain[0][:], control[0][:] = 0, 0
    variants = [Variant(score, k) for score in SCORES for k in (2, 500)]
    table = observed_scores(firing(domain), firing(control), variants, cuts=Cuts(dense_rate=0.5))
    assert table.shape == (8, 4)
    for row, variant in zip(table, variants, strict=True):
        few = {"n_bootstrap": 20, "n_permutations": 19, "dense_rate": 0.5}
        scores = [r.score for r in specificity(domain, control, score=variant.score, top_k=variant.top_k, **few)]
        assert scores[0] is None
        assert np.isnan(row[0])
        assert row[1:].tolist() == scores[1:]
