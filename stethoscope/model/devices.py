"""Devices: where a model computes, and where its weights are stored.

    auto, cpu, cuda, cuda:1   the whole model on one device
    spread                    layers distributed over all GPUs; the rest is offloaded to host memory, then to disk
    offload, offload-disk     all layers are offloaded to host memory, or to the checkpoint's files

Offloaded weights are moved to the device when their module runs (accelerate). Diagnoses, likelihood checks, answers and
edits work as usual: an edit replaces entries in accelerate's map of weights instead of swapping pointers.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import infer_auto_device_map
from accelerate.utils import get_balanced_memory
from torch import nn

from stethoscope.errors import ResourceError
from stethoscope.model.free_memory import free_bytes
from stethoscope.model.layout import decoder_layers
from stethoscope.records import MatrixRole

NAMES = "auto, cpu, cuda, cuda:1, spread, offload or offload-disk"
OFFLOAD: dict[str, Literal["memory", "disk"]] = {"offload": "memory", "offload-disk": "disk"}
WEIGHTS_SHARE = 0.75  # share of free memory used with "spread"; the rest is for keys, values, activations and edits
MEMORY, DISK = "cpu", "disk"  # accelerate's names for offload targets


@dataclass(frozen=True, slots=True)
class Placement:
    """Meaning of a device name.

    Attributes:
        device: computes the embeddings and all modules without their own device.
        weights_in: where layers are offloaded; None: not offloaded.
        spread: whether layers are distributed over all devices.
    """

    device: torch.device
    weights_in: Literal["memory", "disk"] | None = None
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Location of each module's weights, and their sizes.

    Attributes:
        device: as in `Placement`.
        device_map: module path -> "cuda:0", "cpu" or "disk"; None if all are on `device`.
        sizes: bytes of weights by location: a device name, "cpu" if offloaded to memory, or "disk".
    """

    device: torch.device
    device_map: Mapping[str, str] | None
    sizes: Mapping[str, int]

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The devices that compute."""
        places = {str(self.device): None} | dict.fromkeys(self.sizes)
        return tuple(torch.device(place) for place in places if self.computes(place))

    def computes(self, place: str) -> bool:
        """Return whether weights at `place` are used there directly, rather than offloaded."""
        return place != DISK and (place != MEMORY or self.device.type == "cpu") or place == str(self.device)

    @property
    def on_devices(self) -> int:
        """Bytes of weights on the devices that compute."""
        return sum(size for place, size in self.sizes.items() if self.computes(place))

    @property
    def waits(self) -> bool:
        """Whether any weight is offloaded."""
        return not all(map(self.computes, self.sizes))

    @property
    def in_memory(self) -> int:
        """Bytes of weights offloaded to host memory."""
        return sum(size for place, size in self.sizes.items() if place == MEMORY and not self.computes(place))


def pick_device(device: str) -> Placement:
    """Return the placement for `device`: "auto", "spread" and "offload" compute on cuda if available, otherwise on the
    CPU.

    Raises:
        ResourceError: no such device, or one where exactness was not tested (mps).
    """
    weights_in, spread = OFFLOAD.get(device), device == "spread"
    if device == "auto" or weights_in or spread:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ResourceError(
            "no such device", got=repr(device), expected=NAMES, next_step="Choose one of these."
        ) from error
    if where.type not in ("cpu", "cuda"):
        raise ResourceError(
            f"device type {where.type} is not supported, because exact edits and answers were not verified on it",
            got=repr(device),
            expected=NAMES,
            next_step="Use the device cpu or auto.",
        )
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("no CUDA device on this machine", got=device, next_step="Use the device cpu or auto.")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            "no CUDA device with this number",
            got=device,
            expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            next_step="Choose one of these, or auto.",
        )
    return Placement(where, weights_in, spread)


def plan_placement(model: Any, placement: Placement, roles: tuple[MatrixRole, ...] = ()) -> Plan:
    """Return the plan for the weights of `model` (on the meta device, in its final dtype).

    "spread" uses accelerate's inferred map: layers are not split, GPUs are filled evenly, and `WEIGHTS_SHARE` of the
    free memory is used.
    """
    path, layers = decoder_layers(model, roles)
    chosen = placement.device
    device = torch.device("cuda", chosen.index or 0) if chosen.type == "cuda" else chosen
    main = str(device)
    if placement.spread:
        found = _inferred(model, device)
    elif placement.weights_in is None:
        found = {"": main}
    else:
        waits = MEMORY if placement.weights_in == "memory" else DISK
        found = _outside(model, path, main) | {f"{path}.{i}": waits for i in range(len(layers))}
    sizes: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        sizes[_place_of(name, found)] += parameter.numel() * parameter.element_size()
    alone = len(set(found.values())) == 1 and DISK not in found.values()
    device = torch.device(next(iter(found.values()))) if alone else device
    return Plan(device, None if alone else found, dict(sizes))


def _inferred(model: Any, main: torch.device) -> dict[str, str]:
    """Return accelerate's map over all GPUs, host memory and disk."""
    gpus = range(torch.cuda.device_count()) if main.type == "cuda" else ()
    room: dict[int | str, int | str] = {gpu: _room(torch.device("cuda", gpu)) for gpu in gpus}
    room[MEMORY] = _room(torch.device("cpu"))
    whole: list[str] = sorted(model._no_split_modules or ())
    if len(gpus) > 1:
        room = dict(get_balanced_memory(model, room, no_split_module_classes=whole) or room)
    found: Mapping[Any, Any] = infer_auto_device_map(model, room, no_split_module_classes=whole)
    return {path: f"cuda:{place}" if isinstance(place, int) else str(place) for path, place in found.items()}


def _room(device: torch.device) -> int:
    return int(free_bytes(device) * WEIGHTS_SHARE)


def _outside(model: nn.Module, path: str, place: str) -> dict[str, str]:
    """Return a map of every module that is neither the list of layers at `path` nor above or inside it."""
    found: dict[str, str] = {}
    parents = ["", *(path[:end] for end, letter in enumerate(path) if letter == ".")]
    for parent in parents:
        for name, _ in model.get_submodule(parent).named_children():
            child = f"{parent}.{name}" if parent else name
            if child != path and child not in parents:
                found[child] = place
    return found


def _place_of(name: str, device_map: Mapping[str, str]) -> str:
    """Return the location of parameter `name`: that of its longest parent path in the map."""
    while name not in device_map:
        assert name, "a device map covers every module"
        name = name.rpartition(".")[0]
    return device_map[name]
