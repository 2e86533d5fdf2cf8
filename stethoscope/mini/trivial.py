"""Solvers without mathematics, which must not solve the mini's problems.

majority: the most frequent answer of the subject's training problems. copied: the best fixed rule that copies a
number of the problem (first, second, ..., last, largest, smallest). nearest: the answer of the training problem
that shares the most words and digits (Jaccard over positioned pieces), among `n_train` problems of the subject.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from stethoscope.mini.language import numbers_in


@dataclass(frozen=True, slots=True)
class TrivialAccuracies:
    """Accuracy of each trivial solver on one subject's test problems."""

    majority: float
    copied: float
    nearest: float


def _majority(train: Sequence[dict[str, str]], test: Sequence[dict[str, str]]) -> float:
    answer = Counter(record["answer"] for record in train).most_common(1)[0][0]
    return sum(record["answer"] == answer for record in test) / len(test)


def _copied(test: Sequence[dict[str, str]]) -> float:
    hits: Counter[str] = Counter()
    for record in test:
        numbers = numbers_in(record["problem"])
        rules = {f"number {i}": value for i, value in enumerate(numbers)}
        if numbers:
            rules |= {"last": numbers[-1], "largest": max(numbers, key=int), "smallest": min(numbers, key=int)}
        hits.update(rule for rule, value in rules.items() if value == record["answer"])
    return max(hits.values(), default=0) / len(test)


def _pieces(problem: str) -> frozenset[tuple[int, str]]:
    seen: Counter[str] = Counter()
    pieces: set[tuple[int, str]] = set()
    for piece in re.findall(r"[A-Za-z]+|\d+|[^\sA-Za-z\d]", problem):
        pieces.add((seen[piece], piece))
        seen[piece] += 1
    return frozenset(pieces)


def _nearest(train: Sequence[dict[str, str]], test: Sequence[dict[str, str]]) -> float:
    known = [(_pieces(record["problem"]), record["answer"]) for record in train]
    hits = 0
    for record in test:
        wanted = _pieces(record["problem"])
        best = max(known, key=lambda item: len(item[0] & wanted) / len(item[0] | wanted))
        hits += best[1] == record["answer"]
    return hits / len(test)


def trivial_accuracies(train: Sequence[dict[str, str]], test: Sequence[dict[str, str]]) -> TrivialAccuracies:
    """Return the trivial solvers' accuracy on `test`, given `train` (one subject each)."""
    return TrivialAccuracies(majority=_majority(train, test), copied=_copied(test), nearest=_nearest(train, test))
