"""Did the stethoscope hear right? What decides the measured gain of each layer and its agreement with the scores."""

from pydantic import Field

from stethoscope.records.base import Record, Split
from stethoscope.records.diagnosis import DiagnoseSpec
from stethoscope.records.references import TaskVectorRef


class GainSpec(Record):
    """Gain of injecting each layer alone and sets of layers, beside every predictor of it.

    Attributes:
        diagnosis: the specificity on trial; its documents also serve the linear probe.
        task_vector: what is injected, raw.
        split: split that the problems are drawn from (dev; test only for what was chosen before).
        n: problems per subject, and items per control corpus.
        alpha: strength of the injection.
        top_n: layers in a set.
        random_sets: random sets of `top_n` layers, all different; every set where there are not more.
        seed: of the problems, the random sets, the bootstrap of problems and the permutation of layers.
    """

    diagnosis: DiagnoseSpec
    task_vector: TaskVectorRef
    split: Split = "dev"
    n: int = Field(default=16, ge=2)
    alpha: float = 1.0
    top_n: int = Field(default=4, ge=1)
    random_sets: int = Field(default=99, ge=1)
    seed: int = 0
