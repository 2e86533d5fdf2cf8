"""How much of a task vector the span of some latents keeps."""

from stethoscope.records import Record
from stethoscope.results.base import Result


class EnergyCell(Record):
    """Energy of the task vector kept by the span of k latents, in one matrix or (matrix "all") stacked over a layer.

    Shares are in [0, 1]; None where a figure is not defined (no latents, a matrix that the fine-tune left alone).

    Attributes:
        k: latents asked for. `n_latents` of them are there, `n_dropped` of these depend on earlier ones and span
            nothing new, the others span `rank` of `d` dimensions (of several SAEs: their energy-weighted mean).
        retention: share of the energy inside the span.
        null_mean: what a random subspace of this rank keeps on average, rank / d; `null_sd` its standard deviation.
        enrichment: retention / null_mean, 1 by chance.
        z: (retention - null_mean) / null_sd.
        percentile: share of random subspaces of this rank that keep less.
        ceiling: what the best subspace of this rank keeps (Eckart-Young).
        components, control, encoder, random_mean, random_low, random_high: retention of other spans of this rank:
            principal components of the stream, the control corpus' latents, the encoder's directions of the selected
            latents where the matrix reads (the decoder's elsewhere), random live latents (over draws).
        principal_cos2: mean squared cosine of the angles between the span and the top `n_directions` singular
            directions of the matrix; `principal_null` is its mean for a random subspace, max(rank, n_directions) / d.
        functional_energy: mean ||tau x||^2 over the subject's tokens x, for a single matrix; `functional_share` is what
            the projected edit keeps of it (it may exceed 1 where gains are folded in), for a layer weighted by energy.
        radial_share: share of the energy along the weights, which a following norm cancels.
        realised_cosine: cosine of round(theta + tau) - theta, in the model's dtype, with tau; `realised_norm_ratio`
            the ratio of their norms.
        approximate: a reader whose SAE sits before another write to the residual stream.
    """

    layer: int
    matrix: str
    subject: str
    k: int
    rank: int
    d: int
    retention: float | None
    null_mean: float | None
    null_sd: float | None
    enrichment: float | None
    z: float | None
    ceiling: float | None
    approximate: bool = False
    percentile: float | None = None
    n_latents: int | None = None
    n_dropped: int | None = None
    components: float | None = None
    control: float | None = None
    encoder: float | None = None
    random_mean: float | None = None
    random_low: float | None = None
    random_high: float | None = None
    principal_cos2: float | None = None
    principal_null: float | None = None
    n_directions: int | None = None
    functional_energy: float | None = None
    functional_share: float | None = None
    radial_share: float | None = None
    realised_cosine: float | None = None
    realised_norm_ratio: float | None = None


class EnergyResult(Result):
    """Energy retention per matrix (`cells`) and per layer, stacked along the residual axis (`layers`).

    Attributes:
        fold_gains: whether the norms' gains stand in the matrices that are projected.
        draws: sets of random live latents that `random_mean` and its range come from.
        n_tokens: tokens of the subject that the functional energy and the principal components were taken on.
    """

    task_vector: str
    subject: str
    control: str
    site: str
    n_layers: int
    d_model: int
    k: tuple[int, ...]
    cells: tuple[EnergyCell, ...]
    layers: tuple[EnergyCell, ...]
    fold_gains: bool = True
    draws: int = 0
    n_tokens: int = 0
