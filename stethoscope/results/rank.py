"""What ranking a recipe among random sets of layers returns."""

from stethoscope.records import RankSpec, Record
from stethoscope.results.base import Result
from stethoscope.results.gain import POOLED


class RankedSet(Record):
    """A random set of layers and its gains by subject ("all": over the subjects' problems).

    A gain is the mean decrease of the NLL per solution token, in nats, against the base; None where the edit broke the
    model so far that it has no likelihood (it counts as worse than any number).

    Attributes:
        norm: Frobenius norm of the whole edit as drawn. scale: what its alpha is multiplied with to match the recipe's.
        gains: as drawn. matched: at the recipe's edit norm.
    """

    layers: tuple[int, ...]
    norm: float
    scale: float
    gains: dict[str, float | None]
    matched: dict[str, float | None]


class RankRow(Record):
    """The recipe's gain on a subject with its paired 95% t interval, and its rank among the sets.

    p = (1 + sets that are as good or better) / (1 + sets), as drawn and matched on edit norm. `cannot_be_significant`
    says that these are too few sets for p < .05: 20 are needed.
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
    """A recipe among random sets of equally many layers; rows by subject, the first ("all") over all of them.

    Attributes:
        layers, norm: the layers that the recipe moves, and its norm.
        movable: the layers that such an edit can move, among which the sets are drawn (runs of older versions: none,
            all layers of the model).
        n_possible: other sets of that size among these; `sets` holds all of them where they are not more than
            asked for.
        complete: all sets are measured.
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
        """True when the sets are not drawn, but all that there are."""
        return len(self.sets) == self.n_possible

    def row(self, subject: str = POOLED) -> RankRow:
        """Return the row of `subject`, by default of all subjects together."""
        return next(row for row in self.rows if row.subject == subject)
