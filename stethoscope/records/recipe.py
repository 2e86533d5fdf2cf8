"""An edit of a model, and a claim about one.

The effective strength of a matrix is ``master_alpha * layers[layer].attention`` (or ``.mlp``): 0 is the base, 1 the
full task vector.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stethoscope.records.base import MOST, SCHEMA_VERSION, Record, Seed, Site
from stethoscope.records.diagnosis import DiagnoseSpec
from stethoscope.records.references import ModelRef, SaeRef, TaskVectorRef


class LayerAlpha(Record):
    """Strength of one layer's edit, for the attention and the MLP matrices apart."""

    attention: float = 1.0
    mlp: float = 1.0


class RawEdit(Record):
    """Inject the task vector as it is."""

    kind: Literal["raw"] = "raw"


class ProjectedEdit(Record):
    """Inject only the part of the task vector in the span of a subject's top latents (the scalpel)."""

    kind: Literal["projected"] = "projected"
    diagnosis: DiagnoseSpec
    subject: str
    top_k: int = Field(ge=1, le=MOST)


class NormMatchedEdit(Record):
    """As `ProjectedEdit`, scaled per layer back to the norm of the raw task vector in the projection's metric."""

    kind: Literal["projected-norm-matched"] = "projected-norm-matched"
    diagnosis: DiagnoseSpec
    subject: str
    top_k: int = Field(ge=1, le=MOST)


class RandomSubspaceEdit(Record):
    """Inject only the part of the task vector in a random subspace of `rank` dimensions: the null of the scalpel.

    With `norm_matched` the part is scaled per layer back to the raw norm, as in `NormMatchedEdit`. With `saes` it moves
    the matrices that they serve, as a projected edit does; without, those that SAEs at `site` in every layer would.
    """

    kind: Literal["random-subspace"] = "random-subspace"
    rank: int = Field(ge=1, le=MOST)
    site: Site = "resid_post"
    saes: SaeRef | None = None
    seed: Seed = 0
    norm_matched: bool = False

    @model_validator(mode="after")
    def _same_site(self) -> "RandomSubspaceEdit":
        if self.saes is not None and self.saes.site != self.site:
            raise ValueError(f"the subspace is at {self.site}, its SAEs at {self.saes.site}")
        return self


class ServedEdit(Record):
    """Inject the task vector as it is, but only into the matrices that `saes` serve: those that a projection can move.

    The fair comparison for a projected edit where not every layer has an SAE: the same matrices, nothing filtered.
    """

    kind: Literal["raw-where-projected"] = "raw-where-projected"
    saes: SaeRef


EditType = Annotated[
    RawEdit | ProjectedEdit | NormMatchedEdit | RandomSubspaceEdit | ServedEdit, Field(discriminator="kind")
]


class EditRecipe(Record):
    """An edit of a model: which task vector, in which layers, how strongly, and filtered how.

    `layers` maps a layer to its strengths; a bare number sets attention and MLP alike. With `norms` the layer's norm
    weights move too (those around attention with the attention's strength, those around the MLP with the MLP's); with
    `embeddings` the token embeddings (and the tied head) and the final norm move with the master alpha.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelRef
    task_vector: TaskVectorRef
    layers: dict[int, LayerAlpha]
    master_alpha: float = 1.0
    edit_type: EditType = RawEdit()
    norms: bool = False
    embeddings: bool = False

    @field_validator("layers", mode="before")
    @classmethod
    def _accept_numbers(cls, layers: object) -> object:
        if not isinstance(layers, dict):
            return layers
        return {
            layer: {"attention": alpha, "mlp": alpha} if isinstance(alpha, int | float) else alpha
            for layer, alpha in layers.items()
        }

    @field_validator("layers")
    @classmethod
    def _sort_layers(cls, layers: dict[int, LayerAlpha]) -> dict[int, LayerAlpha]:
        if any(layer < 0 for layer in layers):
            raise ValueError("layers are counted from 0")
        return dict(sorted(layers.items()))

    def alpha(self, layer: int, part: Literal["attention", "mlp"]) -> float:
        """Return the effective strength of `part` in `layer`: master alpha times the layer's own, 0 where not named."""
        strength = self.layers.get(layer)
        return 0.0 if strength is None else self.master_alpha * getattr(strength, part)


class Prediction(Record):
    """A pick of layers frozen before any benchmark: what is claimed, and the score that made it.

    Attributes:
        recipe: the edit that the claim is about.
        diagnosis: the diagnosis that the layers were picked on.
        subject: the subject whose order was used.
        picked: how: "top", "bottom", "random" or "hand".
        seed: of the random pick.
        scores: the score of each picked layer as it stood, in the order of `recipe.layers`; None without an SAE.
    """

    recipe: EditRecipe
    diagnosis: DiagnoseSpec
    subject: str
    picked: Literal["top", "bottom", "random", "hand"]
    seed: Seed | None = None
    scores: tuple[float | None, ...] = ()
