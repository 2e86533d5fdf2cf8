"""Certificates: checksums of the model's parameters before, during and after an edit.

The checksums are read from the model by name, not from the patch, so that a swap that did nothing, changed the wrong
tensors or was not undone is detected. They are compared with two values that are independent of the patch's code: the
digests of the base at loading, and recomputed edited tensors (see `expectation`). Only edited tensors are hashed; for
the base (an empty patch) all tensors. `BaseCheck` checks all weights, one tensor at a time, while the worker is idle.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import torch

from stethoscope.delta.patch import Patch, applied
from stethoscope.model.checksums import combined
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.results import Certificate


class Certifying:
    """Collects the checksums of one edit; `certificate` is available after the `with` block."""

    def __init__(self, loaded: LoadedModel, patch: Patch) -> None:
        self._loaded = loaded
        self._patch = patch
        self._digests: list[dict[str, bytes]] = []

    def read(self) -> None:
        """Read the checksums of the edited tensors; for the base, one reading serves as before and during."""
        if len(self._digests) == 1 and not self._patch.tensors:
            self._digests.append(self._digests[0])
        else:
            self._digests.append(self._loaded.digests(sorted(self._patch.tensors) or None))

    @property
    def certificate(self) -> Certificate:
        """The certificate; raises AssertionError while the edit is still applied."""
        assert len(self._digests) == 3, "the certificate is ready when the with block has ended"
        base, edited, restored = self._digests
        touched = tuple(sorted(self._patch.tensors))
        changed = [name for name in touched if edited[name] != base[name]]
        expected = self._patch.expected
        return Certificate(
            recipe_id=self._patch.recipe_id,
            loaded_checksum=self._loaded.loaded_checksum(base),
            base_checksum=combined(base),
            edited_checksum=combined(edited),
            restored_checksum=combined(restored),
            recomputed=tuple(sorted(expected)),
            expected_checksum=combined(expected) if expected else None,
            recomputed_checksum=combined({name: edited[name] for name in expected}) if expected else None,
            touched=touched,
            layers_edited=tuple(sorted(self._loaded.layout.layers_of(changed))),
            idle=bool(touched) and not changed and self._is_base(touched),
        )

    def _is_base(self, touched: Iterable[str]) -> bool:
        """Return whether the patch's tensors equal the base, to distinguish this case from a swap that did nothing."""
        return all(torch.equal(self._patch.tensors[name], self._loaded.parameter(name)) for name in touched)


@contextlib.contextmanager
def certified(loaded: LoadedModel, patch: Patch) -> Iterator[Certifying]:
    """Apply `patch` during the body, like `applied`, and read the checksums before, at the start and after.

    ``with certified(loaded, patch) as certifying: ...`` and then ``certifying.certificate``; the base is also restored
    if the body raises.
    """
    certifying = Certifying(loaded, patch)
    certifying.read()
    with applied(loaded, patch):
        certifying.read()
        yield certifying
    certifying.read()


class BaseCheck:
    """Compares all weights with the loaded ones, tensor by tensor, and can be interrupted and continued."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded
        self._waiting = list(loaded.loaded_digests)
        self._intact = True

    def run(self, go_on: Callable[[], bool] = lambda: True) -> bool | None:
        """Check until all weights have been read or `go_on` returns False; call it while no patch is applied.

        Returns True if every tensor matched the base, False if one did not, and None if some are left. A finished check
        starts again from the beginning.
        """
        while self._waiting:
            if not go_on():
                return None
            name = self._waiting.pop()
            self._intact &= self._loaded.digests([name])[name] == self._loaded.loaded_digests[name]
        intact = self._intact
        self.__init__(self._loaded)
        return intact
