"""Result of ranking a recipe among random sets of layers."""

from stethoscope.records import RankSpec, Record
from stethoscope.results.base import Result
from stethoscope.results.gain import POOLED


class RankedSet(Record):
    """A random set of layers and its gains by subject ("all": over the problems of all subjects).

    A gain is the mean decrease in NLL per solution token compared with the base, in nats; None if the edit made the
    likelihood non-finite (it counts as worse than any number).

    Attributes:
        norm: Frobenius norm of the unscaled edit. scale: factor of alpha that matches the recipe's norm.
        gains: of the unscaled edit. matched: at the recipe's edit norm.
    """

    layers: tuple[int, ...]
    norm: float
    scale: float
    gains: dict[str, float | None]
    matched: dict[str, float | None]


class RankRow(Record):
    """The recipe's gain on a subject with its paired 95% t interval, and its rank among the sets.

    p = (1 + sets that do as well or better) / (1 + sets), unscaled and at equal edit norm. `cannot_be_significant`: too
    few sets for p < .05; at least 20 are needed.
    """

    subject: str
    n: int
    gain: float
    ci_low: float
    ci_high: float
    as_good: int
    p: float
    as_good_matched: int
    p_matched: float
    cannot_be_significant: bool = False


class RankResult(Result):
    """A recipe and random sets of the same number of layers; rows by subject, the first ("all") over all subjects.

    Attributes:
        layers, norm: the layers that the recipe changes, and its norm.
        movable: the layers that such an edit can change, from which the sets are drawn (empty in runs of older
            versions: all layers).
        n_possible: number of other sets of this size; `sets` contains all of them if there are not more than requested.
        complete: whether all sets were measured.
    """

    spec: RankSpec
    recipe_id: str
    n_layers: int
    layers: tuple[int, ...]
    movable: tuple[int, ...] = ()
    norm: float
    rows: tuple[RankRow, ...]
    sets: tuple[RankedSet, ...]
    n_possible: int
    complete: bool

    @property
    def exhaustive(self) -> bool:
        """Whether the sets are all possible ones rather than a random sample."""
        return len(self.sets) == self.n_possible

    def row(self, subject: str = POOLED) -> RankRow:
        """Return the row of `subject`; by default that of all subjects."""
        return next(row for row in self.rows if row.subject == subject)
