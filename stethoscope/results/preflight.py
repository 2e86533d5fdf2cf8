"""Result of the preflight checks of a task vector."""

from typing import Literal

from stethoscope.records import Record
from stethoscope.results.base import Result


class PreflightCheck(Record):
    """One check: its name, outcome and finding; a check that did not pass says what to do."""

    name: str
    outcome: Literal["pass", "warn", "fail"]
    what: str
    got: str | None = None
    expected: str | None = None
    next_step: str | None = None


class PreflightRow(Record):
    """How much the task vector changes a part of the model, and how much survives rounding; None if undefined.

    Attributes:
        layer: None outside the layers.
        part: a matrix, "matrices" (all edited ones of the layer), "norms", "embeddings", "final norm" or "other".
        parameters: number of parameters.
        moves: whether tau is nonzero anywhere in it.
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
    """Checks of a task vector against the loaded base; it is `usable` if no check failed.

    Attributes:
        source: kind and location of the task vector.
        dtype: dtype of the base, to which tau is rounded.
        layers: rows over all edited matrices of each layer.
        matrices: rows for each matrix.
        rest: rows for norms, embeddings and other changed weights, which are edited only on request.
    """

    task_vector: str
    source: str
    dtype: str
    usable: bool
    checks: tuple[PreflightCheck, ...]
    layers: tuple[PreflightRow, ...] = ()
    matrices: tuple[PreflightRow, ...] = ()
    rest: tuple[PreflightRow, ...] = ()
