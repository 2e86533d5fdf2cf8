"""What an edit returns: which weights answered, the live probe, text, an export."""

from collections.abc import Sequence

from stethoscope.records import Record
from stethoscope.results.base import Result


class Certificate(Record):
    """Which weights answered: checksums read from the model's parameters, not from the patch.

    Attributes:
        base_checksum: of the touched tensors (all tensors for the base) before the edit.
        edited_checksum: of the same tensors while the edit was on (equal to the base's when no edit was asked for).
        restored_checksum: of the same tensors after the edit was taken off.
        touched: names of the edited parameters.
        layers_edited: layers in which at least one of them changed.
        idle: the tensors that the edit put in the place of the base's are the base's bit by bit.
        loaded_checksum: of the same tensors when the model was loaded.
        recomputed: names of the edited tensors that were computed a second time by other code (all of them, or a
            seeded sample of a large edit; none for a projected edit).
        expected_checksum: of these as recomputed.
        recomputed_checksum: of these in the model while the edit was on.
        others: certificates of further passes that differ from this one; none where all passes agree.
    """

    recipe_id: str | None
    base_checksum: str
    edited_checksum: str
    restored_checksum: str
    touched: tuple[str, ...]
    layers_edited: tuple[int, ...]
    idle: bool = False
    loaded_checksum: str | None = None
    recomputed: tuple[str, ...] = ()
    expected_checksum: str | None = None
    recomputed_checksum: str | None = None
    others: tuple["Certificate", ...] = ()

    @classmethod
    def of_passes(cls, certificates: Sequence["Certificate"]) -> "Certificate":
        """Return one certificate for several passes of the same edit (at least one)."""
        first, *others = dict.fromkeys(certificates)
        return first.model_copy(update={"others": tuple(others)})

    @property
    def base_intact(self) -> bool:
        """True when the base was as loaded before the edit, and afterwards."""
        return self.loaded_checksum in (None, self.base_checksum) and self.restored_checksum == self.base_checksum

    @property
    def as_recomputed(self) -> bool:
        """True when the recomputed tensors were in the model bit by bit while the edit was on."""
        return self.recomputed_checksum == self.expected_checksum

    @property
    def is_base(self) -> bool:
        """True when the weights that answered are the base's bit by bit."""
        return self.edited_checksum == self.base_checksum

    @property
    def verified(self) -> bool:
        """True when base, edit and restored base are what they must be, as far as this certificate has read them.

        The base is as loaded before and after, the edit (if any tensor was touched) changed the weights unless its own
        tensors are the base's, and the recomputed tensors are in the model bit by bit; in every pass, with the same
        edited weights.
        """
        edited = self.is_base != (bool(self.touched) and not self.idle)
        same = all(other.verified and self._same_edit(other) for other in self.others)
        return edited and self.base_intact and self.as_recomputed and same

    def _same_edit(self, other: "Certificate") -> bool:
        """Whether `other` read the same edited weights; checksums of different algorithms cannot be compared."""
        ours, theirs = self.edited_checksum, other.edited_checksum
        return ours == theirs or ours.rpartition("-")[0] != theirs.rpartition("-")[0]

    @property
    def evidence(self) -> str:
        """What was compared, in one sentence."""
        if self.others:
            return f"{1 + len(self.others)} passes of this edit were hashed, and their checksums differ."
        if not self.touched:
            return "All weights were hashed before and after, and are those that were loaded."
        base = f"The base of {len(self.touched)} edited tensors was hashed before and after."
        if self.idle:
            return f"{base} The edit's own tensors are the base's bit by bit: it changes nothing."
        if not self.recomputed:
            return f"{base} The edit was hashed, not recomputed: that is done for raw edits."
        share = "All" if len(self.recomputed) == len(self.touched) else f"{len(self.recomputed)} sampled"
        return f"{base} {share} edited tensors were computed a second time and are the same bit by bit."


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


class ProbeResult(Result):
    """The live probe: negative differences mean that gold solutions became more likely."""

    recipe_id: str
    rows: tuple[ProbeRow, ...]
    certificate: Certificate
    elapsed_s: float


ALL_SUBJECTS = "all"  # the row over the problems of all subjects together


class DoseRow(Record):
    """Mean over `n` items of the NLL per solution token (nats) at `alpha`, minus the base's, with a paired interval."""

    alpha: float
    subject: str
    is_control: bool
    n: int
    difference: float
    ci_low: float
    ci_high: float


class DoseResult(Result):
    """Dose and response: rows by alpha, of those of `alphas` that are done; the subject "all" pools the subjects."""

    recipe_id: str
    alphas: tuple[float, ...]
    rows: tuple[DoseRow, ...]


class TokenChance(Record):
    """A token (as text) and its probability as the next one."""

    token: str
    probability: float


class TopTokens(Record):
    """The likeliest next tokens of the edited model and of the base at one position, likeliest first."""

    edited: tuple[TokenChance, ...]
    base: tuple[TokenChance, ...]


class TextColumn(Record):
    """One model's greedy text, and what edited model and base predict at each of its tokens, given those before.

    Attributes:
        ids: the tokens of `text`.
        tokens: their texts, which add up to that of `ids`: the first tokens of a character that several share are "".
        kl: KL(edited || base) in nats at each token; in the third column its own model takes the edited one's place.
        first_difference: first token at which base and edited text (in the third column: base and third) part.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    kl: tuple[float, ...]
    top: tuple[TopTokens, ...]
    first_difference: int | None


class TextPair(Record):
    """The texts of one prompt, given as it was typed."""

    prompt: str
    base: TextColumn
    edited: TextColumn
    third: TextColumn | None = None


class TextComparison(Result):
    """Base beside edited text, and which weights wrote them."""

    recipe_id: str
    pairs: tuple[TextPair, ...]
    certificate: Certificate
    third_certificate: Certificate | None = None


class ExportResult(Result):
    """A written export; `max_abs_difference` compares what was read back with the live edited model.

    `left_out` says why a part that was asked for is not there.
    """

    out: str
    files: tuple[str, ...]
    size_bytes: int
    max_abs_difference: float
    left_out: str | None = None
