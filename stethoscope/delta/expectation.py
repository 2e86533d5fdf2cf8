"""Independent recomputation of edited weights, which the certificate compares with the model.

    theta(alpha) = round(theta_base + master * layer * tau),

on the parameter's device, tensor by tensor, directly from the base's parameters (or its files, if they have higher
precision), the recipe and the task vector on disk: without caches, buffers or pieces, and with bfloat16 rounding by bit
pattern. Only for edits without projection. All edited tensors are checked if they are small, otherwise a seeded sample.
"""

import random
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.checksums import tensor_digest
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import EditRecipe, RawEdit, ServedEdit

SAMPLE_BYTES = 64 * 2**20  # bytes of edited weights to check; at least one tensor is always checked


def expected_digests(
    loaded: LoadedModel, task_vector: TaskVector, recipe: EditRecipe, touched: Iterable[str], seed: str
) -> dict[str, bytes]:
    """Return the expected digest of each checked tensor while `recipe` is applied; empty if the edit is projected.

    Args:
        touched: the edited parameters; if they are large, a sample drawn with `seed` is checked.

    Raises:
        CheckpointError: a task-vector tensor that cannot be read or is not finite.
    """
    if not isinstance(recipe.edit_type, RawEdit | ServedEdit):
        return {}
    strengths = _strengths(loaded, recipe)
    digests = {}
    for name in _sampled(loaded, touched, seed):
        parameter = loaded.parameter(name)
        theta = task_vector.origin(name).to(parameter.device, torch.float32)
        tau = task_vector.delta(name).to(parameter.device)
        edited = theta + strengths[name] * tau
        digests[name] = tensor_digest(name, _rounded(edited.detach(), parameter.dtype))
    return digests


def _strengths(loaded: LoadedModel, recipe: EditRecipe) -> Mapping[str, float]:
    """Return the strength of every parameter that the recipe can change, directly from the recipe."""
    layout, master = loaded.layout, recipe.master_alpha
    strengths = dict.fromkeys(layout.outer, master)
    for site in (*layout.matrices, *layout.norms):
        if site.layer in recipe.layers:
            chosen = recipe.layers[site.layer]
            strengths[site.name] = master * (chosen.attention if site.part == "attention" else chosen.mlp)
    return strengths


def _sampled(loaded: LoadedModel, touched: Iterable[str], seed: str) -> list[str]:
    names, taken, size = sorted(touched), [], 0
    random.Random(seed).shuffle(names)
    for name in names:
        parameter = loaded.parameter(name)
        size += parameter.numel() * parameter.element_size()
        if taken and size > SAMPLE_BYTES:
            break
        taken.append(name)
    return taken


def _rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return float32 `values` rounded to the nearest value of `dtype`, ties to even."""
    if dtype == torch.bfloat16:
        bits = values.contiguous().view(torch.int32)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return upper.to(torch.int16).view(torch.bfloat16)
    return values.to(dtype)
