"""What a user types or a store keeps: references, recipes and specs, all frozen, typed and hashed whole.

A *spec* is everything that decides a result. Pages and the command line build the same spec and hand it to the same
`pipeline.run`, so a result can be found again by the content id of its spec.
"""

from stethoscope.records.base import (
    SCHEMA_VERSION,
    Dtype,
    Record,
    SampleSize,
    Site,
    Split,
    finite_or_none,
    nested_records,
    sample_size,
)
from stethoscope.records.diagnosis import (
    ADD_SAES,
    SCORE_NAMES,
    DiagnoseSpec,
    EnergySpec,
    LatentExamplesSpec,
    LatentsSpec,
    ScoreName,
    StabilitySpec,
)
from stethoscope.records.gain import GainSpec
from stethoscope.records.grade import GoldReading, Grade, GradeStatus
from stethoscope.records.rank import RankSpec
from stethoscope.records.recipe import (
    Arm,
    EditRecipe,
    LayerAlpha,
    NormMatchedArm,
    Prediction,
    ProjectedArm,
    RandomSubspaceArm,
    RawArm,
    ServedArm,
)
from stethoscope.records.references import MatrixRole, ModelRef, ProblemsRef, SaeRef, TaskVectorRef
from stethoscope.records.specs import (
    BenchArm,
    BenchPlanSpec,
    BenchSpec,
    CompareTextSpec,
    DoseSpec,
    DownloadSpec,
    ExportSpec,
    InfoSpec,
    MemorySpec,
    PreflightSpec,
    ProbeSpec,
    ProblemsSpec,
    Spec,
)

__all__ = [
    "Arm",
    "BenchArm",
    "BenchPlanSpec",
    "BenchSpec",
    "CompareTextSpec",
    "DiagnoseSpec",
    "DoseSpec",
    "DownloadSpec",
    "Dtype",
    "EditRecipe",
    "EnergySpec",
    "ExportSpec",
    "GainSpec",
    "GoldReading",
    "Grade",
    "GradeStatus",
    "InfoSpec",
    "MemorySpec",
    "LatentExamplesSpec",
    "LatentsSpec",
    "LayerAlpha",
    "MatrixRole",
    "ModelRef",
    "NormMatchedArm",
    "Prediction",
    "PreflightSpec",
    "ProbeSpec",
    "ProblemsSpec",
    "ProblemsRef",
    "ProjectedArm",
    "RandomSubspaceArm",
    "RankSpec",
    "RawArm",
    "ServedArm",
    "Record",
    "SCHEMA_VERSION",
    "ADD_SAES",
    "SCORE_NAMES",
    "SaeRef",
    "SampleSize",
    "ScoreName",
    "Site",
    "Spec",
    "Split",
    "StabilitySpec",
    "TaskVectorRef",
    "finite_or_none",
    "nested_records",
    "sample_size",
]
