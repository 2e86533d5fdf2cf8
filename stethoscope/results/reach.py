"""Which weights an edit moves: what a task vector holds, what there is to project on, and what is left of a recipe."""

from typing import Literal

from stethoscope.records import Record


class MovedWeights(Record):
    """The weights of one half of a layer that stand on one side of the residual stream, by their short names.

    `side` is "read" or "write" for matrices (q_proj reads, o_proj writes), "norm" for the norm weights of that half.
    """

    layer: int
    part: Literal["attention", "mlp"]
    side: Literal["read", "write", "norm"]
    names: tuple[str, ...]


class Ground(Record):
    """What an edit with one task vector has to stand on.

    Attributes:
        moved: weights of the layers in which tau is not 0 everywhere.
        outer: the task vector holds a delta of embeddings, final norm or head.
        sae_layers: layers with an SAE of the bank that a projection takes its latents from.
        not_the_fine_tune: why no edit makes the base into the fine-tuned model, in a sentence; None: one does.
    """

    n_layers: int
    moved: tuple[MovedWeights, ...]
    outer: bool
    sae_layers: tuple[int, ...]
    not_the_fine_tune: str | None = None


class Reach(Record):
    """What a recipe changes, and what it names without changing it.

    Attributes:
        moves: weights of the layers that the edit changes.
        lacks: matrices that the task vector moves and the recipe strengthens, with no SAE to be projected on: they stay
            the base's.
        idle: layers of the recipe in which the task vector moves nothing that the recipe strengthens.
        outer: embeddings, final norm or head change.
    """

    moves: tuple[MovedWeights, ...]
    lacks: tuple[MovedWeights, ...] = ()
    idle: tuple[int, ...] = ()
    outer: bool = False

    @property
    def nothing(self) -> bool:
        """True when the edit is the base itself."""
        return not self.moves and not self.outer

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers in which a weight changes, in order."""
        return tuple(sorted({row.layer for row in self.moves}))
