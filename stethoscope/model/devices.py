"""Where a model runs and where its weights wait: what the name of a device means.

`offload` keeps the weights in the machine's memory, `offload-disk` on its disk; each module's are brought to the device
when it runs (accelerate). Such a model is slow, and can be listened to only: editing it is refused.
"""

import tempfile
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import cpu_offload, disk_offload
from torch import nn

from stethoscope.errors import ResourceError

OFFLOAD: dict[str, Literal["memory", "disk"]] = {"offload": "memory", "offload-disk": "disk"}


@dataclass(frozen=True, slots=True)
class Placement:
    """The device that computes, and where the weights wait (None: on it)."""

    device: torch.device
    weights_in: Literal["memory", "disk"] | None = None


def pick_device(device: str) -> Placement:
    """Return what `device` means: "auto" is cuda where there is one, else the CPU; "offload" computes there, too.

    Raises:
        ResourceError: no such device.
    """
    weights_in = OFFLOAD.get(device)
    if device == "auto" or weights_in:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ResourceError(
            "no device of that name", got=repr(device), expected="auto, cpu, cuda, cuda:1, offload or offload-disk"
        ) from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("no CUDA device on this machine", got=device, next_step="Use the device cpu or auto.")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            "no CUDA device of that number", got=device, expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}"
        )
    return Placement(where, weights_in)


def put_in_place(model: Any, placement: Placement) -> Any:
    """Move `model`, whose weights lie in memory, to its device, or to where they wait.

    The folder of weights that wait on the disk is removed with the model.
    """
    if placement.weights_in is None:
        return model.to(placement.device)
    if placement.weights_in == "memory":
        return cpu_offload(model, execution_device=placement.device)
    folder = tempfile.TemporaryDirectory(prefix="stethoscope-offload-")
    model._offload_folder = folder  # lives as long as the model
    return disk_offload(model, folder.name, execution_device=placement.device)


def waiting_weight(model: nn.Module, name: str) -> nn.Parameter:
    """Return the offloaded parameter `name` as it waits; writing into it changes nothing."""
    path, _, key = name.rpartition(".")
    hook: Any = model.get_submodule(path)._hf_hook
    return nn.Parameter(hook.weights_map[key], requires_grad=False)
