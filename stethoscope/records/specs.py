"""What a job is asked: probe, text, benchmark, export, info. Each decides its result as a whole."""

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
    """The probe at every master alpha: one curve a subject and control corpus.

    The recipe's own master alpha does not matter (it is set to 1), so that moving the slider asks for the same curve.
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
        prompts: the texts as typed; with `framed` each is a problem put behind the shots.
        chat_template: put each (framed) text as the user's message into the tokenizer's chat template.
        third: a second edit to stand beside the first, for example the whole fine-tune.
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
        name: what it is called in tables and figures; nothing else is read from it.
        recipe: its edit; None is the base.
        role: "recipe" is judged; the others are controls: on other layers ("all", "bottom", "last", "random"), on the
            same layers projected, or only where a projection could move them ("filtered"), and the whole fine-tuned
            model. Set where the arm is made.
    """

    name: str
    recipe: EditRecipe | None = None
    role: ArmRole = "recipe"


class BenchSpec(Spec):
    """A paired comparison of arms on the same seeded problems; the first arm is the reference.

    Attributes:
        n: problems per subject, or "all" of them; a subject with fewer is asked all that it has. A larger n with the
            same seed contains the smaller sample.
        max_new_tokens: where an answer is cut off (256 is HFLM's default).
        chat_template: put problem and shots as the user's message into the tokenizer's chat template.
        block_size: problems that every arm answers before the next ones; finished blocks survive a stop.
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
    """What would this benchmark ask, and how much of it is answered already?

    `after` names the newest benchmark at the time of asking: what is stored changes with each.
    """

    bench: BenchSpec
    after: str = ""


class ExportSpec(Spec):
    """Write the edited model into a new folder.

    Attributes:
        kind: a plain checkpoint, the bare delta, a mergekit configuration, or all of these.
        max_shard_bytes: largest weights file of the checkpoint.
    """

    recipe: EditRecipe
    out: str
    kind: Literal["all", "checkpoint", "delta", "mergekit"] = "all"
    max_shard_bytes: int = Field(default=5 * 10**9, ge=10**4, le=10**18)


class InfoSpec(Spec):
    """What a profile holds: sizes, SAEs and the relative norm of each task vector by layer."""

    model: ModelRef
    saes: SaeRef | None
    task_vectors: tuple[TaskVectorRef, ...]


class ProblemsSpec(Spec):
    """What the problems of a split hold, and which of their gold answers can be read.

    Attributes:
        subjects: subjects or control corpora; none means all subjects.
        n: per subject, the sample that a benchmark of this seed would ask.
    """

    problems: ProblemsRef
    split: Split = "test"
    subjects: tuple[str, ...] = ()
    n: SampleSize = "all"
    seed: Seed = 0


class PreflightSpec(Spec):
    """Does this task vector fit the base, and does it survive the rounding to the base's dtype?

    `problems`: whose texts a tokenizer of the task vector's own has to read as the base's does; None: no such texts.
    """

    model: ModelRef
    task_vector: TaskVectorRef
    problems: ProblemsRef | None = None


class MemorySpec(Spec):
    """Does it fit? What each use case holds in memory, from config.json and the SAEs' sizes, before anything is loaded.

    Attributes:
        capacity_bytes: ask about a device of this size instead of the one that is there.
        edited_layers: how many layers a recipe edits at once; None is all of them.
        documents: per subject, of `document_tokens` tokens each, when listening.
        batch_size: prompts answered at once, of `prompt_tokens` tokens of which `shared_tokens` all have in common.
        solution_tokens: scored at the end of each text of a probe.
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
    """What would the hub be asked for, and what is here already? Reads listings, and fetches none of the files.

    Attributes:
        task_vectors: those that are to be fetched, too.
        problems: None leaves problems and controls out.
    """

    model: ModelRef
    saes: SaeRef | None
    task_vectors: tuple[TaskVectorRef, ...] = ()
    problems: ProblemsRef | None = None
