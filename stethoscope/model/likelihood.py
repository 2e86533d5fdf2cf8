"""Likelihood of given text: teacher-forced NLL of solutions, and KL divergence between two models' predictions.

    nll = -1/n sum_t log p(y_t | prompt, y_<t)      in nats per solution token
    kl_t = sum_v p_edited(v) (log p_edited(v) - log p_base(v))

Rows are right-aligned, so that only the logits of the last positions are computed (with a vocabulary of 262k, all
logits would not fit).
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from stethoscope.errors import CorpusError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.model.prefix import Prefix, right_align, share_prefix
from stethoscope.progress import Progress
from stethoscope.results import TokenChance

LOGITS_BYTES = 1 << 30  # logits computed at a time; 2,047 positions with a vocabulary of 262k in bfloat16
CHUNK_BYTES = 64 << 20  # part of them in float32 at a time


def solution_nll(
    loaded: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Float[np.ndarray, " n"]:
    """Return the mean NLL per solution token, in nats, of each (prompt, solution); the text is prompt + " " + solution.

    As in lm-evaluation-harness, the solution's tokens are those of the whole text after as many tokens as the prompt
    has. Counts each pair on `progress` (which the caller has started) and checks for cancel between batches.
    """
    rows, scored = encode_solutions(loaded, pairs)
    return rows_nll(loaded, rows, scored, batch_size=batch_size, progress=progress)


def rows_nll(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    scored: Sequence[int],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Float[np.ndarray, " n"]:
    """Return the mean NLL of the last `scored[i]` tokens of each row, like `solution_nll` for text.

    If torch uses one thread of a CPU with several cores (a small model in the dashboard), two batches run in parallel,
    because two threads within one small product would wait for each other. Other jobs do not run during a batch.
    Batches are smaller if their logits would exceed `LOGITS_BYTES`.
    """
    progress = progress or Progress()
    nll = np.zeros(len(rows))
    contexts = [row[: len(row) - n] for row, n in zip(rows, scored, strict=True)]
    prefix = share_prefix(loaded, contexts)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    abreast = batches_abreast(loaded.device.type)
    budget = LOGITS_BYTES // abreast
    batches = bounded_batches(order, [n + 1 for n in scored], batch_size, position_bytes(loaded), budget)

    def score(chosen: list[int]) -> Float[np.ndarray, " batch"]:
        return _batch_nll(loaded, [rows[i] for i in chosen], [scored[i] for i in chosen], prefix)

    with ThreadPoolExecutor(abreast) as executor:
        for start in range(0, len(batches), abreast):
            progress.yield_to_interactive()
            together = batches[start : start + abreast]
            for chosen, values in zip(together, list(executor.map(score, together)), strict=True):
                nll[chosen] = values
                progress.advance(len(chosen))
    return nll


def batches_abreast(device: str) -> int:
    """Return the number of batches to score in parallel: two if torch uses one thread of a CPU with several cores."""
    return 2 if device == "cpu" and torch.get_num_threads() == 1 and (os.cpu_count() or 1) > 1 else 1


def position_bytes(loaded: LoadedModel) -> int:
    """Return the bytes of the logits of one position, in the model's dtype."""
    return int(loaded.model.config.get_text_config().vocab_size) * loaded.dtype.itemsize


def bounded_batches(
    order: Sequence[int], sizes: Sequence[int], batch_size: int, unit_bytes: int, budget: int
) -> list[list[int]]:
    """Return `order` split into batches of at most `batch_size` rows with a padded size of at most `budget` bytes.

    A batch takes rows x its largest size x `unit_bytes`; a single row is always allowed.
    """
    batches: list[list[int]] = []
    for i in order:
        batch = batches[-1] if batches else []
        widest = max([sizes[i], *(sizes[j] for j in batch)])
        if batch and len(batch) < batch_size and (len(batch) + 1) * widest * unit_bytes <= budget:
            batch.append(i)
        else:
            batches.append([i])
    return batches


def _batch_nll(
    loaded: LoadedModel, rows: Sequence[Sequence[int]], scored: Sequence[int], prefix: Prefix
) -> Float[np.ndarray, " batch"]:
    block = right_align(loaded, rows, prefix)
    with torch.no_grad():
        logits = loaded.model(
            input_ids=block.input_ids,
            attention_mask=block.attention_mask,
            position_ids=block.position_ids,
            past_key_values=block.cache if prefix.length else None,
            use_cache=prefix.length > 0,  # nothing to keep without a prefix
            logits_to_keep=last_positions(block.input_ids, max(scored) + 1),
        ).logits
    return mean_nll(logits, block.input_ids, scored).cpu().numpy()


def last_positions(input_ids: Int[Tensor, "batch block"], count: int) -> Int[Tensor, " count"]:
    """Return the last `count` positions of a block, for transformers' `logits_to_keep`.

    With a number, transformers passes a non-contiguous slice to the head, and torch then multiplies row by row, each
    with a copy of the head (on a CPU in bfloat16: 64 rows x vocabulary 32k x 512 take 2.1 GB instead of 4 MB).
    """
    width = input_ids.shape[1]
    return torch.arange(max(0, width - count), width, device=input_ids.device)


def encode_solutions(loaded: LoadedModel, pairs: Sequence[tuple[str, str]]) -> tuple[list[list[int]], list[int]]:
    """Return the tokens of each prompt + " " + solution, and the number of its last tokens that belong to the
    solution."""
    prompts = loaded.encode([prompt for prompt, _ in pairs])
    rows = loaded.encode([f"{prompt} {solution}" for prompt, solution in pairs])
    scored = [len(row) - len(prompt) for row, prompt in zip(rows, prompts, strict=True)]
    if min(scored, default=1) < 1:
        raise CorpusError(
            "a solution has no tokens",
            got=repr(pairs[scored.index(min(scored))][1])[:80],
            expected="text that the model's tokenizer can encode",
            next_step="Correct the solution of this problem.",
        )
    return rows, scored


def mean_nll(
    logits: Float[Tensor, "batch keep vocab"], input_ids: Int[Tensor, "batch block"], scored: Sequence[int]
) -> Float[Tensor, " batch"]:
    """Return the mean NLL, in nats and float64, of the `scored[i]` last tokens of each right-aligned row.

    `logits` are those of the last `keep` positions, keep = max(scored) + 1: each predicts the token after it. They are
    converted to float32 a few positions at a time.
    """
    batch, keep, vocab = logits.shape
    targets = input_ids[:, 1 - keep :, None]  # [batch, keep - 1, 1]
    step = max(1, CHUNK_BYTES // (4 * batch * vocab))
    pieces = zip(logits[:, :-1].split(step, dim=1), targets.split(step, dim=1), strict=True)
    picked = [piece.float().log_softmax(-1).gather(2, wanted)[..., 0] for piece, wanted in pieces]
    chances = torch.cat(picked, dim=1).double()  # [batch, keep - 1]
    return torch.stack([-row[-n:].mean() for row, n in zip(chances, scored, strict=True)])


def next_token_logprobs(
    loaded: LoadedModel,
    ids_list: Sequence[Sequence[int]],
    *,
    last: Sequence[int] | None = None,
    batch_size: int = 8,
) -> list[Float[Tensor, "positions vocab"]]:
    """Return the log-probabilities of each row's tokens 1, 2, ... given those before: [len - 1, vocab], float32, CPU.

    With `last`, only the predictions of the last `last[i]` tokens of each row are returned ([last_i, vocab]).
    """
    wanted = [len(ids) - 1 for ids in ids_list] if last is None else list(last)
    assert all(0 <= n < len(ids) for n, ids in zip(wanted, ids_list, strict=True)), "more predictions than tokens"
    found: list[Tensor] = []
    for start in range(0, len(ids_list), batch_size):
        rows = ids_list[start : start + batch_size]
        counts = wanted[start : start + batch_size]
        block = right_align(loaded, rows, share_prefix(loaded, []))
        with torch.no_grad():
            logits = loaded.model(
                input_ids=block.input_ids,
                attention_mask=block.attention_mask,
                position_ids=block.position_ids,
                logits_to_keep=last_positions(block.input_ids, max(counts) + 1),
                use_cache=False,
            ).logits
        for row, count in enumerate(counts):
            found.append(logits[row, logits.shape[1] - 1 - count : -1].float().log_softmax(-1).cpu())
    return found


def kl_per_token(
    edited: Float[Tensor, "positions vocab"], base: Float[Tensor, "positions vocab"]
) -> Float[Tensor, " positions"]:
    """Return KL(edited || base) in nats at each position, from log-probabilities; never below 0."""
    assert edited.shape == base.shape, (edited.shape, base.shape)
    found = edited.new_zeros(len(edited))
    for position in range(
        len(edited)
    ):  # one at a time: in float64, a whole text with a vocabulary of 262k would not fit
        p, q = edited[position].double(), base[position].double()
        found[position] = torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum().clamp(min=0)
    return found


def top_tokens(
    loaded: LoadedModel, logprobs: Float[Tensor, "positions vocab"], count: int = 5
) -> list[tuple[TokenChance, ...]]:
    """Return the `count` most likely tokens of each position with their probabilities, in descending order."""
    chances, tokens = logprobs.topk(min(count, logprobs.shape[1]), dim=1)
    return [
        tuple(
            TokenChance(token=loaded.token_name(token), probability=math.exp(chance))
            for token, chance in zip(of_position, chances_there, strict=True)
        )
        for of_position, chances_there in zip(tokens.tolist(), chances.tolist(), strict=True)
    ]
