"""Named bundles of model, SAEs, task vectors and problems: `mini` is shipped, your own is a TOML file.

A profile only saves typing: every spec is built from its parts, and no result depends on the profile's name.
"""

import tomllib
from pathlib import Path

from pydantic import Field, ValidationError

from stethoscope.errors import ProfileError
from stethoscope.records import DiagnoseSpec, ModelRef, ProblemsRef, Record, SaeRef, TaskVectorRef

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


class Profile(Record):
    """A model with everything that is needed to listen to it, edit it and judge the edit.

    `live_share` and `dense_rate` are the cuts of the specificity score that suit the SAEs' density;
    `top_n` is the number of layers that "pick top n" takes.
    """

    name: str
    title: str
    model: ModelRef
    saes: SaeRef
    task_vectors: tuple[TaskVectorRef, ...] = Field(min_length=1)
    problems: ProblemsRef
    live_share: float = 0.01
    dense_rate: float = 0.10
    top_k: int = 16
    top_n: int = 4
    documents: int = 128

    def task_vector(self, name: str | None = None) -> TaskVectorRef:
        """Return the task vector called `name` (the first where None); raise `ProfileError` for an unknown name."""
        if name is None:
            return self.task_vectors[0]
        for task_vector in self.task_vectors:
            if task_vector.name == name:
                return task_vector
        raise ProfileError(
            f"profile {self.name} has no task vector of that name",
            got=repr(name),
            expected=" or ".join(task_vector.name for task_vector in self.task_vectors),
            next_step="Name one of these with --task-vector.",
        )

    def diagnose_spec(self, *, control: str | None = None, **fields: object) -> DiagnoseSpec:
        """Return the profile's diagnosis, with `fields` (see `DiagnoseSpec`) changed; None keeps the default."""
        control = control or self.problems.control_names[0]
        if control not in self.problems.control_names:
            raise ProfileError(
                f"profile {self.name} has no control corpus of that name",
                got=repr(control),
                expected=" or ".join(self.problems.control_names),
                next_step="Name one of these with --control.",
            )
        base = {
            "model": self.model,
            "saes": self.saes,
            "problems": self.problems,
            "control": control,
            "top_k": self.top_k,
            "documents": self.documents,
            "live_share": self.live_share,
            "dense_rate": self.dense_rate,
        }
        chosen = {name: value for name, value in fields.items() if value is not None}
        return DiagnoseSpec.model_validate(base | chosen)

    def check_subjects(self, subjects: tuple[str, ...]) -> tuple[str, ...]:
        """Return `subjects`, or raise `ProfileError` naming the first that the profile does not have."""
        known = self.problems.subjects + self.problems.control_names
        for subject in subjects:
            if subject not in known:
                raise ProfileError(
                    f"profile {self.name} has no subject of that name",
                    got=repr(subject),
                    expected="one of " + ", ".join(known),
                )
        return subjects


MINI = Profile(
    name="mini",
    title="Mini Gemma 3 (shipped)",
    model=ModelRef(id="embedded:base"),
    saes=SaeRef(location="embedded:saes"),
    task_vectors=(
        TaskVectorRef(name="math", tuned="embedded:math"),
        TaskVectorRef(name="forgetting", tuned="embedded:forgetting"),
        TaskVectorRef(name="math-lora", tuned="embedded:math-lora"),
        TaskVectorRef(name="stories", tuned="embedded:stories"),
    ),
    problems=ProblemsRef(
        problems="embedded:problems",
        controls="embedded:controls",
        shots="embedded:shots.json",
        subjects=SUBJECTS,
        control_names=("facts_and_stories", "digits_and_codes"),
    ),
    dense_rate=0.5,
    documents=64,
)

PROFILES = {profile.name: profile for profile in (MINI,)}


def load_profile(name: str) -> Profile:
    """Return the profile called `name`, or the one in the TOML file at `name`.

    Raises:
        ProfileError: no such profile, an unreadable file, or fields that do not fit.
    """
    if name in PROFILES:
        return PROFILES[name]
    if not name.endswith(".toml"):
        raise ProfileError(
            "no profile of that name",
            got=repr(name),
            expected=" or ".join(PROFILES) + ", or a path ending in .toml",
            next_step="Pass one of these to --profile.",
        )
    try:
        return Profile.model_validate(tomllib.loads(Path(name).read_text(encoding="utf-8")))
    except OSError as error:
        raise ProfileError(f"cannot read profile {name}", got=error.strerror, next_step="Check the path.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"profile {name} is not valid TOML", got=error) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "file"
        raise ProfileError(f"profile {name} does not fit at {field}", got=first["msg"]) from error
