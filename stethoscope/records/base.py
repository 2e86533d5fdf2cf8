"""Base classes of all records: frozen, typed, without unknown fields or NaN, hashable by content. Fractions are in [0,
1]."""

import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

Dtype = Literal["float32", "bfloat16", "float16"]
Site = Literal["resid_post", "mlp_out", "attn_out"]
Split = Literal["train", "dev", "test"]
MOST = 1_000_000  # of anything that is counted: problems, documents, draws, tokens
Seed = Annotated[int, Field(ge=0, lt=2**32)]
SampleSize = Literal["all"] | Annotated[int, Field(ge=1, le=MOST)]  # problems per subject


class Record(BaseModel):
    """Base class of all persisted records: frozen, without unknown fields, NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Spec(Record):
    """Base class of all job requests: one class per use case (see `use_cases`). A spec determines its result."""


def sample_size(n: SampleSize, available: int) -> int:
    """Return how many of a subject's `available` problems are used: n, or all of them if there are fewer."""
    return available if n == "all" else min(n, available)


def finite_or_none(value: float) -> float | None:
    """Return `value`, or None if it is NaN or infinite (JSON has no such numbers)."""
    return value if math.isfinite(value) else None


def nested_records(value: object) -> Iterator[Record]:
    """Yield every record in `value`, including itself, recursing into fields, tuples, lists and dicts."""
    match value:
        case Record():
            yield value
            for name in type(value).model_fields:
                yield from nested_records(getattr(value, name))
        case dict():
            for item in value.values():
                yield from nested_records(item)
        case tuple() | list():
            for item in value:
                yield from nested_records(item)
        case _:
            pass
