"""Results of the pipeline: plain pydantic records without torch, so that pages and figures import quickly.

The field names are also those of the command line's JSON. Fractions are in [0, 1]; undefined numbers are None.
"""

from stethoscope.results.base import Result
from stethoscope.results.bench import (
    ArmRow,
    BenchItem,
    BenchPlanResult,
    BenchResult,
    ComparisonRow,
    LayerClaim,
    Sensitivity,
    TotalRow,
    idle_arms,
    shortage,
)
from stethoscope.results.diagnosis import (
    DiagnosisResult,
    LatentExample,
    LatentExamplesResult,
    LatentRow,
    LatentsResult,
    SelectedLatent,
    SpecificityCell,
    StabilityResult,
    StabilityRow,
)
from stethoscope.results.download import DownloadFile, DownloadPart, DownloadResult, Refusal
from stethoscope.results.edit import (
    ALL_SUBJECTS,
    Certificate,
    DoseResult,
    DoseRow,
    ExportResult,
    ProbeResult,
    ProbeRow,
    TextColumn,
    TextComparison,
    TextPair,
    TokenChance,
    TopTokens,
)
from stethoscope.results.energy import EnergyCell, EnergyResult
from stethoscope.results.gain import AgreementRow, GainCell, GainResult, PredictorCell, RandomSet, SetGain
from stethoscope.results.info import InfoResult, ModelRow, SaeRow, TaskVectorRow
from stethoscope.results.memory import MemoryPart, MemoryResult, MemoryStack
from stethoscope.results.preflight import PreflightCheck, PreflightResult, PreflightRow
from stethoscope.results.problems import ProblemsResult, ProblemsRow, RiskyGold
from stethoscope.results.rank import RankedSet, RankResult, RankRow
from stethoscope.results.reach import Ground, MovedWeights, Reach
from stethoscope.results.settings import RunSettings

__all__ = [
    "ProblemsResult",
    "ProblemsRow",
    "RiskyGold",
    "ALL_SUBJECTS",
    "AgreementRow",
    "ArmRow",
    "BenchItem",
    "BenchPlanResult",
    "BenchResult",
    "Certificate",
    "ComparisonRow",
    "DiagnosisResult",
    "DoseResult",
    "DoseRow",
    "DownloadFile",
    "DownloadPart",
    "DownloadResult",
    "EnergyCell",
    "Ground",
    "MovedWeights",
    "Reach",
    "EnergyResult",
    "ExportResult",
    "GainCell",
    "GainResult",
    "InfoResult",
    "LatentExample",
    "LatentExamplesResult",
    "LatentRow",
    "LatentsResult",
    "LayerClaim",
    "MemoryPart",
    "MemoryResult",
    "MemoryStack",
    "ModelRow",
    "PredictorCell",
    "PreflightCheck",
    "PreflightResult",
    "PreflightRow",
    "ProbeResult",
    "ProbeRow",
    "RandomSet",
    "RankedSet",
    "RankResult",
    "RankRow",
    "Refusal",
    "Result",
    "RunSettings",
    "SaeRow",
    "SelectedLatent",
    "Sensitivity",
    "SetGain",
    "SpecificityCell",
    "StabilityResult",
    "StabilityRow",
    "TaskVectorRow",
    "TextColumn",
    "TextComparison",
    "TextPair",
    "TokenChance",
    "TopTokens",
    "TotalRow",
    "idle_arms",
    "shortage",
]
