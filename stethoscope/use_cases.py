"""Every use case, said once: its name, what it is asked, what it returns, what is kept, and which page shows it.

How it is computed stands in the module `stethoscope.pipeline.<kind>` (see `pipeline`). This module imports no torch, so
that the store, the command line and the pages derive their tables from it, too.
"""

from typing import NamedTuple

from stethoscope import records, results
from stethoscope.records import Spec
from stethoscope.results import Result


class Place(NamedTuple):
    """Where a stored run is opened again: the page, and the slot of the card that shows it."""

    page: str
    slot: str


class UseCase(NamedTuple):
    """One use case.

    Attributes:
        kind: its short name: of its module in `pipeline`, in the store, in lists and filters.
        spec: what it is asked.
        result: what it returns.
        kept: whether every run of it becomes a record of the history.
        reused: whether a stored result stands for a new run of the same spec, weights and problems.
        repeatable: whether a new job does the work once more although one of the same spec is done in this process: it
            has effects to be had again, or tells what is true at the moment.
        resumable: whether it stores finished blocks, so that a stopped run goes on where it stood.
        place: None where no page shows a stored run of it.
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
    """Return the use case that `spec` asks for."""
    return _BY_SPEC[type(spec)]


def use_case_called(kind: str) -> UseCase | None:
    """Return the use case of that kind, None where there is none."""
    return _BY_KIND.get(kind)
