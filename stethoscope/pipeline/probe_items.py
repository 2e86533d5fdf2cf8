"""Gold solutions scored by the likelihood check, the dose-response curve and the layer gains: the same seeded items."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from stethoscope.minerva.problems import sample_problems
from stethoscope.minerva.prompts import frame_problem
from stethoscope.minerva.sources import load_corpus
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import ProblemsRef, Split

BATCH_SIZE = {False: 8, True: 64}  # small batches stay in a CPU's cache; a GPU needs large ones


def batch_size(loaded: LoadedModel) -> int:
    """Return the number of items per batch."""
    return BATCH_SIZE[loaded.device.type == "cuda"]


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The items of a likelihood check as tokens, with the base's NLL of each.

    Attributes:
        key: identifies the items, their tokens and the base's values.
        rows: tokens of prompt and solution; the last `scored` tokens are the solution.
        names: subject or control corpus of each item.
    """

    key: str
    rows: list[list[int]]
    scored: list[int]
    names: np.ndarray
    is_control: Bool[np.ndarray, " n"]
    base: Float[np.ndarray, " n"]

    def part(self, chosen: Bool[np.ndarray, " n"]) -> "ProbeSet":
        """Return only the `chosen` items."""
        places = np.flatnonzero(chosen)
        return ProbeSet(
            f"{self.key} items {','.join(map(str, places))}",
            [self.rows[place] for place in places],
            [self.scored[place] for place in places],
            self.names[places],
            self.is_control[places],
            self.base[places],
        )


def gold_pairs(problems: ProblemsRef, split: Split, n: int, seed: int) -> tuple[list[tuple[str, str]], list[str]]:
    """Return (prompt, solution) of n seeded items per subject and control corpus, and the subject or corpus of each."""
    pairs, subjects = [], []
    for name in (*problems.subjects, *problems.control_names):
        for problem in sample_problems(load_corpus(problems, name, split), name, n, seed):
            pairs.append((frame_problem(problem.problem), problem.solution))
            subjects.append(name)
    return pairs, subjects
