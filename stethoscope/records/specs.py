"""Specs of jobs: likelihood check, text comparison, benchmark, export, info and others. A spec determines its
result."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from stethoscope.records.base import MOST, Record, SampleSize, Seed, Spec, Split
from stethoscope.records.recipe import EditRecipe
from stethoscope.records.references import ModelRef, ProblemsRef, SaeRef, TaskVectorRef


class ProbeSpec(Spec):
    """Teacher-forced NLL of gold solutions, edited minus base, on a fixed seeded set of problems and controls."""

    recipe: EditRecipe
    problems: ProblemsRef
    split: Split = "dev"
    n: int = Field(default=16, ge=2, le=MOST)
    seed: Seed = 0


class DoseSpec(Spec):
    """The likelihood check at several master alphas: one curve per subject and control corpus.

    The recipe's own master alpha is set to 1, so that moving the slider requests the same curve.
    """

    recipe: EditRecipe
    problems: ProblemsRef
    alphas: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    split: Split = "dev"
    n: int = Field(default=16, ge=2, le=MOST)
    seed: Seed = 0

    @field_validator("recipe")
    @classmethod
    def _free_alpha(cls, recipe: EditRecipe) -> EditRecipe:
        return recipe.model_copy(update={"master_alpha": 1.0})

    @field_validator("alphas")
    @classmethod
    def _check_alphas(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        if not alphas or list(alphas) != sorted(set(alphas)):
            raise ValueError("alphas must increase")
        return alphas


class CompareTextSpec(Spec):
    """Greedy text of the base and of the edited model for the same prompts.

    Attributes:
        prompts: the texts as typed; with `framed`, each is a problem that is appended to the few-shot examples.
        chat_template: format each text as a user message with the tokenizer's chat template.
        third: a second edit to show next to the first, for example the full fine-tune.
    """

    recipe: EditRecipe
    prompts: tuple[str, ...] = Field(min_length=1)
    problems: ProblemsRef
    framed: bool = True
    chat_template: bool = False
    third: EditRecipe | None = None
    max_new_tokens: int = Field(default=128, ge=1, le=MOST)


ArmRole = Literal["recipe", "all", "bottom", "last", "random", "filtered", "fine-tune"]


class BenchArm(Record):
    """One arm of a benchmark.

    Attributes:
        name: label in tables and figures; it has no other effect.
        recipe: the edit; None for the base.
        role: "recipe" for the edit under test. The others are controls: on other layers ("all", "bottom", "last",
            "random"), projected or restricted to the matrices that a projection can edit ("filtered"), or the full
            fine-tune. Set when the arm is created.
    """

    name: str
    recipe: EditRecipe | None = None
    role: ArmRole = "recipe"


class BenchSpec(Spec):
    """A paired comparison of arms on the same seeded problems; the first arm is the reference.

    Attributes:
        n: problems per subject, or "all"; if a subject has fewer, all of them are used. With the same seed, a larger n
            contains the smaller sample.
        max_new_tokens: maximum length of an answer (256 is HFLM's default).
        chat_template: format problem and few-shot examples as a user message with the tokenizer's chat template.
        block_size: problems per block; all arms finish a block before the next starts, and finished blocks survive an
            interruption.
        margin: non-inferiority margin, as a fraction.
    """

    model: ModelRef
    problems: ProblemsRef
    arms: tuple[BenchArm, ...]
    subjects: tuple[str, ...]
    n: SampleSize = 50
    split: Split = "test"
    max_new_tokens: int = Field(default=256, ge=1, le=MOST)
    chat_template: bool = False
    batch_size: int = Field(default=32, ge=1, le=MOST)
    block_size: int = Field(default=64, ge=1, le=MOST)
    margin: float = Field(default=0.03, gt=0, lt=1)
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_arms(self) -> "BenchSpec":
        names = [arm.name for arm in self.arms]
        if not names or len(set(names)) != len(names):
            raise ValueError("arms need at least one entry and distinct names")
        return self


class BenchPlanSpec(Spec):
    """Plan of a benchmark: its problems, and how many answers are already stored.

    `after` is the id of the newest benchmark, because each benchmark changes what is stored.
    """

    bench: BenchSpec
    after: str = ""


class ExportSpec(Spec):
    """Write the edited model into a new folder.

    Attributes:
        kind: a checkpoint, only the delta, a mergekit configuration, or all of these.
        max_shard_bytes: maximum size of a weights file.
    """

    recipe: EditRecipe
    out: str
    kind: Literal["all", "checkpoint", "delta", "mergekit"] = "all"
    max_shard_bytes: int = Field(default=5 * 10**9, ge=10**4, le=10**18)


class InfoSpec(Spec):
    """Contents of a profile: sizes, SAEs and the relative norm of each task vector by layer."""

    model: ModelRef
    saes: SaeRef | None
    task_vectors: tuple[TaskVectorRef, ...]


class ProblemsSpec(Spec):
    """Contents of a split of problems, and which gold answers can be parsed.

    Attributes:
        subjects: subjects or control corpora; none means all subjects.
        n: problems per subject, the same sample as in a benchmark with this seed.
    """

    problems: ProblemsRef
    split: Split = "test"
    subjects: tuple[str, ...] = ()
    n: SampleSize = "all"
    seed: Seed = 0


class PreflightSpec(Spec):
    """Check of a task vector: whether it fits the base, and how much survives rounding to the base's dtype.

    `problems`: texts that the task vector's own tokenizer must split like the base's; None to skip this check.
    """

    model: ModelRef
    task_vector: TaskVectorRef
    problems: ProblemsRef | None = None


class MemorySpec(Spec):
    """Estimated memory of each use case, from config.json and the SAEs' sizes, before anything is loaded.

    Attributes:
        capacity_bytes: memory of an assumed device; None for the actual device.
        edited_layers: number of layers that a recipe edits; None for all.
        documents: number per subject in a diagnosis, with `document_tokens` tokens each.
        batch_size: prompts per batch, with `prompt_tokens` tokens each, of which `shared_tokens` are common to all.
        solution_tokens: number of scored tokens at the end of each text in a likelihood check.
    """

    model: ModelRef
    saes: SaeRef | None
    capacity_bytes: int | None = Field(default=None, gt=0, le=10**18)
    edited_layers: int | None = Field(default=None, ge=0, le=MOST)
    documents: int = Field(default=128, ge=1, le=MOST)
    document_tokens: int = Field(default=128, ge=2, le=MOST)
    batch_size: int = Field(default=32, ge=1, le=MOST)
    prompt_tokens: int = Field(default=900, ge=2, le=MOST)
    shared_tokens: int = Field(default=700, ge=0, le=MOST)
    max_new_tokens: int = Field(default=256, ge=1, le=MOST)
    solution_tokens: int = Field(default=200, ge=1, le=MOST)


class DownloadSpec(Spec):
    """Files that would be downloaded, and which are already here. Reads file lists only.

    Attributes:
        task_vectors: task vectors to include.
        problems: None to leave out problems and controls.
    """

    model: ModelRef
    saes: SaeRef | None
    task_vectors: tuple[TaskVectorRef, ...] = ()
    problems: ProblemsRef | None = None
