"""Recipes (edits of a model) and predictions about them.

The effective strength of a matrix is ``master_alpha * layers[layer].attention`` (or ``.mlp``): 0 is the base, 1 the
full task vector.
"""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from stethoscope.records.base import MOST, SCHEMA_VERSION, Record, Seed, Site
from stethoscope.records.diagnosis import DiagnoseSpec
from stethoscope.records.references import ModelRef, SaeRef, TaskVectorRef


class LayerAlpha(Record):
    """Strengths of one layer's edit, separately for the attention and the MLP matrices."""

    attention: float = 1.0
    mlp: float = 1.0


class RawEdit(Record):
    """Inject the task vector unchanged."""

    kind: Literal["raw"] = "raw"


class ProjectedEdit(Record):
    """Inject only the component of the task vector in the span of a subject's top latents."""

    kind: Literal["projected"] = "projected"
    diagnosis: DiagnoseSpec
    subject: str
    top_k: int = Field(ge=1, le=MOST)


class NormMatchedEdit(Record):
    """Like `ProjectedEdit`, but rescaled in each layer to the norm of the raw task vector in the projection's
    metric."""

    kind: Literal["projected-norm-matched"] = "projected-norm-matched"
    diagnosis: DiagnoseSpec
    subject: str
    top_k: int = Field(ge=1, le=MOST)


class RandomSubspaceEdit(Record):
    """Inject only the component of the task vector in a random subspace of `rank` dimensions: the control for
    projection.

    With `norm_matched`, the component is rescaled in each layer to the raw norm, as in `NormMatchedEdit`. With `saes`,
    only matrices with a matching SAE are edited, as in a projected edit; without, those matrices that SAEs at `site` in
    every layer would match.
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
            raise ValueError(f"the subspace is at {self.site}, but its SAEs are at {self.saes.site}")
        return self


class ServedEdit(Record):
    """Inject the task vector unchanged, but only into matrices that a projection on `saes` can edit.

    The fair comparison for a projected edit if some layers have no SAE: the same matrices without filtering.
    """

    kind: Literal["raw-where-projected"] = "raw-where-projected"
    saes: SaeRef


EditType = Annotated[
    RawEdit | ProjectedEdit | NormMatchedEdit | RandomSubspaceEdit | ServedEdit, Field(discriminator="kind")
]


class EditRecipe(Record):
    """An edit of a model: the task vector, the layers, their strengths and the edit type.

    `layers` maps a layer to its strengths; a single number applies to attention and MLP. With `norms`, the layer's norm
    weights are edited too (around attention with the attention's strength, around the MLP with the MLP's). With
    `embeddings`, the token embeddings, the tied head and the final norm are edited with the master alpha.
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
        """Return the effective strength of `part` in `layer`: master alpha times the layer's strength, or 0 if the
        layer is not edited."""
        strength = self.layers.get(layer)
        return 0.0 if strength is None else self.master_alpha * getattr(strength, part)


class Prediction(Record):
    """A choice of layers that was frozen before any benchmark, with the scores it is based on.

    Attributes:
        recipe: the predicted edit.
        diagnosis: the diagnosis used to pick the layers.
        subject: the subject whose order was used.
        picked: how the layers were picked: "top", "bottom", "random" or "hand".
        seed: of the random pick.
        scores: the score of each picked layer at that time, in the order of `recipe.layers`; None without an SAE.
    """

    recipe: EditRecipe
    diagnosis: DiagnoseSpec
    subject: str
    picked: Literal["top", "bottom", "random", "hand"]
    seed: Seed | None = None
    scores: tuple[float | None, ...] = ()
