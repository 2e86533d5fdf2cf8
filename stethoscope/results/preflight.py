"""What is known of a task vector before anything is edited with it."""

from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result


class PreflightCheck(Record):
    """One check: its name, how it went, and what was seen; one that did not pass says what to do."""

    name: str
    outcome: Literal["pass", "warn", "fail"]
    what: str
    got: str | None = None
    expected: str | None = None
    next_step: str | None = None


class PreflightRow(Record):
    """How far the task vector moves a part of the model, and what rounding leaves of it; None where undefined.

    Attributes:
        layer: None outside the layers.
        part: a matrix, "matrices" (all edited ones of the layer), "norms", "embeddings", "final norm" or "other".
        parameters: numbers in it.
        moves: whether tau is not 0 everywhere in it.
        relative_norm: ||tau|| / ||theta||.
        cosine_to_base: cosine of theta + tau and theta.
        realised_cosine: cosine of round(theta + tau) - theta and tau, in the model's dtype.
        realised_norm_ratio: the norm of the former over that of the latter.
    """

    layer: int | None
    part: str
    parameters: int
    moves: bool
    relative_norm: float | None
    cosine_to_base: float | None
    realised_cosine: float | None
    realised_norm_ratio: float | None


class PreflightResult(Result):
    """Checks of a task vector against the loaded base; one with a failed check is not `usable`.

    Attributes:
        source: what kind of task vector it is and where it lies.
        dtype: what the base runs in, and tau is rounded to.
        layers: over all edited matrices of each layer.
        matrices: the same, matrix by matrix.
        rest: norms, embeddings and whatever else it moves: edited only when asked for.
    """

    task_vector: str
    source: str
    dtype: str
    usable: bool
    checks: tuple[PreflightCheck, ...]
    layers: tuple[PreflightRow, ...] = ()
    matrices: tuple[PreflightRow, ...] = ()
    rest: tuple[PreflightRow, ...] = ()
