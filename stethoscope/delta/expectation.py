"""What edited weights must be, computed a second time by other code: the certificate compares the model with it.

    theta(alpha) = round(theta_base + master * layer * tau),

on the parameter's device, tensor by tensor, straight from the base's parameters (from its files, where these hold more
digits than the session), the recipe's numbers and the task vector as it is read from disk: no kept directions, no
buffers, no pieces, and bfloat16 rounded by its bit pattern. Only where nothing is projected; all touched tensors
where they are small, else a seeded sample of them.
"""

import random
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from stethoscope.delta.task_vector import TaskVector
from stethoscope.model.checksums import tensor_digest
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import EditRecipe, RawEdit, ServedEdit

SAMPLE_BYTES = 64 * 2**20  # of edited weights; at least one tensor is always taken


def expected_digests(
    loaded: LoadedModel, task_vector: TaskVector, recipe: EditRecipe, touched: Iterable[str], seed: str
) -> dict[str, bytes]:
    """Return the digest that each checked tensor must have while `recipe` is applied; empty where it is projected.

    Args:
        touched: the edited parameters, of which a sample by `seed` is checked where they are large.

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
    """Return the strength of every parameter that the recipe may move, from its own numbers."""
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
    """Return float32 `values` rounded to the nearest number of `dtype`, ties to even."""
    if dtype == torch.bfloat16:
        bits = values.contiguous().view(torch.int32)
        upper = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return upper.to(torch.int16).view(torch.bfloat16)
    return values.to(dtype)
