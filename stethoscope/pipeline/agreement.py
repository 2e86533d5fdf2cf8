"""Agreement between each predictor and the measured gains: Kendall's tau with interval and null distribution.

A predictor has one number per layer and subject. Bootstrap draws of predictors (over documents or problems) and of
gains (over problems) are paired, so that the interval of tau covers both; noise in either pulls draws of tau towards
zero, which makes the interval conservative. The null distribution permutes layer labels. The last row of every table is
the mean over the subjects. A layer without a value (without an SAE) is excluded from the tau of that predictor. A layer
that the task vector does not change has no gain and is excluded from every tau.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stethoscope.records import finite_or_none
from stethoscope.results import AgreementRow, PredictorCell
from stethoscope.statistics import cannot_reach, kendall_tau, kendall_test, percentile_interval

PERMUTATIONS = 1999
MIN_LAYERS = 3  # two layers have only two orders, too few for a rank correlation


def with_mean(table: Float[np.ndarray, "*draws n_subjects n_layers"]) -> np.ndarray:
    """Append the mean over the subjects as a row; NaN if any subject has no value."""
    return np.concatenate([table, table.mean(axis=-2, keepdims=True)], axis=-2)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Values of one predictor for each layer, by subject and for their mean (the last row).

    Attributes:
        values: [n_subjects + 1, n_layers]; NaN where a layer has no value.
        draws: bootstrap draws of the values; None for a predictor without sampling error.
    """

    name: str
    values: Float[np.ndarray, "rows n_layers"]
    draws: Float[np.ndarray, "draws rows n_layers"] | None = None

    @classmethod
    def constant(cls, name: str, values: Float[np.ndarray, " n_layers"], n_subjects: int) -> "Predictor":
        """Return a predictor with the same values for all subjects and no sampling error."""
        return cls(name, np.tile(values, (n_subjects + 1, 1)))

    @classmethod
    def of_subjects(
        cls,
        name: str,
        values: Float[np.ndarray, "n_subjects n_layers"],
        draws: Float[np.ndarray, "draws n_subjects n_layers"] | None = None,
    ) -> "Predictor":
        """Return a predictor from its values by subject; their mean is appended."""
        return cls(name, with_mean(values), None if draws is None else with_mean(draws))

    def tells_apart(self, row: int, layers: Sequence[int]) -> bool:
        """Return whether any two of `layers` have different values."""
        values = self.values[row, list(layers)]
        values = values[~np.isnan(values)]
        return bool((values != values[:1]).any())

    def order(self, row: int) -> list[int]:
        """Return the layers with a value, largest first, ties by depth."""
        values = self.values[row]
        return sorted(np.flatnonzero(~np.isnan(values)).tolist(), key=lambda layer: (-values[layer], layer))


@dataclass(frozen=True, slots=True)
class Gains:
    """Measured gain of each layer, rows as in `Predictor`, and its bootstrap draws over problems.

    Both are NaN for layers that the task vector does not change.
    """

    values: Float[np.ndarray, "rows n_layers"]
    draws: Float[np.ndarray, "draws rows n_layers"]


def predictor_cells(predictors: Sequence[Predictor], subjects: Sequence[str]) -> tuple[PredictorCell, ...]:
    """Return the value of every predictor for every layer with a 95% percentile interval; `subjects` are the names of
    the rows."""
    cells = []
    for predictor in predictors:
        for row, subject in enumerate(subjects):
            for layer, value in enumerate(predictor.values[row].tolist()):
                low = high = None
                if predictor.draws is not None:
                    interval = percentile_interval(predictor.draws[:, row, layer])
                    low, high = finite_or_none(interval.low), finite_or_none(interval.high)
                cells.append(
                    PredictorCell(
                        predictor=predictor.name,
                        subject=subject,
                        layer=layer,
                        value=finite_or_none(value),
                        ci_low=low,
                        ci_high=high,
                    )
                )
    return tuple(cells)


def agreement_row(predictor: Predictor, gains: Gains, row: int, subject: str, *, seed: int) -> AgreementRow:
    """Return Kendall's tau of a predictor with the gains of one row, its joint interval and its permutation p."""
    known = ~np.isnan(predictor.values[row]) & ~np.isnan(gains.values[row])
    n_layers = int(known.sum())
    undefined = AgreementRow(
        predictor=predictor.name,
        subject=subject,
        n_layers=n_layers,
        kendall_tau=None,
        ci_low=None,
        ci_high=None,
        p=None,
        null_low=None,
        null_high=None,
        cannot_be_significant=False,
    )
    if n_layers < MIN_LAYERS:
        return undefined
    values, gain = predictor.values[row, known], gains.values[row, known]
    tested = kendall_test(values, gain, permutations=PERMUTATIONS, seed=[seed, n_layers])
    if np.isnan(tested.tau):
        return undefined
    drawn = values if predictor.draws is None else predictor.draws[:, row, known]
    interval = percentile_interval(kendall_tau(drawn, gains.draws[:, row, known]))
    band = percentile_interval(tested.null)
    return AgreementRow(
        predictor=predictor.name,
        subject=subject,
        n_layers=n_layers,
        kendall_tau=tested.tau,
        ci_low=finite_or_none(interval.low),
        ci_high=finite_or_none(interval.high),
        p=tested.p,
        null_low=band.low,
        null_high=band.high,
        cannot_be_significant=cannot_reach(tested.smallest_p),
    )
