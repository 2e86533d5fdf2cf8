"""Spec of a recipe's rank among random sets of the same number of layers."""

from pydantic import Field

from stethoscope.records.base import MOST, Seed, Spec, Split
from stethoscope.records.recipe import EditRecipe
from stethoscope.records.references import ProblemsRef


class RankSpec(Spec):
    """Likelihood checks of a recipe and of random sets of layers, unscaled and rescaled to the recipe's edit norm.

    Attributes:
        recipe: the edit whose layers are ranked; all sets use its task vector, edit type and mean strength.
        split: split that the problems are drawn from.
        n: problems per subject.
        n_sets: number of different random sets, without the recipe's own; all sets if there are not more.
        seed: of the problems and of the sets.
    """

    recipe: EditRecipe
    problems: ProblemsRef
    split: Split = "dev"
    n: int = Field(default=16, ge=2, le=MOST)
    n_sets: int = Field(default=99, ge=1, le=MOST)
    seed: Seed = 0
