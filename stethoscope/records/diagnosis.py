"""Specs of a diagnosis and of the use cases based on it: stability, latents, energy. Layers are counted from 0."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from stethoscope.errors import SaeError
from stethoscope.records.base import MOST, Record, Seed, Spec, Split
from stethoscope.records.references import ModelRef, ProblemsRef, SaeRef, TaskVectorRef

ADD_SAES = (
    "Add [saes] with a location to the profile, or enter SAEs on the Setup page. Raw edits, layer gains, "
    "benchmarks and exports need no SAEs."
)
ScoreName = Literal["mean_rate_difference", "specific_share", "activation_mass", "log_ratio"]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)  # in the order in which they are offered


class Cuts(Record):
    """Which latents count, and how the documents are split for cross-fitting; see `DiagnoseSpec` for each field."""

    live_share: float = Field(default=0.01, ge=0, le=1)
    dense_rate: float = Field(default=0.10, ge=0, le=1)
    n_splits: int = Field(default=8, ge=1, le=MOST)
    seed: Seed = 0


DEFAULT_CUTS = Cuts()


class DiagnoseSpec(Spec):
    """A diagnosis: which layers are specific to which subject. Contains everything that determines the scores.

    Attributes:
        saes: None for use cases that need only documents and thresholds, such as layer gains.
        score: name of the layer score (defined in `sae.scores`).
        top_k: number of latents selected per layer and subject.
        control: control corpus that the subjects are compared with.
        documents: documents per subject, and of the control corpus.
        split: split that the documents are drawn from (diagnosis uses train).
        tokens: use the tokens of the problem only, or of problem and solution.
        live_share: a latent is live if it fires in at least this share of documents.
        dense_rate: a latent with a higher firing rate on the control corpus is dense and is not selected.
        n_splits: seeded random halves for cross-fitting.
        n_bootstrap: document bootstrap draws for the interval of each cell.
        n_permutations: label permutations for the p value of each cell; at least 20 are needed for p < .05.
    """

    model: ModelRef
    saes: SaeRef | None
    problems: ProblemsRef
    control: str
    score: ScoreName = "mean_rate_difference"
    top_k: int = Field(default=16, ge=1, le=MOST)
    documents: int = Field(default=128, ge=20, le=MOST)
    split: Split = "train"
    tokens: Literal["prompt", "all"] = "prompt"
    live_share: float = Field(default=0.01, ge=0, le=1)
    dense_rate: float = Field(default=0.10, ge=0, le=1)
    n_splits: int = Field(default=8, ge=1, le=MOST)
    n_bootstrap: int = Field(default=200, ge=20, le=MOST)
    n_permutations: int = Field(default=299, ge=20, le=MOST)
    seed: Seed = 0

    @property
    def cuts(self) -> Cuts:
        """The thresholds and splits of this diagnosis."""
        return Cuts(live_share=self.live_share, dense_rate=self.dense_rate, n_splits=self.n_splits, seed=self.seed)

    @property
    def listens_with(self) -> SaeRef:
        """The SAEs; raises `SaeError` if there are none."""
        if self.saes is None:
            raise SaeError(
                f"no SAEs are set for {self.model.id}",
                expected="SAEs trained on this model",
                next_step=ADD_SAES,
            )
        return self.saes


class StabilitySpec(Spec):
    """Stability of the layer order under other scores, other k and other control corpora.

    Attributes:
        diagnosis: the diagnosis whose order the variants are compared with.
        ks: numbers of selected latents to try.
    """

    diagnosis: DiagnoseSpec
    ks: tuple[int, ...] = (4, 8, 16, 32, 64)


class LatentsSpec(Spec):
    """All live latents of one layer for one subject: rates, effect, AUROC, Mann-Whitney p and Benjamini-Hochberg q
    value."""

    diagnosis: DiagnoseSpec
    subject: str
    layer: int = Field(ge=0)


class LatentExamplesSpec(Spec):
    """Examples of one latent: the documents with its strongest activations, token by token.

    Attributes:
        n: number of documents of the subject, and of the control corpus.
    """

    diagnosis: DiagnoseSpec
    subject: str
    layer: int = Field(ge=0)
    latent: int = Field(ge=0)
    n: int = Field(default=4, ge=1, le=MOST)


class EnergySpec(Spec):
    """Share of the task vector's energy that the span of the top-k latents keeps, for each k.

    Attributes:
        fold_gains: scale the matrices by the adjacent norm weights before projecting; False projects the raw weights.
        draws: number of random sets of live latents, matched on firing rate, to compare with the selected ones.
    """

    diagnosis: DiagnoseSpec
    task_vector: TaskVectorRef
    subject: str
    k: tuple[int, ...] = (4, 8, 16, 32, 64)
    fold_gains: bool = True
    draws: int = Field(default=5, ge=1, le=MOST)

    @model_validator(mode="after")
    def _check_k(self) -> "EnergySpec":
        if not self.k or any(k < 1 for k in self.k) or list(self.k) != sorted(set(self.k)):
            raise ValueError("k must be increasing positive integers")
        return self
