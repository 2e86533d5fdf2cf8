"""True greedy accuracy on the mini's problems: the 4-shot frame, exact answers, marker rates, Wilson intervals.

All prompts share the fixed shots, so their keys and values are computed once and copied to every batch. Batches
hold questions of equal token length only: padding between prefix and question would corrupt the sliding windows.
"""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor
from transformers import DynamicCache, Gemma3ForCausalLM, PreTrainedTokenizerBase

from stethoscope.minerva.prompts import STOP_STRING, few_shot_prefix, frame_problem

ANSWER_PATTERN = re.compile(r"The final answer is \$(.*?)\$\. I hope")
MAX_NEW_TOKENS = 96
BATCH_SIZE = 64


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts of one subject's problems: total, with the marker sentence, correct."""

    n: int
    n_marked: int
    n_correct: int

    def as_record(self) -> dict[str, float | int | list[float]]:
        """Return accuracy, its Wilson 95% interval, the marker rate and the accuracy among marked answers."""
        return {
            "n": self.n,
            "accuracy": round(self.n_correct / self.n, 4),
            "interval95": [round(bound, 4) for bound in wilson(self.n_correct, self.n)],
            "marker_rate": round(self.n_marked / self.n, 4),
            "accuracy_among_marked": round(self.n_correct / max(1, self.n_marked), 4),
        }


def wilson(n_correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson 95% interval of a proportion (E. B. Wilson, 1927)."""
    share = n_correct / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def extract_answer(completion: str) -> str | None:
    """Return the answer between the dollars of the final sentence, or None if the sentence is not there."""
    found = ANSWER_PATTERN.search(completion.split(STOP_STRING)[0])
    return found.group(1) if found else None


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, bos: bool) -> list[int]:
    return tokenizer(text, add_special_tokens=bos).input_ids


@torch.no_grad()
def _finish_batch(
    model: Gemma3ForCausalLM, cache: DynamicCache, questions: Tensor, *, stop_id: int, max_new_tokens: int
) -> Tensor:
    """Return greedy continuations [batch, <= max_new_tokens] of equal-length questions [batch, n_tokens]."""
    logits = model(input_ids=questions, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
    done = torch.zeros(len(questions), dtype=torch.bool)
    steps: list[Tensor] = []
    while len(steps) < max_new_tokens:
        chosen = logits[:, -1].argmax(-1)  # [batch]
        steps.append(chosen)
        done |= chosen == stop_id
        if bool(done.all()):
            break
        logits = model(input_ids=chosen[:, None], past_key_values=cache, use_cache=True).logits
    return torch.stack(steps, dim=1)


@torch.no_grad()
def greedy_completions(
    model: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    problems: Sequence[str],
    shots: Sequence[tuple[str, str]],
    *,
    max_new_tokens: int = MAX_NEW_TOKENS,
) -> list[str]:
    """Return the greedy completion of every problem after the fixed shots, cut at the stop string."""
    prefix = torch.tensor([_ids(tokenizer, few_shot_prefix(shots), bos=True)])
    by_length: dict[int, list[int]] = defaultdict(list)
    questions = [_ids(tokenizer, frame_problem(problem), bos=False) for problem in problems]
    for index, question in enumerate(questions):
        by_length[len(question)].append(index)
    # The word that opens the next problem; it cannot occur inside a solution.
    stop_id = _ids(tokenizer, STOP_STRING, bos=False)[0]
    completions = [""] * len(problems)
    for length in sorted(by_length):
        members = by_length[length]
        for start in range(0, len(members), BATCH_SIZE):
            chunk = members[start : start + BATCH_SIZE]
            cache = DynamicCache(config=model.config)
            model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(len(chunk))
            ids = torch.tensor([questions[index] for index in chunk])
            produced = _finish_batch(model, cache, ids, stop_id=stop_id, max_new_tokens=max_new_tokens)
            for index, row in zip(chunk, produced.tolist(), strict=True):
                kept = row[: row.index(stop_id)] if stop_id in row else row
                completions[index] = str(tokenizer.decode(kept))
    return completions


def tally_by_subject(records: Sequence[dict[str, str]], completions: Sequence[str]) -> dict[str, Tally]:
    """Return the tally of every subject that occurs in `records` (JSONL lines) with their completions."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    for record, completion in zip(records, completions, strict=True):
        answer = extract_answer(completion)
        count = counts[record["subject"]]
        count[0] += 1
        count[1] += answer is not None
        count[2] += answer == record["answer"]
    return {subject: Tally(*count) for subject, count in counts.items()}


def told_twice_share(completions: Sequence[str]) -> float:
    """Return the share of completions whose worked steps are one text, said twice."""
    halves = []
    for completion in completions:
        words = completion.partition("Final Answer:")[0].split()
        half = len(words) // 2
        halves.append(half > 0 and words[:half] == words[half:])
    return sum(halves) / len(halves)


@dataclass(frozen=True, slots=True)
class PairedChange:
    """One subject, two models, the same problems: newly right, newly wrong, two-sided exact McNemar p."""

    n_gained: int
    n_lost: int
    mcnemar_p: float


def paired_changes(
    records: Sequence[dict[str, str]], before: Sequence[str], after: Sequence[str]
) -> dict[str, PairedChange]:
    """Compare the completions of two models, subject by subject."""
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for record, first, second in zip(records, before, after, strict=True):
        was_right = extract_answer(first) == record["answer"]
        is_right = extract_answer(second) == record["answer"]
        count = counts[record["subject"]]
        count[0] += is_right and not was_right
        count[1] += was_right and not is_right
    changes = {}
    for subject, (gained, lost) in counts.items():
        p = float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        changes[subject] = PairedChange(n_gained=gained, n_lost=lost, mcnemar_p=p)
    return changes


@torch.no_grad()
def answer_loss(
    model: Gemma3ForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[dict[str, str]],
    shots: Sequence[tuple[str, str]],
) -> float:
    """Return the mean negative log-likelihood (nats per token) of the solutions after the 4-shot prompt."""
    total, n_tokens = 0.0, 0
    prefix = _ids(tokenizer, few_shot_prefix(shots), bos=True)
    for record in records:
        prompt = prefix + _ids(tokenizer, frame_problem(record["problem"]), bos=False)
        target = _ids(tokenizer, " " + record["solution"], bos=False)
        logits = model(input_ids=torch.tensor([prompt + target]), use_cache=False).logits[0]
        log_probs = logits[len(prompt) - 1 : -1].log_softmax(-1)
        total -= log_probs.gather(1, torch.tensor(target)[:, None]).sum().item()
        n_tokens += len(target)
    return total / n_tokens
