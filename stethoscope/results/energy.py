"""How much of a task vector the span of some latents keeps."""

from stethoscope.records import Record


class EnergyCell(Record):
    """Energy of the task vector kept by the span of k latents, in one matrix or (matrix "all") stacked over a layer.

    retention in [0, 1]; the null is a random subspace of the same rank; enrichment = retention / (rank / d);
    ceiling = the best that any subspace of this rank keeps. `approximate` marks readers whose SAE sits before
    another write to the residual stream.
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


class EnergyResult(Record):
    """Energy retention per matrix (`cells`) and per layer, stacked along the residual axis (`layers`)."""

    task_vector: str
    subject: str
    control: str
    site: str
    n_layers: int
    d_model: int
    k: tuple[int, ...]
    cells: tuple[EnergyCell, ...]
    layers: tuple[EnergyCell, ...]
