"""Checksums of tensors, computed on the tensor's device at about memory speed.

A tensor's bytes are read as 64-bit words w_i, in pieces of `PIECE_WORDS`. Each piece gets a keyed multilinear hash
(Carter and Wegman 1979; Lemire and Kaser 2013, "Strongly universal string hashing is fast") of its words and of their
upper halves:

    h = sum_i a_i w_i + b_i (w_i >> 32)   modulo 2^64,   with keys a_i, b_i drawn over all 64-bit words,
    digest = sha256([name, dtype, shape] as JSON + h of every piece),
    checksum = sha256(digests in the order of the names).

Failure probability: let a piece change, its words by d_i modulo 2^64 and their upper halves by e_i. If the lower half
of any word changes, d_i has at most 31 factors of two there, so for any values of the other terms, at most 2^31 of the
2^64 values of a_i cancel them. Otherwise only upper halves change, d_i = 2^32 e_i, and e_i has at most 31 factors of
two, so that the same holds for b_i. A given change is therefore missed with probability at most 2^-33 (1.2e-10) over
the keys, however many words, pieces or tensors it touches. The keys are the same in every process, so that checksums
can be compared between runs, and between CPU and GPU. They detect faults, but do not protect against an adversary who
knows the keys: files and other machines are compared by SHA-256 (see `store.fingerprints`).
"""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

PREFIX = "ml64-"
PIECE_WORDS = 2**13
WORD_BYTES = 8
STEP_WORDS = {"cpu": 2**17}  # words per piece, so that the data stay in the cache
STEP_WORDS_ELSEWHERE = 2**21
PARALLEL_FROM_BYTES = 2**22
MAX_THREADS = 8


@functools.cache
def _keys(device: torch.device) -> Tensor:
    """Return the keys a and b, int64 [2, PIECE_WORDS]; from SHAKE-256, so that they do not depend on library
    versions."""
    size = 2 * PIECE_WORDS * WORD_BYTES
    raw = hashlib.shake_256(b"stethoscope: keys of weight checksums, version 1").digest(size)
    return torch.frombuffer(bytearray(raw), dtype=torch.int64).view(2, PIECE_WORDS).to(device)


def _words(tensor: Tensor) -> Tensor:
    """Return the tensor's bytes in row-major order as int64 [n], padded with zeros to complete words."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    missing = -raw.numel() % WORD_BYTES
    if missing:
        raw = torch.cat([raw, raw.new_zeros(missing)])
    elif raw.storage_offset() % WORD_BYTES:
        raw = raw.clone()
    return raw.view(torch.int64)


def _inner(rows: Tensor, keys: Tensor) -> Tensor:
    """Return the sums of `rows` [n, p] times `keys` [p] modulo 2^64, [n]; on GPUs torch has no int64 matrix product."""
    return torch.mv(rows, keys) if rows.device.type == "cpu" else (rows * keys).sum(1)


def piece_hashes(tensor: Tensor) -> Tensor:
    """Return h of every piece of the tensor, int64 [n_pieces], on the tensor's device."""
    words = _words(tensor)
    keys = _keys(words.device)
    step = STEP_WORDS.get(words.device.type, STEP_WORDS_ELSEWHERE)
    scratch = torch.empty(min(step, len(words)), dtype=torch.int64, device=words.device)
    whole = len(words) // PIECE_WORDS * PIECE_WORDS
    parts = [*words[:whole].split(step), words[whole:]] if whole else [words]
    hashes = []
    for part in parts:
        if not len(part):
            continue
        low_keys, high_keys = keys[:, : len(part)]
        high = torch.bitwise_right_shift(part, 32, out=scratch[: len(part)])
        shape = (-1, min(PIECE_WORDS, len(part)))
        hashes.append(_inner(part.view(shape), low_keys) + _inner(high.view(shape), high_keys))
    return torch.cat(hashes) if hashes else words


def _digest(name: str, tensor: Tensor, hashes: Tensor) -> bytes:
    header = json.dumps([name, str(tensor.dtype), list(tensor.shape)])
    return hashlib.sha256(header.encode() + hashes.numpy().tobytes()).digest()


def tensor_digest(name: str, tensor: Tensor) -> bytes:
    """Return the digest of a tensor's name, dtype, shape and bytes (strides and device are not content)."""
    return _digest(name, tensor, piece_hashes(tensor).cpu())


def tensor_digests(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, bytes]:
    """Return the digest of every tensor by name, with one transfer per device and several threads on the CPU."""
    pairs = list(tensors)
    on_cpu = [tensor for _, tensor in pairs if tensor.device.type == "cpu"]
    threads = min(MAX_THREADS, os.cpu_count() or 1, len(on_cpu))
    if threads < 2 or sum(tensor.numel() * tensor.element_size() for tensor in on_cpu) < PARALLEL_FROM_BYTES:
        hashes = [piece_hashes(tensor) for _, tensor in pairs]
    else:
        with ThreadPoolExecutor(threads) as pool:
            hashes = list(pool.map(piece_hashes, (tensor for _, tensor in pairs)))
    return {name: _digest(name, tensor, read) for (name, tensor), read in zip(pairs, _on_host(hashes), strict=True)}


def _on_host(hashes: list[Tensor]) -> list[Tensor]:
    """Return `hashes` on the host, in one transfer from each device."""
    read: dict[int, Tensor] = {}
    for device in {part.device for part in hashes}:
        places = [i for i, part in enumerate(hashes) if part.device == device]
        together = torch.cat([hashes[i] for i in places]).cpu()
        read.update(zip(places, together.split([len(hashes[i]) for i in places]), strict=True))
    return [read[i] for i in range(len(hashes))]


def combined(digests: Mapping[str, bytes]) -> str:
    """Return `PREFIX` and the hash over the digests in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(digests):
        total.update(digests[name])
    return f"{PREFIX}{total.hexdigest()}"


def checksum(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Return the checksum of named tensors; their order does not matter."""
    return combined(tensor_digests(tensors))
