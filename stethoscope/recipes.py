"""Reading what a person wrote: recipe files, and layer lists such as `3,5=0.5`."""

from pathlib import Path

from pydantic import ValidationError

from stethoscope.errors import RecipeError
from stethoscope.records import EditRecipe, LayerAlpha


def read_recipe(path: str) -> EditRecipe:
    """Return the recipe in the JSON file at `path`; raise `RecipeError` for anything that does not fit."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}", got=error.strerror, next_step="Check the path.") from error
    return parse_recipe(content, source=path)


def parse_recipe(content: bytes, *, source: str) -> EditRecipe:
    """Return the recipe in JSON `content`, which came from `source` (a file name, for the message)."""
    try:
        return EditRecipe.model_validate_json(content)
    except ValidationError as error:
        raise RecipeError(
            f"recipe {source} does not fit",
            got=first_problem(error),
            next_step="Write it with `python -m stethoscope recipe`, or save it from the Edit page.",
        ) from error


def first_problem(error: ValidationError) -> str:
    """Return the first thing that did not fit, in one line with its field."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    return f"{first['msg']}{' at ' + field if field else ''}"


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
                "cannot read --layers", got=repr(part), expected="for example 3,5=0.5 or 2-4 or all"
            ) from error
        if not layers or layers[-1] >= n_layers:
            raise RecipeError("layer out of range", got=span, expected=f"0 to {n_layers - 1}")
        strengths |= dict.fromkeys(layers, chosen)
    return strengths
