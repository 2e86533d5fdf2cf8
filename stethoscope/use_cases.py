"""Registry of use cases: name, spec, result, whether runs are stored, and the page that shows them.

The module `stethoscope.pipeline.<kind>` computes it (see `pipeline`). This module does not import torch, so that the
store, the command line and the pages can derive their tables from it.
"""

from typing import NamedTuple

from stethoscope import records, results
from stethoscope.records import Spec
from stethoscope.results import Result


class Place(NamedTuple):
    """Where a stored run is reopened: the page, and the slot of its card."""

    page: str
    slot: str


class UseCase(NamedTuple):
    """One use case.

    Attributes:
        kind: short name, used for the module in `pipeline`, in the store, and in lists and filters.
        spec: class of its spec.
        result: class of its result.
        kept: whether its runs are stored.
        reused: whether a stored result is returned for the same spec, weights and problems.
        repeatable: whether a new job runs even if the same spec was already run in this process, because it has side
            effects or reports the current state.
        resumable: whether it stores finished blocks, so that a stopped run can be continued.
        place: where stored runs are shown; None if no page shows them.
    """

    kind: str
    spec: type[Spec]
    result: type[Result]
    kept: bool = False
    reused: bool = False
    repeatable: bool = False
    resumable: bool = False
    place: Place | None = None


USE_CASES = (
    UseCase("info", records.InfoSpec, results.InfoResult),
    UseCase("memory", records.MemorySpec, results.MemoryResult, repeatable=True),
    UseCase("download", records.DownloadSpec, results.DownloadResult, repeatable=True),
    UseCase("preflight", records.PreflightSpec, results.PreflightResult),
    UseCase("problems", records.ProblemsSpec, results.ProblemsResult),
    UseCase(
        "diagnose",
        records.DiagnoseSpec,
        results.DiagnosisResult,
        kept=True,
        reused=True,
        place=Place("diagnose", "diagnosis"),
    ),
    UseCase(
        "stability",
        records.StabilitySpec,
        results.StabilityResult,
        kept=True,
        reused=True,
        place=Place("diagnose", "stability"),
    ),
    UseCase("latents", records.LatentsSpec, results.LatentsResult),
    UseCase("examples", records.LatentExamplesSpec, results.LatentExamplesResult),
    UseCase(
        "energy", records.EnergySpec, results.EnergyResult, kept=True, reused=True, place=Place("diagnose", "energy")
    ),
    UseCase("gain", records.GainSpec, results.GainResult, kept=True, reused=True, place=Place("diagnose", "gain")),
    UseCase("probe", records.ProbeSpec, results.ProbeResult),
    UseCase("dose", records.DoseSpec, results.DoseResult, kept=True, reused=True, place=Place("edit", "dose")),
    UseCase("rank", records.RankSpec, results.RankResult, kept=True, reused=True, place=Place("benchmark", "rank")),
    UseCase("compare_text", records.CompareTextSpec, results.TextComparison, kept=True, place=Place("edit", "compare")),
    UseCase(
        "bench", records.BenchSpec, results.BenchResult, kept=True, resumable=True, place=Place("benchmark", "bench")
    ),
    UseCase("plan", records.BenchPlanSpec, results.BenchPlanResult),
    UseCase(
        "export", records.ExportSpec, results.ExportResult, kept=True, repeatable=True, place=Place("edit", "export")
    ),
)
KEPT_KINDS = tuple(case.kind for case in USE_CASES if case.kept)
_BY_SPEC = {case.spec: case for case in USE_CASES}
_BY_KIND = {case.kind: case for case in USE_CASES}
RESULT_OF_NAME = {case.result.__name__: case.result for case in USE_CASES}


def use_case_of(spec: Spec) -> UseCase:
    """Return the use case of `spec`."""
    return _BY_SPEC[type(spec)]


def use_case_called(kind: str) -> UseCase | None:
    """Return the use case with this kind; None if there is none."""
    return _BY_KIND.get(kind)
