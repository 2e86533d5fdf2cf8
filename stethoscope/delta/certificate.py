"""Which weights answered: checksums of the model's own parameters before, during and after an edit.

The checksums are read from the model by name, not from the patch, so a swap that did nothing, hit the wrong tensors or
was not taken back shows. Touched tensors only; for the base (an empty patch) all of them.
"""

import contextlib
from collections.abc import Iterator

from stethoscope.delta.patch import Patch, applied
from stethoscope.model.session import ModelSession
from stethoscope.results import Certificate


class Certifying:
    """Collects the checksums of one edit; `certificate` is ready when the `with` block has ended."""

    def __init__(self, session: ModelSession, patch: Patch) -> None:
        self._session = session
        self._patch = patch
        self._checksums: list[str] = []

    def _read(self) -> None:
        self._checksums.append(self._session.checksum(sorted(self._patch.tensors) or None))

    @property
    def certificate(self) -> Certificate:
        """The certificate; an assertion fails while the edit is still on."""
        assert len(self._checksums) == 3, "the certificate is ready when the with block has ended"
        base, edited, restored = self._checksums
        touched = tuple(sorted(self._patch.tensors))
        return Certificate(
            recipe_id=self._patch.recipe_id,
            base_checksum=base,
            edited_checksum=edited,
            restored_checksum=restored,
            touched=touched,
            layers_edited=tuple(sorted({self._session.layout.site(name).layer for name in touched})),
        )


@contextlib.contextmanager
def certified(session: ModelSession, patch: Patch) -> Iterator[Certifying]:
    """Apply `patch` for the body, as `applied` does, and read the checksums before, at the start of and after it.

    ``with certified(session, patch) as certifying: ...`` and then ``certifying.certificate``; where the body raises,
    the base is restored all the same.
    """
    certifying = Certifying(session, patch)
    certifying._read()
    with applied(session, patch):
        certifying._read()
        yield certifying
    certifying._read()
