"""Time and memory of counting latents, compared with SAELens' `encode` on the same cached activations.

Both get the same float32 activations of the same documents and the same JumpReLU weights in one process, and return for
every document and latent the number of tokens on which it fires and the sum of its activations; the tables are
compared. The peer encodes a chunk of tokens and sums its rows by document, with the best of three chunk sizes. The
lower bound is the encoder's matrix product alone, into an existing buffer.

Time is the minimum of alternating repeats. Peak memory excludes inputs and weights: on a CPU the increase of the
maximum resident set (Linux) in a new process each, on a GPU torch's own count. By default, activations are random with
the shapes of a 4B model; --mini uses the mini's prompts and one of its SAEs. Run: python -m benchmarks.sae_statistics
[--mini] [--device cuda]
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sae_lens.saes.jumprelu_sae import JumpReLUSAE, JumpReLUSAEConfig

from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.pipeline.listening import corpus_documents
from stethoscope.profiles import MINI
from stethoscope.progress import Progress
from stethoscope.sae.bank import Sae, open_bank
from stethoscope.sae.counts import CHUNK_TOKENS, sum_by_document
from stethoscope.sae.documents import listen, tokenise
from stethoscope.sae.rates import LayerTable

PEER_CHUNKS = (512, 1024, 4096)
MINI_LAYER = 5


@dataclass(frozen=True)
class Work:
    """Concatenated activations of documents, and the SAE."""

    sae: Sae
    x: torch.Tensor  # [n_tokens, d_model]
    n_tokens: np.ndarray  # [n_docs]


def random_work(arguments: argparse.Namespace) -> Work:
    """Return random activations and a random SAE whose thresholds let `l0` latents fire on a token."""
    generator = torch.Generator().manual_seed(0)
    d_model, d_sae = arguments.d_model, arguments.d_sae
    w_dec = torch.nn.functional.normalize(torch.randn(d_sae, d_model, generator=generator), dim=1)
    w_enc = w_dec.T.contiguous()
    x = torch.randn(arguments.tokens, d_model, generator=generator)
    at_rate = (x[:256] @ w_enc).flatten()[:1_000_000].quantile(1 - arguments.l0 / d_sae)
    sae = Sae(
        layer=0,
        site="resid_post",
        W_enc=w_enc,
        b_enc=0.1 * torch.randn(d_sae, generator=generator),
        W_dec=w_dec,
        b_dec=torch.zeros(d_model),
        threshold=at_rate * (0.9 + 0.2 * torch.rand(d_sae, generator=generator)),
        apply_b_dec_to_input=False,
    )
    lengths = np.random.default_rng(0).integers(20, 180, size=arguments.tokens)
    ends = np.minimum(np.cumsum(lengths), arguments.tokens)
    return Work(sae, x, np.diff(np.unique(np.concatenate([[0], ends]))))


def mini_work() -> Work:
    """Return the mini's activations at one layer on its own prompts."""
    spec = MINI.diagnose_spec()
    loaded = load_checkpoint(MINI.model, device="cpu", progress=Progress())
    bank = open_bank(spec.listens_with, loaded.layout.d_model)
    documents = [document for subject in spec.problems.subjects for document in corpus_documents(spec, subject)]
    rows = tokenise(loaded, documents, spec.tokens)
    (heard,) = listen(loaded, rows, [MINI_LAYER], bank.ref.site, d=bank.d_model, progress=Progress())
    return Work(bank.load(MINI_LAYER), heard.take(MINI_LAYER), heard.n_tokens)


def make_work(arguments: argparse.Namespace) -> Work:
    """Return the chosen work on the chosen device."""
    work = mini_work() if arguments.mini else random_work(arguments)
    device = torch.device(arguments.device)
    return Work(work.sae.to(device), work.x.to(device), work.n_tokens)


def sae_lens_twin(sae: Sae) -> JumpReLUSAE:
    """Return a SAELens SAE with the weights of `sae`."""
    d_in, d_sae = sae.W_enc.shape
    config = JumpReLUSAEConfig(
        d_in=d_in, d_sae=d_sae, device=str(sae.W_enc.device), apply_b_dec_to_input=sae.apply_b_dec_to_input
    )
    twin = JumpReLUSAE(config)
    names = ("W_enc", "b_enc", "W_dec", "b_dec", "threshold")
    twin.load_state_dict({name: getattr(sae, name) for name in names}, assign=True)
    return twin.requires_grad_(False)


def by_sae_lens(twin: JumpReLUSAE, work: Work, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return counts and sums of activations [n_docs, d_sae] by `encode` and group sums."""
    owner = torch.repeat_interleave(torch.from_numpy(work.n_tokens)).to(work.x.device)
    counts = work.x.new_zeros(len(work.n_tokens), work.sae.d_sae)
    sums = torch.zeros_like(counts)
    for start in range(0, len(work.x), chunk):
        part = slice(start, start + chunk)
        activations = twin.encode(work.x[part])
        counts.index_add_(0, owner[part], (activations > 0).to(counts.dtype))
        sums.index_add_(0, owner[part], activations)
    return counts, sums


def matrix_product(work: Work) -> None:
    """Multiply by the encoder, chunk by chunk, into one buffer."""
    buffer = work.x.new_empty(min(CHUNK_TOKENS, len(work.x)), work.sae.d_sae)
    for start in range(0, len(work.x), len(buffer)):
        chunk = work.x[start : start + len(buffer)]
        torch.addmm(work.sae.b_enc, chunk, work.sae.W_enc, out=buffer[: len(chunk)])


def shortest(runs: dict[str, Callable[[], object]], repeats: int, device: str) -> dict[str, float]:
    """Return the minimum time of each run in seconds, from alternating repeats after a warm-up."""
    best = dict.fromkeys(runs, float("inf"))
    for turn in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if turn:
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def resident_kb(field: str) -> int:
    """Return VmRSS or VmHWM of this process in KiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Return the peak memory of `run` above the previous use."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak to the current use
    before = resident_kb("VmRSS")
    run()
    return 1024 * (resident_kb("VmHWM") - before)


def compare(table: LayerTable, counts: torch.Tensor, sums: torch.Tensor, work: Work) -> None:
    """Print the differences between the two tables."""
    n_tokens = work.n_tokens[:, None]
    ours = np.rint(table.spread(table.rates, None) * n_tokens)
    norms = work.sae.W_dec.norm(dim=1).cpu().numpy()
    mass = sums.cpu().numpy() / n_tokens * norms
    worst = np.abs(table.spread(table.masses, None) - mass).max() / mass.max()
    theirs = counts.cpu().numpy()
    print(f"count mismatches       {int((ours != theirs).sum())} of {ours.size:,} (firings: {int(theirs.sum()):,})")
    print(f"largest mass difference {worst:.1e} of the largest mass")
    print(
        f"the table              {len(table.rates):,} entries, {10 * len(table.rates) / (8 * ours.size):.3f} of dense"
    )


def main() -> None:
    """Measure, compare, print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--d-model", type=int, default=2560)
    parser.add_argument("--d-sae", type=int, default=16384)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--l0", type=float, default=100.0, help="latents that fire per token")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--mini", action="store_true", help="use the mini's prompts and SAE instead of random ones")
    parser.add_argument("--peak", help=argparse.SUPPRESS)  # a child process: "us", or the peer's chunk size
    arguments = parser.parse_args()
    work = make_work(arguments)
    twin = sae_lens_twin(work.sae)

    def us() -> LayerTable:
        return sum_by_document(work.sae, work.x, work.n_tokens)

    def peer(chunk: int) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        return lambda: by_sae_lens(twin, work, chunk)

    if arguments.peak is not None:
        matrix_product(Work(work.sae, work.x[:64], work.n_tokens[:1]))  # allocations of the library on first use
        print(peak_bytes(us if arguments.peak == "us" else peer(int(arguments.peak)), arguments.device))
        return
    compare(us(), *peer(PEER_CHUNKS[0])(), work)
    runs: dict[str, Callable[[], object]] = {"us": us, "product": lambda: matrix_product(work)}
    runs |= {str(chunk): peer(chunk) for chunk in PEER_CHUNKS}
    best = shortest(runs, arguments.repeats, arguments.device)
    chunk = min(PEER_CHUNKS, key=lambda size: best[str(size)])

    def measured(name: str) -> int:
        child = [sys.executable, "-m", "benchmarks.sae_statistics", *sys.argv[1:], "--peak", name]
        return int(subprocess.run(child, capture_output=True, text=True, check=True).stdout.split()[-1])

    ours, theirs = measured("us"), measured(str(chunk))
    print(
        f"{len(work.x)} tokens, {len(work.n_tokens)} documents, W_enc {tuple(work.sae.W_enc.shape)}, "
        f"{arguments.device}, {torch.get_num_threads()} threads; peer's best chunk: {chunk}"
    )
    print(f"time                   {best['us']:.3f} s, peer {best[str(chunk)]:.3f} s, product {best['product']:.3f} s")
    print(f"peak memory            {ours / 1e6:.0f} MB, peer {theirs / 1e6:.0f} MB")
    print(f"ratio of time          {best[str(chunk)] / best['us']:.2f} x faster than the peer")
    print(f"ratio of peak memory   {theirs / max(ours, 1):.2f} x less than the peer")
    print(f"of the product's speed {best['product'] / best['us']:.3f}")


if __name__ == "__main__":
    main()
