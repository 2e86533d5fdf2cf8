"""A profile: a model, its SAEs, task vectors and problems, with suitable thresholds."""

from stethoscope.errors import ProfileError
from stethoscope.locations import local_path
from stethoscope.records import (
    ADD_SAES,
    ASKED,
    HEARD,
    SCORED,
    DiagnoseSpec,
    ModelRef,
    ProblemField,
    ProblemsRef,
    Record,
    SaeRef,
    Site,
    TaskVectorRef,
)

WOULD_BE: dict[ProblemField, str] = {
    "problems": 'problems = "a folder, a .jsonl file or a data set of the hub"',
    "subjects": "subjects = a list of the problems' subjects",
    "shots": 'shots = "a JSON file of few-shot examples", or "lm_eval:minerva_math"',
    "controls": 'controls = "texts of the same form", such as "embedded:corpora/controls"',
    "control_names": 'control_names = a list of control corpora, such as ["plain_prose"]',
}


class Suggestion(Record):
    """A public task vector to try, and what is known about it; it is used only on request."""

    task_vector: TaskVectorRef
    known: str


class Profile(Record):
    """A model with everything that is needed to diagnose it, edit it and benchmark the edit.

    `live_share` and `dense_rate` are thresholds of the specificity score that suit the SAEs' density; `top_n` is the
    number of layers that "pick top n" picks. `other_saes` are alternative SAEs of the same model (another site, width
    or density), and `suggestions` are public task vectors. `saes` and fields of `problems` may be missing: raw edits,
    text comparison and exports need neither. For the other use cases, `cannot_listen`, `cannot_ask` and `cannot_score`
    say what is missing.
    """

    name: str
    title: str
    model: ModelRef
    saes: SaeRef | None = None
    other_saes: tuple[SaeRef, ...] = ()
    task_vectors: tuple[TaskVectorRef, ...] = ()
    suggestions: tuple[Suggestion, ...] = ()
    problems: ProblemsRef = ProblemsRef()
    live_share: float = 0.01
    dense_rate: float = 0.10
    top_k: int = 16
    top_n: int = 4
    documents: int = 128

    def task_vector(self, name: str | None = None) -> TaskVectorRef:
        """Return the task vector named `name` (the first if None), or the one at the location `name`.

        A location is a path, `embedded:NAME`, or a hub id with an optional revision: user/model@COMMIT.

        Raises:
            ProfileError: an unknown name, or no name in a profile without task vectors.
        """
        if name is None and self.task_vectors:
            return self.task_vectors[0]
        for task_vector in self.task_vectors:
            if task_vector.name == name:
                return task_vector
        if name is not None and (local_path(name) is not None or "/" in name):
            return _task_vector_at(name)
        raise ProfileError(
            f"profile {self.name} has no task vector" + (" of that name" if name else ""),
            got=name and repr(name),
            expected=" or ".join(task_vector.name for task_vector in self.task_vectors) or None,
            next_step="Use one of these, a path or a hub id."
            if self.task_vectors
            else "Add one on the Setup page or under [[task_vectors]] in your own profile, or use a path or hub id.",
        )

    @property
    def site(self) -> Site:
        """The site of its SAEs; the residual stream if it has none."""
        return "resid_post" if self.saes is None else self.saes.site

    def no_saes(self) -> ProfileError:
        """Return the error for use cases that need SAEs when the profile has none."""
        return ProfileError(
            f"profile {self.name} has no SAEs",
            expected='[saes] with location = "a folder, hub id or sae_lens release"',
            next_step=ADD_SAES,
        )

    def cannot_listen(self) -> ProfileError | None:
        """Return the error that a diagnosis would raise because of missing fields; None if nothing is missing."""
        return self.no_saes() if self.saes is None else self._lacking(HEARD, "a diagnosis")

    def cannot_measure_gains(self) -> ProfileError | None:
        """Return the error that layer gains would raise because of missing fields; None if nothing is missing."""
        return self._lacking(HEARD, "a layer's gain")

    def cannot_ask(self) -> ProfileError | None:
        """Return the error that a benchmark would raise because of missing fields; None if nothing is missing."""
        return self._lacking(ASKED, "a benchmark")

    def cannot_score(self) -> ProfileError | None:
        """Return the error that a likelihood check would raise because of missing fields; None if nothing is
        missing."""
        return self._lacking(SCORED, "the likelihood of gold solutions")

    def _lacking(self, fields: tuple[ProblemField, ...], purpose: str) -> ProfileError | None:
        missing = self.problems.lacking(fields)
        if not missing:
            return None
        return ProfileError(
            f"profile {self.name} has no {' and no '.join(missing)}, required for {purpose}",
            expected="; ".join(WOULD_BE[name] for name in missing),
            next_step=(
                "Add this under [problems] in the profile. Raw edits, text comparison and exports do not need it."
            ),
        )

    def changed(self, *, model: ModelRef, saes: SaeRef | None) -> "Profile":
        """Return the profile with another model or other SAEs; its former SAEs remain as alternatives.

        A model with another id does not inherit what belonged to the former model: task vectors, suggestions, other
        SAEs.
        """
        if model.id != self.model.id:
            nothing = {"other_saes": (), "task_vectors": (), "suggestions": ()}
            return self.model_copy(update={"title": model.id, "model": model, "saes": saes} | nothing)
        others = tuple(ref for ref in self.known_saes if ref != saes)
        return self.model_copy(update={"model": model, "saes": saes, "other_saes": others})

    def saes_at(self, site: Site | None = None) -> SaeRef:
        """Return the profile's SAEs for `site` (its default site if None); raise `ProfileError` if it has none."""
        known = self.known_saes
        if not known:
            raise self.no_saes()
        for ref in known:
            if site in (None, ref.site):
                return ref
        raise ProfileError(
            f"profile {self.name} has no SAEs for this site",
            got=site,
            expected=" or ".join(dict.fromkeys(ref.site for ref in known)),
            next_step="Add them under other_saes in your own profile.",
        )

    @property
    def known_saes(self) -> tuple[SaeRef, ...]:
        """The profile's SAEs, followed by the alternatives."""
        return self.other_saes if self.saes is None else (self.saes, *self.other_saes)

    def diagnose_spec(self, *, control: str | None = None, silent: bool = False, **fields: object) -> DiagnoseSpec:
        """Return the profile's diagnosis with `fields` (see `DiagnoseSpec`) changed; a field of None keeps the default.

        Args:
            control: a control corpus of the profile.
            silent: return the spec without SAEs, for use cases that need only documents and thresholds.

        Raises:
            ProfileError: an unknown control corpus; no SAEs, problems or control corpora.
        """
        why = self.cannot_measure_gains() if silent else self.cannot_listen()
        if why is not None:
            raise why
        control = control or self.problems.control_names[0]
        if control not in self.problems.control_names:
            raise ProfileError(
                f"profile {self.name} has no such control corpus",
                got=repr(control),
                expected=" or ".join(self.problems.control_names),
                next_step="Use --control with one of these.",
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
        """Return `subjects`; raise `ProfileError` for the first that the profile does not have."""
        known = self.problems.subjects + self.problems.control_names
        for subject in subjects:
            if subject not in known:
                raise ProfileError(
                    f"profile {self.name} has no such subject",
                    got=repr(subject),
                    expected="one of " + ", ".join(known),
                    next_step="Choose one of these.",
                )
        return subjects


def _task_vector_at(location: str) -> TaskVectorRef:
    place, _, revision = location.partition("@") if local_path(location) is None else (location, "", "")
    called = place.rstrip("/").rpartition("/")[2].removeprefix("embedded:").removesuffix(".safetensors")
    return TaskVectorRef(name=called, tuned=place, revision=revision or None)
