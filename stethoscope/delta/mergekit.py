"""A raw recipe as a mergekit configuration (task_arithmetic), with one value a layer.

mergekit spreads a list of values over the layers, so a list as long as the model gives each layer its own; the first
filter whose text stands in a tensor's name decides. Read and added in float32 (dtype), rounded once (out_dtype).
"""

import json
from pathlib import Path

from stethoscope.locations import local_path
from stethoscope.model.layout import ModelLayout
from stethoscope.records import EditRecipe, RawEdit

MULTIMODAL = ("vision_tower", "multi_modal_projector")


def not_for_mergekit(recipe: EditRecipe) -> str | None:
    """Return why mergekit cannot make the edit of `recipe`, None where it can."""
    if recipe.model.roles:
        return "the halves of a layer are told by names that the model's declared roles need not follow"
    if not isinstance(recipe.edit_type, RawEdit):
        return f"mergekit adds whole task vectors only, and the recipe's edit type is {recipe.edit_type.kind}"
    tuned = local_path(recipe.task_vector.tuned)
    if tuned is not None and not (tuned / "config.json").is_file():
        return "mergekit subtracts checkpoints, and the recipe's task vector is none"
    return None


def mergekit_yaml(recipe: EditRecipe, layout: ModelLayout) -> str:
    """Return the configuration that makes mergekit write the edited model; only where `not_for_mergekit` is None."""
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
