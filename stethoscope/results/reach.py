"""The weights that an edit changes: contents of the task vector, SAEs to project on, and the effective part of a
recipe."""

from typing import Literal

from stethoscope.records import Record


class MovedWeights(Record):
    """The weights of one half of a layer on one side of the residual stream, by their short names.

    `side` is "read" or "write" for matrices (q_proj reads, o_proj writes), "norm" for the norm weights of that half.
    """

    layer: int
    part: Literal["attention", "mlp"]
    side: Literal["read", "write", "norm"]
    names: tuple[str, ...]


class Ground(Record):
    """What edits with one task vector can use.

    Attributes:
        moved: weights of the layers in which tau is nonzero.
        outer: whether the task vector contains a delta of embeddings, final norm or head.
        sae_layers: layers with an SAE for projections.
        not_the_fine_tune: a sentence saying why no edit reproduces the fine-tuned model; None if one does.
    """

    n_layers: int
    moved: tuple[MovedWeights, ...]
    outer: bool
    sae_layers: tuple[int, ...]
    not_the_fine_tune: str | None = None


class Reach(Record):
    """The weights that a recipe changes, and those that it selects but does not change.

    Attributes:
        moves: weights of the layers that the edit changes.
        lacks: selected matrices that the task vector changes but that have no SAE to project on; they keep the base
            weights.
        idle: layers of the recipe in which the task vector changes no selected weight.
        outer: whether embeddings, final norm or head change.
    """

    moves: tuple[MovedWeights, ...]
    lacks: tuple[MovedWeights, ...] = ()
    idle: tuple[int, ...] = ()
    outer: bool = False

    @property
    def nothing(self) -> bool:
        """Whether the edit changes nothing."""
        return not self.moves and not self.outer

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers with changed weights, in order."""
        return tuple(sorted({row.layer for row in self.moves}))
