"""References to a model, its SAEs, a task vector and problems."""

from collections.abc import Iterable
from typing import Literal

from stethoscope.records.base import Dtype, Record, Site

ProblemField = Literal["problems", "controls", "shots", "subjects", "control_names"]
ASKED: tuple[ProblemField, ...] = ("problems", "subjects", "shots")  # for answers
SCORED: tuple[ProblemField, ...] = ("problems", "subjects")  # for the likelihood of gold solutions
HEARD: tuple[ProblemField, ...] = ("problems", "subjects", "controls", "control_names")  # for a diagnosis


class MatrixRole(Record):
    """Declared role of one matrix of each decoder layer, for a model whose matrices have unknown roles.

    Attributes:
        module: path in the layer, for example "self_attn.qkv_proj".
        part: the half of the layer that the matrix belongs to.
        side: "read" if its input is the residual stream, "write" if its output is added to it.
        norm: path in the layer of the RMSNorm between the matrix and the residual stream; None if there is none.
    """

    module: str
    part: Literal["attention", "mlp"]
    side: Literal["read", "write"]
    norm: str | None = None


class ModelRef(Record):
    """A base model: `embedded:NAME`, a local folder or a hub id, with its revision and the dtype it runs in.

    `roles` declares the roles of matrices with unknown names; it is empty for Gemma, Llama, Mistral and Qwen.
    """

    id: str
    revision: str | None = None
    dtype: Dtype = "float32"
    roles: tuple[MatrixRole, ...] = ()


class SaeRef(Record):
    """SAEs with one per layer: their location and site.

    Attributes:
        location: a folder, `embedded:NAME`, or a release that sae_lens knows (`gemma-scope-2-4b-it-res-all`).
        site: the activations that they read.
        width: selects the SAEs with this width in their name (`16k`) if there are several per layer.
        l0: selects the SAEs with this L0 in their name (`small`).
        revision: of the release's repository.
    """

    location: str
    site: Site = "resid_post"
    width: str | None = None
    l0: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """Short name of the SAEs for selection lists."""
        density = self.l0 and f"L0 {self.l0}"
        return ", ".join(part for part in (self.location, self.site, self.width, density) if part)


class TaskVectorRef(Record):
    """A task vector for the recipe's model: the location of its fine-tune, and its name.

    `tuned` is a checkpoint (tau = fine-tuned - base), a LoRA adapter in peft format (tau = scale * B A), or a
    safetensors delta (tau unchanged): a folder or file, `embedded:NAME`, or a hub id with its revision.
    """

    name: str
    tuned: str
    revision: str | None = None


class SetupChange(Record):
    """Changes that a visitor made to a profile: another model and SAEs, and additional task vectors.

    `model` None: the profile's own model and SAEs. With a model, `saes` None means that there are none.
    """

    model: ModelRef | None = None
    saes: SaeRef | None = None
    task_vectors: tuple[TaskVectorRef, ...] = ()


class ProblemsRef(Record):
    """Problems in MATH's format, control texts in the same format, and few-shot examples; each may be missing.

    Attributes:
        problems: a folder of {train,dev,test}.jsonl (without dev.jsonl, dev is a tenth of train), a folder of MATH's
            parquet files, one JSONL file (split by hash 80/10/10), or a data set's hub id.
        controls: the same, where `subject` names the control corpus.
        shots: JSON file with the few-shot examples, or `lm_eval:minerva_math`.
        subjects: subjects in display order.
        control_names: control corpora in display order; the first is the default.
        revision: of the hub's data set.
    """

    problems: str | None = None
    controls: str | None = None
    shots: str | None = None
    subjects: tuple[str, ...] = ()
    control_names: tuple[str, ...] = ()
    revision: str | None = None

    def lacking(self, fields: Iterable[ProblemField]) -> tuple[ProblemField, ...]:
        """Return those of `fields` that are not given."""
        return tuple(name for name in fields if not getattr(self, name))
