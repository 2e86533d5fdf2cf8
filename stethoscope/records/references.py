"""Where things lie: a model, its SAEs, a task vector, problems."""

from collections.abc import Iterable
from typing import Literal

from stethoscope.records.base import Dtype, Record, Site

ProblemField = Literal["problems", "controls", "shots", "subjects", "control_names"]
ASKED: tuple[ProblemField, ...] = ("problems", "subjects", "shots")  # for answers
SCORED: tuple[ProblemField, ...] = ("problems", "subjects")  # for the likelihood of gold solutions
HEARD: tuple[ProblemField, ...] = ("problems", "subjects", "controls", "control_names")  # for a diagnosis


class MatrixRole(Record):
    """What one matrix of every decoder layer does, declared for a model whose matrices have no known role.

    Attributes:
        module: its path in a layer, for example "self_attn.qkv_proj".
        part: half of the layer that it belongs to.
        side: "read" where its input side meets the residual stream, "write" where its output side does.
        norm: path in a layer of the RMSNorm between it and the stream; None where there is none.
    """

    module: str
    part: Literal["attention", "mlp"]
    side: Literal["read", "write"]
    norm: str | None = None


class ModelRef(Record):
    """A base model: `embedded:NAME`, a local folder or a hub id, with its revision and the dtype it runs in.

    `roles` says what its matrices do where their names do not: for Gemma, Llama, Mistral and Qwen it stays empty.
    """

    id: str
    revision: str | None = None
    dtype: Dtype = "float32"
    roles: tuple[MatrixRole, ...] = ()


class SaeRef(Record):
    """One SAE a layer: where they lie and the site that they read.

    Attributes:
        location: a folder, `embedded:NAME`, or a release that sae_lens knows (`gemma-scope-2-4b-it-res-all`).
        site: what they read in the model.
        width: of the release's or folder's several SAEs a layer, those with this width in their name (`16k`).
        l0: those with this density in their name (`small`).
        revision: of the release's repository.
    """

    location: str
    site: Site = "resid_post"
    width: str | None = None
    l0: str | None = None
    revision: str | None = None

    @property
    def label(self) -> str:
        """The SAEs in a few words, for a list to choose from."""
        density = self.l0 and f"L0 {self.l0}"
        return ", ".join(part for part in (self.location, self.site, self.width, density) if part)


class TaskVectorRef(Record):
    """A task vector over the recipe's model: where its fine-tune lies, and how it is called.

    `tuned` is a checkpoint (tau = fine-tuned - base), a LoRA adapter in peft format (tau = scale * B A), or a
    safetensors delta (tau as it is): a folder or file, `embedded:NAME`, or a hub id with its revision.
    """

    name: str
    tuned: str
    revision: str | None = None


class SetupChange(Record):
    """What a visitor changed in a profile: a model and SAEs named instead of its own, and task vectors added to it.

    `model` None: the profile's own model and SAEs. With a model, `saes` None means that there are none.
    """

    model: ModelRef | None = None
    saes: SaeRef | None = None
    task_vectors: tuple[TaskVectorRef, ...] = ()


class ProblemsRef(Record):
    """Problems in MATH's format, control texts of the same form, and the shots of the prompt; a place may be missing.

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
