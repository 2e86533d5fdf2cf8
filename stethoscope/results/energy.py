"""Result of the energy analysis: the share of a task vector that the span of latents keeps."""

from stethoscope.records import Record
from stethoscope.results.base import Result


class EnergyCell(Record):
    """Energy of the task vector kept by the span of k latents, in one matrix or (matrix "all") stacked over a layer.

    Shares are in [0, 1]; None if undefined (no latents, or a matrix that the fine-tune does not change).

    Attributes:
        k: requested number of latents. `n_latents` are available; `n_dropped` of these are linearly dependent on
            earlier ones, and the others span `rank` of `d` dimensions (for several SAEs: the energy-weighted mean).
        retention: share of the energy inside the span.
        null_mean: mean share that a random subspace of this rank keeps, rank / d; `null_sd` is the standard deviation.
        enrichment: retention / null_mean, 1 by chance.
        z: (retention - null_mean) / null_sd.
        percentile: share of random subspaces of this rank that keep less.
        ceiling: share that the best subspace of this rank keeps (Eckart-Young).
        components, control, encoder, random_mean, random_low, random_high: retention of other spans of this rank:
            principal components of the stream, the control corpus' latents, the encoder's directions of the selected
            latents where the matrix reads (the decoder's elsewhere), random live latents (over draws).
        principal_cos2: mean squared cosine of the angles between the span and the top `n_directions` singular
            directions of the matrix; `principal_null` is its mean for a random subspace, max(rank, n_directions) / d.
        functional_energy: mean ||tau x||^2 over the subject's tokens x, for a single matrix; `functional_share` is the
            share that the projected edit keeps (above 1 is possible with folded norm weights); for a layer, weighted by
            energy.
        radial_share: share of the energy along the weights, which a subsequent norm removes.
        realised_cosine: cosine of round(theta + tau) - theta, in the model's dtype, with tau; `realised_norm_ratio`
            the ratio of their norms.
        approximate: whether another write to the residual stream lies between the SAE and this matrix.
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
        fold_gains: whether the projected matrices are scaled by the norm weights.
        draws: number of random sets of live latents behind `random_mean` and its range.
        n_tokens: number of the subject's tokens used for functional energy and principal components.
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
