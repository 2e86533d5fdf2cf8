"""Results of a diagnosis: layer specificity, its stability, and latents."""

from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result


class SpecificityCell(Record):
    """Score of one layer for one subject; its numbers are None if no latent of the layer can be selected.

    Attributes:
        score: the layer score, in the units of its formula.
        ci_low: lower end of the document bootstrap's 95% percentile interval.
        ci_high: upper end of the same interval.
        p: one-sided label-permutation p value; at least 1 / (1 + permutations).
        p_adjusted: p value corrected over the subject's layers (step-down max-T with shared permutations); at least
            1 / (1 + permutations).
        specific: whether the layer is shown to be specific: p_adjusted is below .05 and the interval is above the null.
        n_live: number of live latents of the layer.
        n_documents: number of the subject's documents.
        p_top: share of bootstrap draws in which this layer ranks first (tied layers share the draw).
    """

    layer: int
    subject: str
    score: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_adjusted: float | None
    specific: bool | None
    n_live: int
    n_documents: int
    p_top: float | None = None


class SelectedLatent(Record):
    """One selected latent: p_j on the subject, q_j on the control corpus, effect = p_j - q_j."""

    layer: int
    subject: str
    latent: int
    domain_rate: float
    control_rate: float
    effect: float


class DiagnosisResult(Result):
    """Layer specificity by subject; `order` lists the layers with a score for each subject, best first.

    `source` says which part of the score's formula is published and which is our own.
    """

    score: str
    formula: str
    source: str = ""
    subjects: tuple[str, ...]
    control: str
    n_layers: int
    site: str
    top_k: int
    null: float
    cells: tuple[SpecificityCell, ...]
    order: dict[str, tuple[int, ...]]
    latents: tuple[SelectedLatent, ...]


class StabilityRow(Record):
    """One variant of a subject's diagnosis: the layers with a score, best first, and Kendall's tau with the
    reference."""

    subject: str
    kind: Literal["score", "k", "control"]
    variant: str
    kendall_tau: float | None
    order: tuple[int, ...]
    scores: tuple[float | None, ...]


class StabilityResult(Result):
    """Stability of each subject's layer order under other scores, k and control corpora.

    The `scores` of a row are in the order of `layers`, the layers with an SAE. The rows include the reference variant
    of each kind, with tau 1.
    """

    score: str
    top_k: int
    control: str
    n_layers: int
    layers: tuple[int, ...]
    rows: tuple[StabilityRow, ...]


class LatentRow(Record):
    """One live latent: p_j on the subject, q_j on the control corpus, and how well its rate separates the documents.

    `auroc` is that of its firing rate, subject against control; `p` the tie-corrected two-sided Mann-Whitney p;
    `q_value` Benjamini-Hochberg over the layer's live latents. `mass` is its mean activation per token times the norm
    of its decoder row, averaged over the subject's documents. `dense` latents are not selected.
    """

    latent: int
    domain_rate: float
    control_rate: float
    effect: float
    auroc: float
    p: float
    q_value: float
    mass: float
    dense: bool
    selected: bool


class LatentsResult(Result):
    """The live latents of one layer for one subject, largest effect first.

    `link` is a URL template with `{latent}`, if the SAE's registry has a page for each latent.
    """

    layer: int
    subject: str
    control: str
    site: str
    n_documents: int
    d_sae: int
    n_dead: int
    fdr: float
    link: str | None
    rows: tuple[LatentRow, ...]


class LatentExample(Record):
    """One document: its tokens (as text, special characters kept) and the latent's activation at each."""

    corpus: str
    tokens: tuple[str, ...]
    activations: tuple[float, ...]


class LatentExamplesResult(Result):
    """The documents of the subject and of the control corpus on which a latent fires most strongly."""

    layer: int
    latent: int
    subject: str
    control: str
    examples: tuple[LatentExample, ...]
