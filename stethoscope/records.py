"""What a user types or a store keeps: references, recipes and specs, all frozen, typed and hashed whole.

A *spec* is everything that decides a result. Pages and the command line build the same spec and hand it to the
same `pipeline.run`, so a result can be found again by the content id of its spec. Layers are counted from 0,
fractions stay in [0, 1], and the effective strength of a matrix is ``master_alpha * layers[layer].attention``
(or ``.mlp``): 0 is the base, 1 the full task vector.
"""

import math
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

SCHEMA_VERSION = 1

Dtype = Literal["float32", "bfloat16", "float16"]
Site = Literal["resid_post", "mlp_out", "attn_out"]
Split = Literal["train", "dev", "test"]


class Record(BaseModel):
    """Base of every persisted record: frozen, no unknown fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ModelRef(Record):
    """A base model: `embedded:NAME`, a local folder or a hub id, with its revision and the dtype it runs in."""

    id: str
    revision: str | None = None
    dtype: Dtype = "float32"


class SaeRef(Record):
    """One SAE a layer: the folder (or release) that holds `layer_{l}` and the site that they read."""

    location: str
    site: Site = "resid_post"


class TaskVectorRef(Record):
    """A task vector as two checkpoints: tau = fine-tuned - base (the base is the recipe's model)."""

    name: str
    tuned: str
    revision: str | None = None


class ProblemsRef(Record):
    """Problems and control texts as JSONL folders with train, dev and test splits, and the shots of the prompt.

    Attributes:
        problems: folder of {train,dev,test}.jsonl in MATH's format plus `subject`.
        controls: folder of the same files whose `subject` names the control corpus.
        shots: JSON file with the few-shot examples.
        subjects: subjects in display order.
        control_names: control corpora in display order; the first is the default.
    """

    problems: str
    controls: str
    shots: str
    subjects: tuple[str, ...]
    control_names: tuple[str, ...]


class LayerAlpha(Record):
    """Strength of one layer's edit, for the attention and the MLP matrices apart."""

    attention: float = 1.0
    mlp: float = 1.0


class DiagnoseSpec(Record):
    """Which layers are specific to which subject: everything that decides the scores.

    Attributes:
        score: name of the layer score (see `sae.specificity.SCORES`).
        top_k: number of latents selected per layer and subject.
        control: control corpus that the domain is compared with.
        documents: documents per subject, and of the control corpus.
        split: split that the documents are drawn from (diagnosis uses train).
        tokens: statistics on the problem's tokens, or on the solution's too.
        live_share: a latent is live when it fires in at least this share of documents.
        dense_rate: a latent whose control firing rate exceeds this is dense and not selected.
        n_splits: seeded halvings for cross-fitting.
        n_bootstrap: document bootstrap draws for the interval of each cell.
        n_permutations: label permutations for the p-value of each cell.
    """

    model: ModelRef
    saes: SaeRef
    problems: ProblemsRef
    control: str
    score: str = "mean_rate_difference"
    top_k: int = Field(default=16, ge=1)
    documents: int = Field(default=128, ge=20)
    split: Split = "train"
    tokens: Literal["prompt", "all"] = "prompt"
    live_share: float = Field(default=0.01, ge=0, le=1)
    dense_rate: float = Field(default=0.10, ge=0, le=1)
    n_splits: int = Field(default=8, ge=1)
    n_bootstrap: int = Field(default=200, ge=20)
    n_permutations: int = Field(default=299, ge=19)
    seed: int = 0


class RawArm(Record):
    """Inject the task vector as it is."""

    kind: Literal["raw"] = "raw"


class ProjectedArm(Record):
    """Inject only the part of the task vector in the span of a subject's top latents (the scalpel)."""

    kind: Literal["projected"] = "projected"
    diagnosis: DiagnoseSpec
    subject: str
    top_k: int = Field(ge=1)


class NormMatchedArm(Record):
    """As `ProjectedArm`, scaled per layer back to the norm of the raw task vector in the projection's metric."""

    kind: Literal["projected-norm-matched"] = "projected-norm-matched"
    diagnosis: DiagnoseSpec
    subject: str
    top_k: int = Field(ge=1)


Arm = Annotated[RawArm | ProjectedArm | NormMatchedArm, Field(discriminator="kind")]


class EditRecipe(Record):
    """An edit of a model: which task vector, in which layers, how strongly, and filtered how.

    `layers` maps a layer to its strengths; a bare number sets attention and MLP alike.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    model: ModelRef
    task_vector: TaskVectorRef
    layers: dict[int, LayerAlpha]
    master_alpha: float = 1.0
    arm: Arm = RawArm()

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


class EnergySpec(Record):
    """How much of the task vector's energy the span of the top-k latents keeps, for each k."""

    diagnosis: DiagnoseSpec
    task_vector: TaskVectorRef
    subject: str
    k: tuple[int, ...] = (4, 8, 16, 32, 64)

    @model_validator(mode="after")
    def _check_k(self) -> "EnergySpec":
        if not self.k or any(k < 1 for k in self.k) or list(self.k) != sorted(set(self.k)):
            raise ValueError("k must be increasing positive integers")
        return self


class ProbeSpec(Record):
    """Teacher-forced NLL of gold solutions, edited minus base, on a fixed seeded set of problems and controls."""

    recipe: EditRecipe
    problems: ProblemsRef
    split: Split = "dev"
    n: int = Field(default=16, ge=2)
    seed: int = 0


class CompareTextSpec(Record):
    """Greedy text of the base and of the edited model for the same prompts.

    Attributes:
        prompts: the texts as typed; with `framed` each is a problem put behind the shots.
    """

    recipe: EditRecipe
    prompts: tuple[str, ...]
    problems: ProblemsRef
    framed: bool = True
    max_new_tokens: int = Field(default=128, ge=1)


class BenchArm(Record):
    """One arm of a benchmark: a name and its recipe (None is the base)."""

    name: str
    recipe: EditRecipe | None = None


class BenchSpec(Record):
    """A paired comparison of arms on the same seeded problems; the first arm is the reference.

    Attributes:
        n: problems per subject; a larger n with the same seed contains the smaller sample.
        margin: non-inferiority margin, as a fraction.
    """

    model: ModelRef
    problems: ProblemsRef
    arms: tuple[BenchArm, ...]
    subjects: tuple[str, ...]
    n: int = Field(default=50, ge=1)
    split: Split = "test"
    max_new_tokens: int = Field(default=128, ge=1)
    batch_size: int = Field(default=32, ge=1)
    margin: float = Field(default=0.03, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _check_arms(self) -> "BenchSpec":
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) != len(names):
            raise ValueError("arms need at least one entry and distinct names")
        return self


class ExportSpec(Record):
    """Write the edited model as a plain checkpoint folder."""

    recipe: EditRecipe
    out: str


class InfoSpec(Record):
    """What a profile holds: sizes, SAEs and the relative norm of each task vector by layer."""

    model: ModelRef
    saes: SaeRef
    task_vectors: tuple[TaskVectorRef, ...]


Spec = InfoSpec | DiagnoseSpec | EnergySpec | ProbeSpec | CompareTextSpec | BenchSpec | ExportSpec


class GradeStatus(StrEnum):
    """Outcome of grading one answer. Only `correct` counts as correct; the others are shown apart."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    NO_ANSWER = "no_answer"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"


class Grade(Record):
    """The two verdicts on one answer, and what was read out of it.

    Attributes:
        exact_match: lm-eval's minerva score, on text behind the marker sentence only.
        math_verify: the second, more lenient score.
        marked: the marker sentence appears.
        answer: the extracted and normalised answer, empty where there is none.
    """

    exact_match: GradeStatus
    math_verify: GradeStatus
    marked: bool
    answer: str = ""


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None where it is NaN or infinite (JSON has no such numbers)."""
    return value if math.isfinite(value) else None
