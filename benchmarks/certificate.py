"""Speed of hashing weights: our checksum, SHA-256 and a memory copy, on the same weights with Gemma 3 4B's shapes.

Prints gigabytes per second of CPU time on one thread (or of elapsed time on a GPU), the ratios to a copy, and the time
of a certificate's three readings. SHA-256 runs on the host, because it needs the bytes there. Run: python -m
benchmarks.certificate [--layers 2] [--device cpu]
"""

import argparse
import hashlib
import time
from collections.abc import Callable

import torch
from torch import Tensor

from stethoscope.model.checksums import tensor_digest, tensor_digests
from stethoscope.model.free_memory import device_name

WIDTH, INNER, QUERIES, KEYS = 2560, 10240, 2048, 1024
SHAPES = {
    "q": (QUERIES, WIDTH),
    "k": (KEYS, WIDTH),
    "v": (KEYS, WIDTH),
    "o": (WIDTH, QUERIES),
    "gate": (INNER, WIDTH),
    "up": (INNER, WIDTH),
    "down": (WIDTH, INNER),
}
REPEATS = 5


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Return the minimum of several runs: CPU time of this thread on the CPU, otherwise time until the device is
    done."""
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    best = float("inf")
    for _ in range(REPEATS):
        started = clock()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, clock() - started)
    return best


def sha256(weights: list[tuple[str, Tensor]]) -> None:
    """Hash the weights' bytes on the host."""
    for _, tensor in weights:
        hashlib.sha256(tensor.cpu().view(torch.uint8).numpy().data).digest()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    weights = [
        (f"{layer}.{name}", torch.randn(shape, device=device, dtype=torch.bfloat16))
        for layer in range(options.layers)
        for name, shape in SHAPES.items()
    ]
    copies = [torch.empty_like(tensor) for _, tensor in weights]
    size = sum(tensor.numel() * tensor.element_size() for _, tensor in weights)

    def ours() -> None:
        if device.type == "cpu":
            for name, tensor in weights:
                tensor_digest(name, tensor)
        else:
            tensor_digests(weights)

    def copy() -> None:
        for target, (_, tensor) in zip(copies, weights, strict=True):
            target.copy_(tensor)

    taken = {
        "copy": seconds(copy, device),
        "our checksum": seconds(ours, device),
        "SHA-256": seconds(lambda: sha256(weights), device),
    }
    print(f"{device_name(device)}, {options.layers} layers of Gemma 3 4B's shapes in bfloat16, {size / 1e9:.2f} GB")
    for what, spent in taken.items():
        print(f"{what:14s} {size / spent / 1e9:8.2f} GB/s   {taken['copy'] / spent:5.2f} of a copy's speed")
    print(f"our checksum is {taken['SHA-256'] / taken['our checksum']:.2f}x as fast as SHA-256")
    print(f"three readings of a certificate: {3e3 * taken['our checksum']:.1f} ms for these layers")


if __name__ == "__main__":
    main()
