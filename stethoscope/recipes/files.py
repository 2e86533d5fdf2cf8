"""Read recipes from files, links and layer lists such as `3,5=0.5`, and list differences between records."""

import base64
import zlib
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from stethoscope.errors import ProfileError, RecipeError, one_line
from stethoscope.files import read_bytes
from stethoscope.locations import path_of
from stethoscope.records import EditRecipe, LayerAlpha, Record, SetupChange

LINK_PREFIX = "z."
MAX_LINK_BYTES = 1_000_000


def read_recipe(path: str) -> EditRecipe:
    """Return the recipe in the JSON file at `path`.

    Raises:
        RecipeError: not a regular file, or not a recipe. LocationError: not a path (see `locations.path_of`).
    """
    try:
        content = read_bytes(path_of(path))
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}", got=error.strerror, next_step="Check the path.") from error
    return parse_recipe(content, source=path)


def parse_recipe(content: bytes, *, source: str) -> EditRecipe:
    """Return the recipe in JSON `content`; `source` is its file name for error messages."""
    try:
        return EditRecipe.model_validate_json(content)
    except ValidationError as error:
        raise RecipeError(
            f"{source} is not a valid recipe",
            got=first_problem(error),
            next_step="Create one with `python -m stethoscope recipe`, or save it from the Edit page.",
        ) from error


def first_problem(error: ValidationError) -> str:
    """Return the first validation error as one line with its field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    got = "" if first["type"] == "missing" else f", got {first['input']!r:.80}"
    return one_line(f"{first['msg']}{' at ' + field if field else ''}{got}")


def parse_layers(text: str, n_layers: int) -> dict[int, LayerAlpha]:
    """Return layer strengths from `3,5=0.5`, `2-4=0.8` or `all`; raise `RecipeError` for anything else."""
    strengths: dict[int, LayerAlpha] = {}
    for part in text.replace("all", f"0-{n_layers - 1}").split(","):
        span, _, number = part.strip().partition("=")
        first, _, last = span.partition("-")
        try:
            alpha = float(number) if number else 1.0
            layers = range(int(first), int(last or first) + 1)
            chosen = LayerAlpha(attention=alpha, mlp=alpha)
        except ValueError as error:
            raise RecipeError(
                "cannot read --layers",
                got=repr(part),
                expected="for example 3,5=0.5, 2-4 or all",
                next_step="Correct this part.",
            ) from error
        if not layers or layers[-1] >= n_layers:
            raise RecipeError(
                "layer out of range",
                got=span,
                expected=f"0 to {n_layers - 1}",
                next_step="Remove these layers from --layers.",
            )
        strengths |= dict.fromkeys(layers, chosen)
    return strengths


def size_in_bytes(text: str) -> int:
    """Return the bytes of a size such as `5GB`, `500MB` or `40KB`; raise `ValueError` for anything else."""
    number, unit = text[:-2], text[-2:].upper()
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9}
    if unit not in units or not number.isdecimal() or int(number) == 0:
        raise ValueError(f"{text} is not a size such as 5GB")
    return int(number) * units[unit]


def shown_layers(layers: Iterable[int]) -> str:
    """Return layers as text, such as `0-3, 7`, which `parse_layers` accepts."""
    spans: list[list[int]] = []
    for layer in sorted(set(layers)):
        if spans and layer == spans[-1][-1] + 1:
            spans[-1].append(layer)
        else:
            spans.append([layer])
    return ", ".join(", ".join(map(str, span)) if len(span) < 3 else f"{span[0]}-{span[-1]}" for span in spans)


def layers_text(layers: Iterable[int]) -> str:
    """Return layers with a label: `layer 3`, `layers 0-3, 7`."""
    shown = shown_layers(layers)
    return f"layer {shown}" if shown.isdecimal() else f"layers {shown}"


def to_link(record: Record) -> str:
    """Return the record as text for a URL: "z." and the URL-safe base64 of its compressed JSON.

    The link contains the record itself, so it works without a store.
    """
    packed = zlib.compress(record.model_dump_json(exclude_defaults=isinstance(record, SetupChange)).encode(), 9)
    return LINK_PREFIX + base64.urlsafe_b64encode(packed).decode().rstrip("=")


def from_link(text: str) -> EditRecipe:
    """Return the recipe in `text` from `to_link`; raise `RecipeError` if it is truncated, altered or too large."""
    try:
        content = _unpacked(text)
    except ValueError as error:
        raise RecipeError(
            "the link's recipe cannot be read",
            got=error,
            next_step="Copy the complete link again, or use the recipe file.",
        ) from error
    return parse_recipe(content, source="in the link")


def setup_from_link(text: str) -> SetupChange:
    """Return the changed setup in `text` from `to_link`; raise `ProfileError` if it cannot be read."""
    try:
        return SetupChange.model_validate_json(_unpacked(text))
    except ValueError as error:
        raise ProfileError(
            "the link's setup cannot be read",
            got=first_problem(error) if isinstance(error, ValidationError) else error,
            next_step="Copy the complete link again, or enter the model, SAEs and task vectors on the Setup page.",
        ) from error


def _unpacked(text: str) -> bytes:
    """Return the JSON in `text` from `to_link`; raise `ValueError` if it is truncated, altered or too large."""
    body = text.removeprefix(LINK_PREFIX)
    packed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, MAX_LINK_BYTES)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if not unpacker.eof:
        raise ValueError("truncated or too large")
    return content


@dataclass(frozen=True, slots=True)
class Change:
    """One difference between two records: a field's path and both values as text; a missing one is "–"."""

    field: str
    before: str
    after: str


def differences(before: Record, after: Record) -> list[Change]:
    """Return the differences between `before` and `after`, two records of one class, in the order of the fields.

    Equal recipes have no difference, and recipes without a difference are equal.
    """
    old, new = _flat(before.model_dump(mode="json")), _flat(after.model_dump(mode="json"))
    return [
        Change(field, old.get(field, "–"), new.get(field, "–"))
        for field in dict.fromkeys([*old, *new])
        if old.get(field) != new.get(field)
    ]


def _flat(value: object, path: str = "") -> dict[str, str]:
    if isinstance(value, dict) and value:
        flat: dict[str, str] = {}
        for name, inner in value.items():
            flat |= _flat(inner, f"{path}.{name}" if path else str(name))
        return flat
    return {path: "none" if value is None else str(value)}
