"""Are these layers better than others? A recipe's rank among random sets of equally many layers."""

from pydantic import Field

from stethoscope.records.base import MOST, Seed, Spec, Split
from stethoscope.records.recipe import EditRecipe
from stethoscope.records.references import ProblemsRef


class RankSpec(Spec):
    """The probe of a recipe and of random sets of layers: as drawn, and rescaled to the recipe's edit norm.

    Attributes:
        recipe: the edit whose layers are ranked; task vector, filter and mean strength are those of every set.
        split: split that the problems are drawn from.
        n: problems per subject.
        n_sets: random sets, all different and none the recipe's own; every set where there are not more.
        seed: of the problems and of the sets.
    """

    recipe: EditRecipe
    problems: ProblemsRef
    split: Split = "dev"
    n: int = Field(default=16, ge=2, le=MOST)
    n_sets: int = Field(default=99, ge=1, le=MOST)
    seed: Seed = 0
