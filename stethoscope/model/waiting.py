"""A weight that waits in memory or on the disk until its module runs: its entry in accelerate's map of weights."""

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
        self._held: dict[str, Tensor] = getattr(kept, "state_dict", kept)  # a loader looks here before its files

    def read(self) -> Tensor:
        """Return the weight in the machine's memory; writing into it changes nothing."""
        return self._weights[self._key].to("cpu")

    @property
    def held(self) -> Tensor | None:
        """What memory holds for it; None where a file is read each time."""
        return self._held.get(self._name)

    def hold(self, tensor: Tensor | None) -> None:
        """Let `tensor` stand for it from now on; None: the file again."""
        if tensor is None:
            self._held.pop(self._name, None)
        else:
            self._held[self._name] = tensor
