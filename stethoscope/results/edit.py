"""What an edit returns: which weights answered, the live probe, text, an export."""

from stethoscope.records import Record


class Certificate(Record):
    """Which weights answered: checksums read from the model's parameters, not from the patch.

    Attributes:
        base_checksum: of the touched tensors (all tensors for the base) before the edit.
        edited_checksum: of the same tensors while the edit was on (equal to the base's when no edit was asked for).
        restored_checksum: of the same tensors after the edit was taken off.
        touched: names of the edited parameters.
        n_layers_edited: layers with at least one touched tensor.
    """

    recipe_id: str | None
    base_checksum: str
    edited_checksum: str
    restored_checksum: str
    touched: tuple[str, ...]
    layers_edited: tuple[int, ...]

    @property
    def verified(self) -> bool:
        """True when the base was restored exactly and the edit, if any tensor was touched, changed the weights."""
        edited = bool(self.touched) == (self.edited_checksum != self.base_checksum)
        return edited and self.restored_checksum == self.base_checksum


class ProbeRow(Record):
    """Mean over `n` items of the NLL per solution token (nats), edited minus base, with a paired 95% interval."""

    subject: str
    is_control: bool
    n: int
    base_nll: float
    edited_nll: float
    difference: float
    ci_low: float
    ci_high: float


class ProbeResult(Record):
    """The live probe: negative differences mean that gold solutions became more likely."""

    recipe_id: str
    rows: tuple[ProbeRow, ...]
    certificate: Certificate
    elapsed_s: float


class TextPair(Record):
    """Base and edited greedy text of one prompt; `kl` holds KL(edited || base) in nats at each edited token."""

    prompt: str
    base: str
    edited: str
    base_tokens: tuple[str, ...]
    edited_tokens: tuple[str, ...]
    kl: tuple[float, ...]
    first_difference: int | None


class TextComparison(Record):
    """Base beside edited text, and which weights wrote it."""

    recipe_id: str
    pairs: tuple[TextPair, ...]
    certificate: Certificate


class ExportResult(Record):
    """A written checkpoint; `max_abs_difference` compares the reloaded tensors with the live edited model."""

    out: str
    files: tuple[str, ...]
    size_bytes: int
    max_abs_difference: float
