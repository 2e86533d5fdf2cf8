"""Checksums of tensors: one SHA-256 digest each over name, dtype, shape and raw bytes, and one over all digests.

    digest = sha256([name, dtype, shape] as JSON + bytes),    checksum = sha256(digests in the order of the names)

Large models are hashed on several threads (hashlib releases the interpreter lock); one tensor a thread is on the CPU
at a time.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

PARALLEL_FROM_BYTES = 2**26
MAX_THREADS = 8


def tensor_digest(name: str, tensor: Tensor) -> bytes:
    """Return the SHA-256 digest of a tensor's name, dtype, shape and bytes (strides are not content)."""
    header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
    digest = hashlib.sha256(header.encode())
    raw = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
    digest.update(raw.numpy().data)
    return digest.digest()


def tensor_digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, bytes]:
    """Return the digest of every tensor by name."""
    pairs = list(tensors)
    threads = min(MAX_THREADS, os.cpu_count() or 1, len(pairs))
    if threads < 2 or sum(tensor.numel() * tensor.element_size() for _, tensor in pairs) < PARALLEL_FROM_BYTES:
        return {name: tensor_digest(name, tensor) for name, tensor in pairs}
    with ThreadPoolExecutor(threads) as pool:
        digests = pool.map(lambda pair: tensor_digest(*pair), pairs)
        return {name: digest for (name, _), digest in zip(pairs, digests, strict=True)}


def combined(digests: Mapping[str, bytes]) -> str:
    """Return "sha256-" and the hash over the digests in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(digests[name])
    return f"sha256-{total.hexdigest()}"


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the checksum of named tensors, whose order does not matter."""
    return combined(tensor_digests(tensors))
