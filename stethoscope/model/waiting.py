"""An offloaded weight, stored in memory or on disk until its module runs: its entry in accelerate's map of weights."""

from typing import Any

from torch import Tensor, nn


class Waiting:
    """The offloaded parameter `key` of a module that accelerate has hooked."""

    def __init__(self, module: nn.Module, key: str) -> None:
        hook: Any = module._hf_hook
        self._weights = hook.weights_map
        self._key = key
        self._name = f"{self._weights.prefix}{key}"
        kept = self._weights.dataset
        self._held: dict[str, Tensor] = getattr(kept, "state_dict", kept)  # a loader looks here before reading files

    def read(self) -> Tensor:
        """Return the weight in host memory; writing to it has no effect."""
        return self._weights[self._key].to("cpu")

    @property
    def held(self) -> Tensor | None:
        """The tensor in memory; None if a file is read each time."""
        return self._held.get(self._name)

    def hold(self, tensor: Tensor | None) -> None:
        """Use `tensor` instead from now on; None restores the file."""
        if tensor is None:
            self._held.pop(self._name, None)
        else:
            self._held[self._name] = tensor
