"""The weight checksum equals its docstring's definition for any dtype and stride, and detects every change."""

import hashlib
import json
import random
import struct

import pytest
import torch
from torch import Tensor

from stethoscope.model import checksums
from stethoscope.model.checksums import PIECE_WORDS, checksum, piece_hashes, tensor_digest, tensor_digests

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.int8, torch.uint8, torch.bool, torch.int64)


def by_definition(name: str, tensor: Tensor) -> bytes:
    """The digest in Python integers, word by word."""
    raw = bytes(tensor.contiguous().reshape(-1).view(torch.uint8).tolist())
    raw += bytes(-len(raw) % 8)
    words = struct.unpack(f"<{len(raw) // 8}q", raw)
    stream = hashlib.shake_256(b"stethoscope: keys of weight checksums, version 1").digest(16 * PIECE_WORDS)
    keys = struct.unpack(f"<{2 * PIECE_WORDS}q", stream)
    hashes = [
        sum(a * w + b * (w >> 32) for w, a, b in zip(piece, keys, keys[PIECE_WORDS:], strict=False)) % 2**64
        for piece in (words[start : start + PIECE_WORDS] for start in range(0, len(words), PIECE_WORDS))
    ]
    header = json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode()
    return hashlib.sha256(header + struct.pack(f"<{len(hashes)}Q", *hashes)).digest()


def random_tensor(dtype: torch.dtype, numel: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    raw = torch.randint(0, 2 if dtype == torch.bool else 256, (numel * dtype.itemsize,), generator=generator)
    return raw.to(torch.uint8).view(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_digest_is_the_defined_hash_for_every_dtype_and_length(dtype: torch.dtype) -> None:
    for numel in (0, 1, 3, 8, 4 * PIECE_WORDS + 5):
        tensor = random_tensor(dtype, numel)
        assert tensor_digest("w", tensor) == by_definition("w", tensor)


def test_digest_is_the_same_whatever_the_step_the_stride_and_the_place(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = random_tensor(torch.bfloat16, 3 * 4 * PIECE_WORDS + 12).view(-1, 12)
    expected = by_definition("w", tensor)
    for step in (PIECE_WORDS, 2 * PIECE_WORDS, 2**20):
        monkeypatch.setattr(checksums, "STEP_WORDS", {"cpu": step})
        assert tensor_digest("w", tensor) == expected
    assert tensor_digest("w", tensor.t().contiguous().t()) == expected
    shifted = torch.cat([tensor.new_zeros(1), tensor.reshape(-1)])[1:].view(tensor.shape)
    assert shifted.storage_offset() * shifted.element_size() % 8
    assert tensor_digest("w", shifted) == expected


def test_the_products_of_gpus_are_those_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for devices other than the CPU gives the same sums modulo 2^64."""
    tensor = random_tensor(torch.float32, 6 * PIECE_WORDS + 10)
    on_cpu = piece_hashes(tensor)
    monkeypatch.setattr(checksums, "_inner", lambda rows, keys: (rows * keys).sum(1))
    assert torch.equal(piece_hashes(tensor), on_cpu)


def test_name_dtype_and_shape_are_content() -> None:
    tensor = random_tensor(torch.float16, 24)
    digests = {
        tensor_digest("w", tensor),
        tensor_digest("v", tensor),
        tensor_digest("w", tensor.view(torch.bfloat16)),
        tensor_digest("w", tensor.view(4, 6)),
        tensor_digest("w", tensor.view(6, 4)),
    }
    assert len(digests) == 5


def test_many_tensors_have_their_own_digests_on_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checksums, "PARALLEL_FROM_BYTES", 1)
    monkeypatch.setattr(checksums.os, "cpu_count", lambda: 4)
    tensors = {f"w{i}": random_tensor(torch.bfloat16, 1000 * i, seed=i) for i in range(9)}
    assert tensor_digests(tensors.items()) == {name: tensor_digest(name, tensor) for name, tensor in tensors.items()}
    assert checksum(tensors.items()) == checksum(reversed(tensors.items()))


def test_none_of_ten_thousand_faults_escapes() -> None:
    """One bit, several signs, equal changes of both halves of a word, rows or words exchanged, numbers moved along."""
    draw = random.Random(0)
    tensor = random_tensor(torch.bfloat16, 64 * 96, seed=3).view(64, 96)
    before = piece_hashes(tensor)
    escaped = []
    for fault in range(10_000):
        broken = tensor.clone()
        bits, words = broken.view(torch.int16), broken.view(torch.int64)
        kind = ("bit", "signs", "top halves", "both halves", "rows", "words", "moved")[fault % 7]
        row, other = draw.sample(range(64), 2)
        column, place = draw.randrange(96), draw.randrange(24)
        if kind == "bit":
            broken.view(torch.uint8)[row, 2 * column + draw.randrange(2)] ^= 1 << draw.randrange(8)
        elif kind == "signs":
            for r in draw.sample(range(64), 2 * draw.randrange(1, 5)):
                bits[r, 4 * place + 3] ^= -(2**15)
        elif kind == "top halves":
            for r in draw.sample(range(64), 2):
                words[r, place] += draw.randrange(1, 2**15) << 48
        elif kind == "both halves":
            amount = draw.randrange(1, 2**31)
            words[row, place] ^= amount | amount << 32
        elif kind == "rows":
            broken[[row, other]] = broken[[other, row]]
        elif kind == "words":
            words[row, [0, place]] = words[row, [place, 0]]
        else:
            broken = broken.reshape(-1).roll(1 + draw.randrange(6000)).view(64, 96)
        if not torch.equal(broken.view(torch.int16), tensor.view(torch.int16)) and torch.equal(
            piece_hashes(broken), before
        ):
            escaped.append((fault, kind))
    assert escaped == []
