"""What decides a diagnosis and what hangs on it: stability, latents, energy. Layers are counted from 0."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from stethoscope.errors import SaeError
from stethoscope.records.base import MOST, Seed, Spec, Split
from stethoscope.records.references import ModelRef, ProblemsRef, SaeRef, TaskVectorRef

ADD_SAES = (
    "Add [saes] with a location to the profile, or name SAEs on the Setup page. Raw edits, gains, benchmarks and "
    "exports need none."
)
ScoreName = Literal["mean_rate_difference", "specific_share", "activation_mass", "log_ratio"]
SCORE_NAMES: tuple[ScoreName, ...] = get_args(ScoreName)  # in the order in which they are offered


class DiagnoseSpec(Spec):
    """Which layers are specific to which subject: everything that decides the scores.

    Attributes:
        saes: None where only documents and cuts are meant: a table of gains needs no SAEs.
        score: name of the layer score (defined in `sae.scores`).
        top_k: number of latents selected per layer and subject.
        control: control corpus that the domain is compared with.
        documents: documents per subject, and of the control corpus.
        split: split that the documents are drawn from (diagnosis uses train).
        tokens: statistics on the problem's tokens, or on the solution's too.
        live_share: a latent is live when it fires in at least this share of documents.
        dense_rate: a latent whose control firing rate exceeds this is dense and not selected.
        n_splits: seeded halvings for cross-fitting.
        n_bootstrap: document bootstrap draws for the interval of each cell.
        n_permutations: label permutations for the p-value of each cell; 20 are the fewest that allow one below .05.
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
    def listens_with(self) -> SaeRef:
        """The SAEs; raise `SaeError` where there are none."""
        if self.saes is None:
            raise SaeError(
                f"no SAEs are named for {self.model.id}, so nothing can be listened to",
                expected="SAEs that were trained on it",
                next_step=ADD_SAES,
            )
        return self.saes


class StabilitySpec(Spec):
    """Does the order of the layers survive another score, another k, another control corpus?

    Attributes:
        diagnosis: the diagnosis whose order the variants are compared with.
        ks: numbers of selected latents to try.
    """

    diagnosis: DiagnoseSpec
    ks: tuple[int, ...] = (4, 8, 16, 32, 64)


class LatentsSpec(Spec):
    """Every live latent of one layer for one subject: rates, effect, AUROC, Mann-Whitney p and its BH q-value."""

    diagnosis: DiagnoseSpec
    subject: str
    layer: int = Field(ge=0)


class LatentExamplesSpec(Spec):
    """Where one latent fires: the documents with its strongest activations, token by token.

    Attributes:
        n: documents of the subject, and as many of the control corpus.
    """

    diagnosis: DiagnoseSpec
    subject: str
    layer: int = Field(ge=0)
    latent: int = Field(ge=0)
    n: int = Field(default=4, ge=1, le=MOST)


class EnergySpec(Spec):
    """How much of the task vector's energy the span of the top-k latents keeps, for each k.

    Attributes:
        fold_gains: project the matrices with their norms' gains (what the stream sees), or the plain weights.
        draws: sets of random live latents, matched on firing rate, that stand beside the selected ones.
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
