"""Speed of the energy kept by the first k latents for every k = 1..256: one factorisation compared with one for each k.

Peers, on the same float64 matrix at the shapes of a 4B model (d 2560, MLP input 10240), in the same process: (a) a QR
of the first k rows and a product Q^T M for each k, (b) a d x d projector P_k for each k, and P_k M. The peers run on a
subset of k spread over 1..256, and their total is the mean of the subset times 256 (both are nearly linear in k or
constant). Agreement is printed for this subset. Times are CPU time. Run: python -m benchmarks.energy [--all]
"""

import argparse
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from stethoscope.delta.projection import cumulative_energy, span_basis

D, WIDTH, K = 2560, 10240, 256


def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return the result of `work` and its CPU time in seconds."""
    started = time.process_time()
    value = work()
    return value, time.process_time() - started


def by_qr(rows: Tensor, matrix: Tensor, k: int) -> Tensor:
    """Return the energy in the span of the first k rows, using a separate factorisation."""
    return (torch.linalg.qr(rows[:k].T).Q.T @ matrix).square().sum()


def by_projector(rows: Tensor, matrix: Tensor, k: int) -> Tensor:
    """Return the same energy using the projector on the span."""
    Q = torch.linalg.qr(rows[:k].T).Q
    return ((Q @ Q.T) @ matrix).square().sum()


def peer_seconds(
    work: Callable[[Tensor, Tensor, int], Tensor], rows: Tensor, matrix: Tensor, ks: Sequence[int], ours: Tensor
) -> tuple[float, float]:
    """Return the CPU seconds for all K (scaled up from `ks`), and the largest relative difference from `ours`."""
    spent, worst = 0.0, 0.0
    for k in ks:
        energy, seconds = timed(lambda k=k: work(rows, matrix, k))
        spent += seconds
        worst = max(worst, abs(float(energy / ours[k]) - 1))
    return spent * K / len(ks), worst


def main() -> None:
    """Measure the three, print seconds, agreement and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--all", action="store_true", help="run the peers on every k (slow)")
    every = parser.parse_args().all
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(K, D, generator=generator, dtype=torch.float64)
    rows += torch.randn(1, D, generator=generator, dtype=torch.float64)  # decoder rows are not orthogonal
    matrix = torch.randn(D, WIDTH, generator=generator, dtype=torch.float64)
    qr_ks = range(1, K + 1) if every else range(8, K, 31)  # mean 116, below that of 1..256, which favours the peer
    projector_ks = range(1, K + 1) if every else (16, 136, 256)
    cumulative_energy(matrix[:, :64], span_basis(rows[:8]))  # first call
    ours, seconds = timed(lambda: cumulative_energy(matrix, span_basis(rows)))
    qr, qr_difference = peer_seconds(by_qr, rows, matrix, qr_ks, ours)
    projector, projector_difference = peer_seconds(by_projector, rows, matrix, projector_ks, ours)
    print(f"all k = 1..{K} at once      {seconds:9.2f} s")
    print(f"one QR per k            {qr:9.2f} s, from {len(qr_ks)} k; largest difference {qr_difference:.1e}")
    print(
        f"one projector per k     {projector:9.2f} s, from {len(projector_ks)} k; "
        f"largest difference {projector_difference:.1e}"
    )
    print(f"ratio to one QR         {qr / seconds:9.0f} x")
    print(f"ratio to one projector  {projector / seconds:9.0f} x")
    assert max(qr_difference, projector_difference) < 1e-10


if __name__ == "__main__":
    main()
