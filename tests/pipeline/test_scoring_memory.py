"""The formula for scoring covers torch's allocations and is close to them, on a CPU and with a GPU's blocks."""

import json
from pathlib import Path

import numpy as np
import pytest
from torch.profiler import ProfilerActivity, profile

from stethoscope.pipeline.footprint import scoring
from stethoscope.progress import Progress
from stethoscope.sae import judged, scores
from stethoscope.sae.rates import FiringRates, stack_tables
from stethoscope.sae.resampling import Bootstrap, Design, Permuted
from stethoscope.sae.sample import LayerSample
from stethoscope.sae.scores import SCORES

DOCUMENTS = 32  # in each corpus


def allocated(score: str, latents: int, folder: Path, *, draws: int) -> int:
    """Return the peak bytes of tensors while one layer is scored."""
    rng = np.random.default_rng(0)
    rate = np.minimum(np.exp(rng.normal(-4.5, 2, latents)), 0.6)
    rates = (rng.binomial(90, rate, (2 * DOCUMENTS, latents)) / 90).astype(np.float32)
    tables = [
        FiringRates.from_dense({0: part}, np.full(DOCUMENTS, 90), {0: part}).tables[0] for part in np.split(rates, 2)
    ]
    design, method = Design.of(DOCUMENTS, DOCUMENTS, n_splits=8, seed=0), SCORES[score]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        sample = LayerSample.of_table(
            stack_tables(tables), np.arange(latents), with_mass=method.needs_mass, top_k=16, dense_rate=0.1, floor=1e-4
        )
        method.observed(sample, design)
        method.bootstrap(sample, Bootstrap(design, draws), Progress())
        method.permuted(sample, Permuted(design, draws), Progress())
    recorded.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    totals = [event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"]
    assert len(totals) > 100
    return max(totals) - min(totals[:2])


@pytest.mark.parametrize("latents", [2048, 8192, 16384])
@pytest.mark.parametrize("blocks", ["cpu", "cuda"])
def test_scoring_stays_within_its_formula(
    blocks: str, latents: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The formula covers every score: none takes more, and at least one takes a third of it or more."""
    monkeypatch.setattr(judged, "BLOCKS", {"cpu": judged.BLOCKS[blocks]})
    monkeypatch.setattr(scores, "BLOCK_ELEMENTS", {"cpu": scores.BLOCK_ELEMENTS[blocks]})
    held = {}
    for score in SCORES:
        whole = blocks == "cuda" or score == "specific_share"  # what is held grows with the draws, up to a block
        held[score] = allocated(score, latents, tmp_path, draws=299 if whole else 40)
    formula = scoring(blocks, latents, documents=2 * DOCUMENTS)
    assert max(held.values()) <= formula <= 3 * max(held.values()), (held, formula)


def test_a_card_scores_in_a_few_hundred_megabytes() -> None:
    """Also for an SAE with 262,144 latents, because only tables of documents grow with them, not blocks of draws."""
    usual, wide = (scoring("cuda", d_sae, documents=128) for d_sae in (16384, 262144))
    assert usual < 400 << 20
    assert wide < 2 << 30
    assert scoring("cuda", 262144, documents=256) < 1.9 * wide
