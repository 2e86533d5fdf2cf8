"""Where a model runs and where its weights wait: what the name of a device means.

    auto, cpu, cuda, cuda:1   the whole model on one device
    spread                    layers on every GPU in turn; what is left waits in the machine's memory, then on its disk
    offload, offload-disk     all layers wait in memory (without a GPU: lie there), or in the checkpoint's own files

Weights that wait are brought to the device when their module runs (accelerate). Listening, probes, answers and edits
work all the same: an edit replaces their entries in accelerate's map of weights, as elsewhere it swaps pointers.
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
WEIGHTS_SHARE = 0.75  # of what is free, with "spread": the rest is for keys, values, activations and edits
MEMORY, DISK = "cpu", "disk"  # accelerate's words for where weights wait


@dataclass(frozen=True, slots=True)
class Placement:
    """What a device's name means.

    Attributes:
        device: computes the embeddings, and whatever has no place of its own.
        weights_in: where every layer waits; None: on its device.
        spread: whether layers are laid out over all that there is.
    """

    device: torch.device
    weights_in: Literal["memory", "disk"] | None = None
    spread: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Where each module's weights will lie, and how large they are there.

    Attributes:
        device: as in `Placement`.
        device_map: path of a module -> "cuda:0", "cpu" or "disk"; None where all lie on `device`.
        sizes: bytes of weights by place: a device's name, "cpu" where they wait in memory, "disk".
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
        """Tell whether what lies at `place` is computed with there: elsewhere it waits."""
        return place != DISK and (place != MEMORY or self.device.type == "cpu") or place == str(self.device)

    @property
    def on_devices(self) -> int:
        """Bytes of weights on the devices that compute."""
        return sum(size for place, size in self.sizes.items() if self.computes(place))

    @property
    def waits(self) -> bool:
        """Whether any weight lies elsewhere than where it is computed with."""
        return not all(map(self.computes, self.sizes))

    @property
    def in_memory(self) -> int:
        """Bytes of weights that wait in the machine's memory."""
        return sum(size for place, size in self.sizes.items() if place == MEMORY and not self.computes(place))


def pick_device(device: str) -> Placement:
    """Return what `device` means: "auto" is cuda where there is one, else the CPU; so compute "spread" and "offload".

    Raises:
        ResourceError: no such device, or one on which the exactness tests have not passed (mps).
    """
    weights_in, spread = OFFLOAD.get(device), device == "spread"
    if device == "auto" or weights_in or spread:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        where = torch.device(device)
    except RuntimeError as error:
        raise ResourceError(
            "no device of that name", got=repr(device), expected=NAMES, next_step="Choose one of these."
        ) from error
    if where.type not in ("cpu", "cuda"):
        raise ResourceError(
            f"models do not run on {where.type} here: exact edits and answers were not shown to hold on it",
            got=repr(device),
            expected=NAMES,
            next_step="Use the device cpu or auto.",
        )
    if where.type == "cuda" and not torch.cuda.is_available():
        raise ResourceError("no CUDA device on this machine", got=device, next_step="Use the device cpu or auto.")
    if where.type == "cuda" and (where.index or 0) >= torch.cuda.device_count():
        raise ResourceError(
            "no CUDA device of that number",
            got=device,
            expected=f"cuda:0 to cuda:{torch.cuda.device_count() - 1}",
            next_step="Choose one of these, or auto.",
        )
    return Placement(where, weights_in, spread)


def plan_placement(model: Any, placement: Placement, roles: tuple[MatrixRole, ...] = ()) -> Plan:
    """Return where the weights of `model` (on the meta device, in the dtype that it will have) will lie.

    "spread" takes accelerate's inferred map: layers stay whole, GPUs are filled evenly, and `WEIGHTS_SHARE` of what is
    free is used.
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
    """Return accelerate's map over all GPUs, the machine's memory and its disk."""
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
    """Return the place of parameter `name`: that of the longest path above it."""
    while name not in device_map:
        assert name, "a device map covers every module"
        name = name.rpartition(".")[0]
    return device_map[name]
