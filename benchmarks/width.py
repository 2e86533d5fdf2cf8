"""Time of one layer with Gemma 3 4B's width: scoring, ranking, matching, counting and hashing.

Each step is compared with a peer that gives the same numbers (checked before timing) and, if known, a lower bound
(floor), on one thread. Prints CPU time of that thread on a CPU, elapsed time on a GPU, and ratios.

    scoring    specificity of one subject (score, 200 bootstrap draws, 299 permutations); peer: every latent of every
               draw in dense numpy (tests/sae/reference.py)
    matching   20 sets of stand-ins for 256 selected latents; peer: sorting all live latents again for each
    counting   4,096 tokens; peer: SAELens' encode and sums by document; floor: the encoder's product
    hashing    one layer's matrices; peer: SHA-256; floor: a copy

Firing rates are random: log-normal over latents; about 57 of 16,384 latents fire per token, and 200 fire two to ten
times as often on the subject. Run: python -m benchmarks.width [--latents 16384] [--device cuda]
"""

import argparse
import time
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks import certificate, sae_statistics
from stethoscope.model.checksums import tensor_digest
from stethoscope.model.free_memory import device_name
from stethoscope.progress import Progress
from stethoscope.sae.counts import CHUNK_TOKENS, sum_by_document
from stethoscope.sae.matching import NEAREST, matched_latents
from stethoscope.sae.rates import FiringRates, stack_tables
from stethoscope.sae.resampling import Bootstrap, Design, Permuted
from stethoscope.sae.sample import LayerSample
from stethoscope.sae.scores import SCORES
from tests.sae import reference

DOCUMENTS, TOP_K, DRAWS, PERMUTATIONS = 64, 16, 200, 299
FLOOR = 1 / (2 * DOCUMENTS * 90)


@dataclass(frozen=True)
class Layer:
    """Documents of one subject and one control corpus at one layer."""

    domain: FiringRates
    control: FiringRates
    live: np.ndarray


def drawn_layer(latents: int) -> Layer:
    """Draw random firing counts of two corpora."""
    rng = np.random.default_rng(0)
    mean = np.minimum(np.exp(rng.normal(-7.5, 1.8, latents)), 0.6)  # of the firing rates of a latent
    tokens = rng.integers(60, 120, 2 * DOCUMENTS)
    rate = mean * np.exp(rng.normal(0, 0.7, (2 * DOCUMENTS, latents)))
    rate[:DOCUMENTS, rng.choice(latents, 200, replace=False)] *= rng.uniform(2, 10, 200)
    rates = (rng.binomial(tokens[:, None], np.minimum(rate, 0.9)) / tokens[:, None]).astype(np.float32)
    masses = rates * rng.uniform(0.5, 2, rates.shape).astype(np.float32)
    domain, control = (
        FiringRates.from_dense({0: rates[side]}, tokens[side], {0: masses[side]})
        for side in (slice(0, DOCUMENTS), slice(DOCUMENTS, None))
    )
    return Layer(domain, control, np.flatnonzero((rates > 0).sum(0) >= max(0.01 * len(rates), 1)))


class Clock:
    """Times work on a device, using the minimum of repeats."""

    def __init__(self, device: torch.device, repeats: int) -> None:
        self.device, self.repeats = device, repeats

    def row(self, step: str, *works: Callable[[], object]) -> None:
        """Print one step: ours, its peer and, if there is one, its floor, measured alternately."""
        ours, peer, *floor = self.seconds(*works)
        of_floor = f"{ours / floor[0]:7.2f}" if floor else "      -"
        print(f"{step:34} {1000 * ours:10.1f} {1000 * peer:10.1f} {peer / ours:8.1f}x {of_floor}", flush=True)

    def seconds(self, *works: Callable[[], object]) -> list[float]:
        """Return CPU time of this thread on a CPU, otherwise the time until the device is done, for each work."""
        clock = time.thread_time if self.device.type == "cpu" else time.perf_counter
        best = [float("inf")] * len(works)
        for _ in range(self.repeats):
            for i, work in enumerate(works):
                started = clock()
                work()
                if self.device.type == "cuda":
                    torch.cuda.synchronize(self.device)
                best[i] = min(best[i], clock() - started)
        return best


def scoring(layer: Layer, clock: Clock) -> None:
    """Score the layer with every score, using bounds and densely."""
    pooled = stack_tables([layer.domain.tables[0], layer.control.tables[0]])
    design = Design.of(DOCUMENTS, DOCUMENTS, n_splits=8, seed=0)
    rates = np.concatenate([side.dense(0, layer.live) for side in (layer.domain, layer.control)])
    masses = np.concatenate([side.mass(0, layer.live) for side in (layer.domain, layer.control)])
    total = np.concatenate([side.total_mass(0) for side in (layer.domain, layer.control)])
    dense = reference.DenseSample(rates, masses, total, TOP_K, 0.1, FLOOR)
    for name, score in SCORES.items():

        def by_bounds(score=score) -> list[np.ndarray]:
            sample = LayerSample.of_table(
                pooled,
                layer.live,
                with_mass=score.needs_mass,
                top_k=TOP_K,
                dense_rate=0.1,
                floor=FLOOR,
                device=clock.device,
            )
            return [
                np.array([score.observed(sample, design)]),
                score.bootstrap(sample, Bootstrap(design, DRAWS, clock.device), Progress()),
                score.permuted(sample, Permuted(design, PERMUTATIONS, clock.device), Progress()),
            ]

        def densely(score=reference.SCORES[name]) -> list[np.ndarray]:
            return [
                np.array([score.observed(dense, design)]),
                score.bootstrap(dense, reference.Bootstrap(design, DRAWS)),
                score.permuted(dense, reference.Permuted(design, PERMUTATIONS)),
            ]

        apart = np.abs(np.concatenate(by_bounds()) - np.concatenate(densely())) > 1e-6
        assert apart.mean() < 0.02, "draws differ by more than ties changed by rounding"
        clock.row(f"scoring: {name}", by_bounds, densely)
        print(f"  of {len(apart)} numbers, {int(apart.sum())} differ by more than 1e-6")
    print(f"  {len(layer.live):,} latents are live")


def matching(layer: Layer, clock: Clock) -> None:
    """Match random latents to the 256 with the largest effect."""
    rates = layer.domain.mean_rate(0)
    effect = rates - layer.control.mean_rate(0)
    selected = layer.live[np.argsort(-effect[layer.live], kind="stable")[:256]]

    def by_sorting() -> list[np.ndarray]:
        generator, sets = np.random.default_rng([0, 0]), []
        for _ in range(20):
            left, chosen = np.setdiff1d(layer.live, selected), []
            for latent in selected:
                place = generator.choice(np.argsort(np.abs(rates[left] - rates[latent]), kind="stable")[:NEAREST])
                chosen.append(left[place])
                left = np.delete(left, place)
            sets.append(np.array(chosen))
        return sets

    def ours() -> list[np.ndarray]:
        return matched_latents(rates, selected, layer.live, draws=20, seed=(0, 0))

    assert all(np.array_equal(a, b) for a, b in zip(ours(), by_sorting(), strict=True))
    Clock(torch.device("cpu"), 1).row("matching: 20 sets of 256", ours, by_sorting)


def counting(latents: int, clock: Clock) -> None:
    """Count latents over 4,096 tokens."""
    arguments = Namespace(d_model=2560, d_sae=latents, tokens=4096, l0=60, device=str(clock.device), mini=False)
    work = sae_statistics.make_work(arguments)
    twin = sae_statistics.sae_lens_twin(work.sae)
    clock.row(
        "counting: 4,096 tokens",
        lambda: sum_by_document(work.sae, work.x, work.n_tokens),
        lambda: sae_statistics.by_sae_lens(twin, work, CHUNK_TOKENS),
        lambda: sae_statistics.matrix_product(work),
    )


def hashing(clock: Clock) -> None:
    """Hash the matrices of one layer in bfloat16."""
    weights = [
        (name, torch.randn(shape, device=clock.device).to(torch.bfloat16)) for name, shape in certificate.SHAPES.items()
    ]
    clock.row(
        "hashing: one layer's matrices",
        lambda: [tensor_digest(name, tensor) for name, tensor in weights],
        lambda: certificate.sha256(weights),
        lambda: [tensor.clone() for _, tensor in weights],
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=16_384)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    clock = Clock(torch.device(options.device), options.repeats)
    torch.set_num_threads(1)
    print(f"{device_name(clock.device)}; torch {torch.__version__}; {options.latents:,} latents; times in ms")
    print(f"{'':34} {'ours':>10} {'peer':>10} {'ratio':>9} {'floors':>7}", flush=True)
    layer = drawn_layer(options.latents)
    scoring(layer, clock)
    matching(layer, clock)
    counting(options.latents, clock)
    hashing(clock)


if __name__ == "__main__":
    main()
