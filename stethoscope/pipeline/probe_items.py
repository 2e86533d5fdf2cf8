"""Gold solutions that the probe, its dose-response curve and the measured gains score: the same seeded items."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from stethoscope.minerva.problems import sample_problems
from stethoscope.minerva.prompts import frame_problem
from stethoscope.minerva.sources import load_corpus
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import ProblemsRef, Split

BATCH_SIZE = {False: 8, True: 64}  # on a CPU small batches stay in the cache; a GPU wants large ones


def batch_size(loaded: LoadedModel) -> int:
    """Return how many items are scored at once."""
    return BATCH_SIZE[loaded.device.type == "cuda"]


@dataclass(frozen=True, slots=True)
class ProbeSet:
    """The items of a probe as tokens, and the base's NLL of each.

    Attributes:
        key: what decides the items, their tokens and the base's values.
        rows: tokens of prompt and solution; `scored` of the last ones are the solution's.
        names: subject or control corpus of each item.
    """

    key: str
    rows: list[list[int]]
    scored: list[int]
    names: np.ndarray
    is_control: Bool[np.ndarray, " n"]
    base: Float[np.ndarray, " n"]

    def part(self, chosen: Bool[np.ndarray, " n"]) -> "ProbeSet":
        """Return the `chosen` items alone."""
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
    """Return (prompt, solution) of n seeded items a subject and control corpus, and the subject or corpus of each."""
    pairs, subjects = [], []
    for name in (*problems.subjects, *problems.control_names):
        for problem in sample_problems(load_corpus(problems, name, split), name, n, seed):
            pairs.append((frame_problem(problem.problem), problem.solution))
            subjects.append(name)
    return pairs, subjects
