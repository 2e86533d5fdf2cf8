"""Result of the layer gains: gains, their predictors, and the agreement between them."""

from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result

POOLED = "all"  # the subject of rows over all subjects


class GainCell(Record):
    """Measured gain of injecting one layer alone: the decrease in NLL per solution token, in nats.

    Mean over `n` problems, paired with the base, with Student's t interval. `subject` is a subject, a control corpus
    (where a negative gain means harm), or "all" for the pooled problems of all subjects. `gain` and its interval are
    None for a layer that the task vector does not change.
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
    """Value of one predictor for one layer with its 95% bootstrap interval; None if it has no value.

    The intervals of specificity and the linear probe resample documents, that of the first-order effect resamples
    problems. Depth and relative update have no sampling error and no interval.
    """

    predictor: str
    subject: str
    layer: int
    value: float | None
    ci_low: float | None
    ci_high: float | None


class AgreementRow(Record):
    """Kendall's tau-b between a predictor and the measured gain over `n_layers` layers; None if one of them is
    constant.

    It uses the layers that have a value and that the task vector changes. The interval resamples documents and problems
    together. `p` is two-sided, from permuted layer labels; the tau of 95% of these permutations is between `null_low`
    and `null_high`. `cannot_be_significant`: no order of these values has p < .05. Two of n! orders are the most
    extreme, so this holds for up to four layers.
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

    `kind` says how the set was chosen: the largest or smallest values of the `predictor`, the last layers, or a window.
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
    """One random set of layers and its gain on each subject ("all": over the problems of all subjects)."""

    layers: tuple[int, ...]
    gains: dict[str, float]


class GainResult(Result):
    """Measured gains and their predictors; `score` is the predictor under test, `scores` are all specificity scores.

    `idle` are the layers that the task vector does not change; they have no gain and are excluded from all taus and
    sets. `verified`: after each of `n_edits` injections, the checksum of the edited weights equalled that of the base
    again.
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
        """Return only the rows of one subject, control corpus, or "all"."""
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
