"""What the pipeline returns: plain pydantic rows, no torch, so that pages, figures and replays stay light.

Field names are those of the command line's JSON. Fractions stay in [0, 1]; an undefined number is None.
"""

from stethoscope.records import Grade, Record


class SaeRow(Record):
    """One SAE of the bank."""

    layer: int
    site: str
    d_sae: int
    architecture: str


class ModelRow(Record):
    """Size and identity of the loaded model; `checksum` is over all weights as loaded."""

    id: str
    revision: str | None
    dtype: str
    n_layers: int
    d_model: int
    parameters: int
    device: str
    size_bytes: int
    checksum: str


class TaskVectorRow(Record):
    """One task vector: ||tau_l|| / ||theta_l|| of each layer (edited matrices only)."""

    name: str
    source: str
    relative_norm_by_layer: tuple[float, ...]


class InfoResult(Record):
    """What a profile holds."""

    model: ModelRow
    saes: tuple[SaeRow, ...]
    task_vectors: tuple[TaskVectorRow, ...]


class SpecificityCell(Record):
    """Score of one layer for one subject, with bootstrap interval, permutation p and Holm p over the layers.

    `n_live` latents were candidates, `n_documents` domain documents (and as many of control) were listened to.
    `p_top` is the share of bootstrap draws in which this layer comes first for its subject.
    """

    layer: int
    subject: str
    score: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_holm: float | None
    n_live: int
    n_documents: int
    p_top: float | None = None


class SelectedLatent(Record):
    """One selected latent: p_j on the domain, q_j on the control, effect = p_j - q_j."""

    layer: int
    subject: str
    latent: int
    domain_rate: float
    control_rate: float
    effect: float


class DiagnosisResult(Record):
    """Layer specificity by subject; `order` lists the layers of each subject, best first."""

    score: str
    formula: str
    subjects: tuple[str, ...]
    control: str
    n_layers: int
    site: str
    top_k: int
    null: float
    cells: tuple[SpecificityCell, ...]
    order: dict[str, tuple[int, ...]]
    latents: tuple[SelectedLatent, ...]


class EnergyCell(Record):
    """Energy of the task vector kept by the span of k latents, in one matrix or (matrix "all") stacked over a layer.

    retention in [0, 1]; the null is a random subspace of the same rank; enrichment = retention / (rank / d);
    ceiling = the best that any subspace of this rank keeps. `approximate` marks readers whose SAE sits before
    another write to the residual stream.
    """

    layer: int
    matrix: str
    subject: str
    k: int
    rank: int
    d: int
    retention: float | None
    null_mean: float | None
    null_sd: float | None
    enrichment: float | None
    z: float | None
    ceiling: float | None
    approximate: bool = False


class EnergyResult(Record):
    """Energy retention per matrix (`cells`) and per layer, stacked along the residual axis (`layers`)."""

    task_vector: str
    subject: str
    control: str
    site: str
    n_layers: int
    d_model: int
    k: tuple[int, ...]
    cells: tuple[EnergyCell, ...]
    layers: tuple[EnergyCell, ...]


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


class BenchItem(Record):
    """One graded answer. `problem_id` is the hash of the problem's text."""

    arm: str
    subject: str
    problem_id: str
    problem: str
    gold: str
    completion: str
    n_tokens: int
    truncated: bool
    grade: Grade


class ArmRow(Record):
    """Accuracy of one arm on one subject, with a Wilson interval, the share of marked and of truncated answers.

    `unscored` counts timeouts and unparsable answers (inside n, shown apart); `lm_eval_stderr` is sd(n-1)/sqrt(n).
    """

    arm: str
    recipe_id: str | None
    subject: str
    n: int
    correct: int
    accuracy: float
    ci_low: float
    ci_high: float
    lm_eval_stderr: float | None
    math_verify: float
    marker_rate: float
    truncation_rate: float
    unscored: int


class ComparisonRow(Record):
    """Paired difference arm - reference on the same problems.

    n10 = arm right, reference wrong; n01 = arm wrong, reference right; ci = Newcombe's paired interval;
    holm_p is corrected over the subjects of the arm.
    """

    arm: str
    reference: str
    subject: str
    n11: int
    n10: int
    n01: int
    n00: int
    difference: float
    ci_low: float
    ci_high: float
    mcnemar_p: float
    holm_p: float
    z_unpooled: float | None
    verdict: str


class TotalRow(Record):
    """Macro (mean over subjects) or micro (over problems) difference with a stratified paired bootstrap interval."""

    kind: str
    arm: str
    reference: str
    n: int
    accuracy: float
    reference_accuracy: float
    difference: float
    ci_low: float
    ci_high: float


class BenchResult(Record):
    """A finished, or cancelled and therefore partial, benchmark."""

    arms: tuple[ArmRow, ...]
    comparisons: tuple[ComparisonRow, ...]
    totals: tuple[TotalRow, ...]
    items: tuple[BenchItem, ...]
    certificates: dict[str, Certificate]
    complete: bool


class ExportResult(Record):
    """A written checkpoint; `max_abs_difference` compares the reloaded tensors with the live edited model."""

    out: str
    files: tuple[str, ...]
    size_bytes: int
    max_abs_difference: float


Result = InfoResult | DiagnosisResult | EnergyResult | ProbeResult | TextComparison | BenchResult | ExportResult
