"""Convert a raw recipe to a mergekit configuration (task_arithmetic) with one value per layer.

mergekit distributes a list of values over the layers, so a list as long as the model gives each layer its own value.
The first filter whose text is in a tensor's name applies. Weights are read and added in float32 (dtype), and rounded
once (out_dtype).
"""

import json
from pathlib import Path

from stethoscope.locations import local_path
from stethoscope.model.layout import ModelLayout
from stethoscope.records import EditRecipe, RawEdit

MULTIMODAL = ("vision_tower", "multi_modal_projector")


def not_for_mergekit(recipe: EditRecipe) -> str | None:
    """Return why mergekit cannot reproduce `recipe`; None if it can."""
    if recipe.model.roles:
        return "mergekit filters parts of a layer by name, and the model declares its own matrix names"
    if not isinstance(recipe.edit_type, RawEdit):
        return f"mergekit adds only complete task vectors, and the recipe's edit type is {recipe.edit_type.kind}"
    tuned = local_path(recipe.task_vector.tuned)
    if tuned is not None and not (tuned / "config.json").is_file():
        return "mergekit subtracts checkpoints, and the recipe's task vector is not a checkpoint"
    return None


def mergekit_yaml(recipe: EditRecipe, layout: ModelLayout) -> str:
    """Return the mergekit configuration for the edited model; requires `not_for_mergekit` to be None."""
    assert not_for_mergekit(recipe) is None
    lines = ["merge_method: task_arithmetic", f"base_model: {_source(recipe.model.id, recipe.model.revision)}"]
    lines += ["models:", f"  - model: {_source(recipe.task_vector.tuned, recipe.task_vector.revision)}"]
    lines += ["    parameters:", "      weight:"]
    for text, value in _weights(recipe, layout):
        lines.append(f"        - filter: {json.dumps(text)}")
        lines.append(f"          value: {json.dumps(value)}")
    lines += ["        - value: 0.0", "parameters:", "  normalize: false", "  lambda: 1.0"]
    return "\n".join([*lines, "dtype: float32", f"out_dtype: {recipe.model.dtype}"]) + "\n"


def _weights(recipe: EditRecipe, layout: ModelLayout) -> list[tuple[str, float | list[float]]]:
    """Return (text in a tensor's name, its values), the first match first."""
    values = {part: [recipe.alpha(layer, part) for layer in range(layout.n_layers)] for part in ("attention", "mlp")}
    outer = recipe.master_alpha if recipe.embeddings else 0.0
    found: list[tuple[str, float | list[float]]] = [(name, 0.0) for name in (*MULTIMODAL, ".bias")]
    for norm in layout.norms_of(0):
        short = norm.name.removesuffix(".weight").rpartition(".")[2]
        found.append((f".{short}.", values[norm.part] if recipe.norms else 0.0))
    found += [(".self_attn.", values["attention"]), (".mlp.", values["mlp"])]
    return [*found, ("embed_tokens", outer), ("model.norm.", outer), ("lm_head", outer)]


def _source(location: str, revision: str | None) -> str:
    path = local_path(location)
    plain = location if path is None else str(Path(path).resolve())
    return json.dumps(plain if path is not None or revision is None else f"{plain}@{revision}")
