"""Use case: download plan. Compares the hub's file lists with the cache and the disk, without downloading files.

File lists of gated repositories are public. Therefore the header of one missing file is also requested from each
repository, so that a missing licence is reported before a long download.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

from stethoscope import hub
from stethoscope.delta.task_vector import FILES as TASK_VECTOR_FILES
from stethoscope.errors import UserError
from stethoscope.hub import CHECKPOINT, FetchPlan, plan_fetch
from stethoscope.locations import local_path
from stethoscope.minerva.sources import DATA_SET_FILES
from stethoscope.pipeline.context import Context
from stethoscope.progress import Progress
from stethoscope.records import DownloadSpec
from stethoscope.releases import repository_of
from stethoscope.results import DownloadFile, DownloadPart, DownloadResult, Refusal
from stethoscope.sae.places import plan_saes


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of the profile on the hub, and how to plan its download."""

    name: str
    location: str
    repo_type: Literal["model", "dataset"]
    plan: Callable[[Progress], FetchPlan | None]


def run(spec: DownloadSpec, context: Context, progress: Progress) -> DownloadResult:
    """Return the files to download for each part; if a part fails, it contains the error, and the others are still
    listed."""
    wanted = list(_parts(spec))
    progress.start("Requesting file lists from the hub", len(wanted))
    parts = []
    for part in wanted:
        progress.check_cancel()
        parts.append(_planned(part, progress))
        progress.advance()
    return DownloadResult(
        parts=tuple(parts), cache=str(hub.cache_folder()), free_bytes=hub.free_bytes(), offline=hub.is_offline()
    )


def _parts(spec: DownloadSpec) -> Iterator[_Part]:
    model, saes, problems = spec.model, spec.saes, spec.problems
    if local_path(model.id) is None:
        yield _Part("model", model.id, "model", _planner(model.id, model.revision, CHECKPOINT))
    if saes is not None and local_path(saes.location) is None:
        yield _Part("SAEs", repository_of(saes.location) or saes.location, "model", partial(plan_saes, saes))
    for ref in spec.task_vectors:
        if local_path(ref.tuned) is None:
            yield _Part(
                f"task vector {ref.name}", ref.tuned, "model", _planner(ref.tuned, ref.revision, TASK_VECTOR_FILES)
            )
    if problems is not None and problems.problems is not None and local_path(problems.problems) is None:
        plan = _planner(problems.problems, problems.revision, DATA_SET_FILES, "dataset")
        yield _Part("problems", problems.problems, "dataset", plan)
    if problems is not None and problems.controls is not None and local_path(problems.controls) is None:
        yield _Part(
            "controls", problems.controls, "dataset", _planner(problems.controls, None, DATA_SET_FILES, "dataset")
        )


def _planner(
    repo_id: str, revision: str | None, patterns: tuple[str, ...], repo_type: str = "model"
) -> Callable[[Progress], FetchPlan]:
    return lambda progress: plan_fetch(
        repo_id, revision=revision, patterns=patterns, repo_type=repo_type, progress=progress
    )


def _planned(part: _Part, progress: Progress) -> DownloadPart:
    plan, refusal = None, None
    try:
        plan = part.plan(progress)
        if plan is not None:
            hub.check_access(plan, progress)
    except UserError as error:
        refusal = Refusal(what=error.what, got=error.got, expected=error.expected, next_step=error.next_step)
    return DownloadPart(
        part=part.name,
        location=part.location,
        repo_type=part.repo_type,
        revision=None if plan is None else plan.revision,
        files=()
        if plan is None
        else tuple(DownloadFile(name=file.name, size_bytes=file.size_bytes, here=file.cached) for file in plan.files),
        begun_bytes=0 if plan is None else plan.begun_bytes,
        refusal=refusal,
    )
