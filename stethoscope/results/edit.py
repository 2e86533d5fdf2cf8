"""Results of an edit: certificate of the weights, likelihood check, text comparison and export."""

from collections.abc import Sequence

from stethoscope.records import Record
from stethoscope.results.base import Result


class Certificate(Record):
    """Certificate of the weights that were used: checksums of the model's parameters, not of the patch.

    Attributes:
        base_checksum: checksum of the edited tensors before the edit (of all tensors for the base).
        edited_checksum: checksum of the same tensors while the edit was applied (equal to the base's without an edit).
        restored_checksum: checksum of the same tensors after the edit was removed.
        touched: names of the edited parameters.
        layers_edited: layers with at least one edited parameter.
        idle: whether the edited tensors are identical to the base bit for bit.
        loaded_checksum: checksum of the same tensors when the model was loaded.
        recomputed: names of the edited tensors that independent code recomputed (all of them, a seeded sample for a
            large edit, or none for a projected edit).
        expected_checksum: checksum of the recomputed tensors.
        recomputed_checksum: checksum of the same tensors in the model while the edit was applied.
        others: certificates of further passes that differ from this one; empty if all passes agree.
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
        """Whether the base weights matched the loaded ones before and after the edit."""
        return self.loaded_checksum in (None, self.base_checksum) and self.restored_checksum == self.base_checksum

    @property
    def as_recomputed(self) -> bool:
        """Whether the model contained exactly the recomputed tensors while the edit was applied."""
        return self.recomputed_checksum == self.expected_checksum

    @property
    def is_base(self) -> bool:
        """Whether the weights used are identical to the base bit for bit."""
        return self.edited_checksum == self.base_checksum

    @property
    def verified(self) -> bool:
        """Whether base, edit and restored base are correct, as far as this certificate covers them.

        In every pass, the base matches the loaded weights before and after, the edit changed the weights (unless its
        tensors equal the base), the recomputed tensors are identical to those in the model, and the edited weights are
        the same.
        """
        edited = self.is_base != (bool(self.touched) and not self.idle)
        same = all(other.verified and self._same_edit(other) for other in self.others)
        return edited and self.base_intact and self.as_recomputed and same

    def _same_edit(self, other: "Certificate") -> bool:
        """Whether `other` has the same edited weights; checksums of different algorithms are not comparable."""
        ours, theirs = self.edited_checksum, other.edited_checksum
        return ours == theirs or ours.rpartition("-")[0] != theirs.rpartition("-")[0]

    @property
    def evidence(self) -> str:
        """One sentence describing what was compared."""
        if self.others:
            return f"The checksums of {1 + len(self.others)} passes with this edit differ."
        if not self.touched:
            return "All weights were hashed before and after the edit and match the loaded weights."
        base = f"The base weights of {len(self.touched)} edited tensors were hashed before and after."
        if self.idle:
            return f"{base} The edited tensors are identical to the base bit for bit: the edit changes nothing."
        if not self.recomputed:
            return f"{base} The edit was hashed but not recomputed; only raw edits are recomputed."
        share = "All" if len(self.recomputed) == len(self.touched) else f"{len(self.recomputed)} sampled"
        return f"{base} {share} edited tensors were recomputed and are identical bit for bit."


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
    """Result of the likelihood check; negative differences mean that gold solutions became more likely."""

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
    """Dose-response curve: rows for the finished ones of `alphas`; the subject "all" pools all subjects."""

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
    """Greedy text of one model, and the predictions of edited model and base at each of its tokens.

    Attributes:
        ids: the tokens of `text`.
        tokens: texts of the tokens, which concatenate to the text of `ids`. If several tokens form one character, only
            the last one has a text.
        kl: KL(edited || base) in nats at each token; in the third column, the third model replaces the edited one.
        first_difference: first token at which the texts of base and edited model (third column: base and third model)
            differ.
    """

    text: str
    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    kl: tuple[float, ...]
    top: tuple[TopTokens, ...]
    first_difference: int | None


class TextPair(Record):
    """The texts for one prompt, which is stored as typed."""

    prompt: str
    base: TextColumn
    edited: TextColumn
    third: TextColumn | None = None


class TextComparison(Result):
    """Texts of base and edited model, with a certificate of the weights."""

    recipe_id: str
    pairs: tuple[TextPair, ...]
    certificate: Certificate
    third_certificate: Certificate | None = None


class ExportResult(Result):
    """An export; `max_abs_difference` compares the files with the edited model in memory.

    `left_out` says why a requested part is missing.
    """

    out: str
    files: tuple[str, ...]
    size_bytes: int
    max_abs_difference: float
    left_out: str | None = None
