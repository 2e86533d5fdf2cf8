"""Spec of the measured gain of each layer and its agreement with the scores."""

import math

from pydantic import Field

from stethoscope.records.base import MOST, Seed, Spec, Split
from stethoscope.records.diagnosis import SCORE_NAMES, DiagnoseSpec
from stethoscope.records.references import TaskVectorRef

GRADIENT_TEXTS = 3  # a forward and a backward pass take about as long as scoring three texts


class GainSpec(Spec):
    """Gain of injecting single layers and sets of layers, with all predictors of the gain.

    Attributes:
        diagnosis: the specificity score to test; its documents are also used by the linear probe.
        task_vector: the task vector to inject, unfiltered.
        split: split that the problems are drawn from (dev; use test only for layers chosen beforehand).
        n: problems per subject, and items per control corpus.
        alpha: strength of the injection.
        top_n: layers in a set.
        random_sets: number of different random sets of `top_n` layers; all sets if there are not more.
        seed: of the problems, the random sets, the bootstrap of problems and the permutation of layers.
    """

    diagnosis: DiagnoseSpec
    task_vector: TaskVectorRef
    split: Split = "dev"
    n: int = Field(default=16, ge=2, le=MOST)
    alpha: float = 1.0
    top_n: int = Field(default=4, ge=1, le=MOST)
    random_sets: int = Field(default=99, ge=1, le=MOST)
    seed: Seed = 0

    def most_texts(self, n_moved: int) -> int:
        """Return the maximum number of texts to score if the task vector changes `n_moved` layers.

        The number can be lower, because a set that occurs twice is scored once.
        """
        problems = self.diagnosis.problems
        n_pooled = self.n * len(problems.subjects)
        n_predictors = len(SCORE_NAMES) + 4  # first-order effect, relative update, linear probe, depth
        windows = max(n_moved - self.top_n + 1, 0)
        chosen = 2 * n_predictors + 1 + windows  # a row: tops and bottoms, the last ones
        drawn = min(self.random_sets, math.comb(n_moved, self.top_n))
        single = n_moved * self.n * (len(problems.subjects) + len(problems.control_names))
        return single + (GRADIENT_TEXTS + drawn + 2 * chosen) * n_pooled  # rows: subjects together, and each
