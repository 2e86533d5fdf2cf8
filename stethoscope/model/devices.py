"""Where a model runs: the device that a name means."""

import torch

from stethoscope.errors import ResourceError


def pick_device(device: str) -> torch.device:
    """Return the device called `device`; "auto" is cuda where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ResourceError("no device of that name", got=repr(device), expected="auto, cpu or cuda") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("no CUDA device on this machine", got=device, next_step="Use the device cpu or auto.")
    return where
