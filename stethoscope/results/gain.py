"""What measuring each layer's gain returns: gains, what predicted them, and how well."""

from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result

POOLED = "all"  # the subject of rows over all subjects


class GainCell(Record):
    """Measured gain of injecting one layer alone: the decrease of the NLL per solution token, in nats.

    Mean over `n` problems, paired with the base, with Student's t interval. `subject` is a subject, a control corpus
    (where a negative gain is harm), or "all": the subjects' problems together. `gain` and its interval are None for a
    layer that the task vector does not move: nothing was injected there.
    """

    layer: int
    subject: str
    is_control: bool
    n: int
    base_nll: float
    gain: float | None
    ci_low: float | None
    ci_high: float | None


class PredictorCell(Record):
    """What one predictor says of one layer, with its 95% bootstrap interval; None where it has no value.

    Specificity and the linear probe resample documents, the first-order effect the problems; depth and the relative
    update have no sampling error and no interval.
    """

    predictor: str
    subject: str
    layer: int
    value: float | None
    ci_low: float | None
    ci_high: float | None


class AgreementRow(Record):
    """Kendall's tau-b between a predictor and the measured gain over `n_layers` layers; None where one is constant.

    The layers are those that have a value and that the task vector moves. The interval resamples documents and problems
    together. `p` is two-sided, over permuted layer labels, whose tau lies between `null_low` and `null_high` in 95% of
    permutations: a random order. `cannot_be_significant`: no order of these values has p < .05. Two of n! orders are
    the most extreme, so this holds for up to four layers.
    """

    predictor: str
    subject: str
    n_layers: int
    kendall_tau: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    null_low: float | None
    null_high: float | None
    cannot_be_significant: bool = False


class SetGain(Record):
    """Gain of injecting a set of layers together, and how many of `n_random` random sets do as well or better.

    `kind` says how it was chosen: the `predictor`'s largest or smallest values, the last layers, or a window.
    p = (1 + as_good) / (1 + n_random); `cannot_be_significant`: too few sets for p < .05.
    """

    kind: Literal["top", "bottom", "last", "window"]
    predictor: str | None
    subject: str
    layers: tuple[int, ...]
    n: int
    gain: float
    ci_low: float
    ci_high: float
    as_good: int
    n_random: int
    p: float
    cannot_be_significant: bool


class RandomSet(Record):
    """One random set of layers and its gain on each subject ("all": over the subjects' problems)."""

    layers: tuple[int, ...]
    gains: dict[str, float]


class GainResult(Result):
    """Measured gains beside their predictors; `score` is the predictor on trial, `scores` all specificity scores.

    `idle` are the layers that the task vector does not move: they have no gain, and are left out of every tau and set.
    `verified` says that after each of `n_edits` injections the touched weights hashed to the base's again.
    """

    task_vector: str
    split: str
    n: int
    n_documents: int
    alpha: float
    score: str
    scores: tuple[str, ...]
    control: str
    subjects: tuple[str, ...]
    control_names: tuple[str, ...]
    n_layers: int
    idle: tuple[int, ...] = ()
    top_n: int
    cells: tuple[GainCell, ...]
    predictors: tuple[PredictorCell, ...]
    agreement: tuple[AgreementRow, ...]
    sets: tuple[SetGain, ...]
    random_sets: tuple[RandomSet, ...]
    n_edits: int
    verified: bool

    def of_subject(self, subject: str) -> "GainResult":
        """Return the rows of one subject (or control corpus, or "all") only."""
        return self.model_copy(
            update={
                "cells": tuple(row for row in self.cells if row.subject == subject),
                "predictors": tuple(row for row in self.predictors if row.subject == subject),
                "agreement": tuple(row for row in self.agreement if row.subject == subject),
                "sets": tuple(row for row in self.sets if row.subject == subject),
                "random_sets": tuple(
                    row.model_copy(
                        update={"gains": {name: gain for name, gain in row.gains.items() if name == subject}}
                    )
                    for row in self.random_sets
                ),
            }
        )
