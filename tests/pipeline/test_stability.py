"""Stability: the reference agrees with itself, each variant is the named diagnosis, undefined is None."""

import numpy as np
import pytest
from scipy import stats

from stethoscope import pipeline
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.stability import _agreement
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import SCORE_NAMES, DiagnoseSpec, StabilitySpec
from stethoscope.results import DiagnosisResult, StabilityResult, StabilityRow

FEW = {"n_bootstrap": 20, "n_permutations": 20}


@pytest.fixture
def two_controls(pico_profile: Profile) -> Profile:
    """The pico profile with its two subjects as control corpora as well, so that there are two of them."""
    problems = pico_profile.problems
    swapped = problems.model_copy(
        update={
            "subjects": ("stories",),
            "control_names": problems.subjects,
            "controls": problems.problems,
            "problems": problems.controls,
        }
    )
    return pico_profile.model_copy(update={"problems": swapped})


def run(spec: StabilitySpec, context: Context) -> StabilityResult:
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, StabilityResult)
    return result


def diagnose(spec: DiagnoseSpec, context: Context) -> DiagnosisResult:
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, DiagnosisResult)
    return result


def variant_spec(spec: DiagnoseSpec, row: StabilityRow) -> DiagnoseSpec:
    field = {"score": "score", "k": "top_k", "control": "control"}[row.kind]
    return DiagnoseSpec.model_validate(
        spec.model_dump() | {field: row.variant if field != "top_k" else int(row.variant)}
    )


def test_every_row_is_the_diagnosis_that_it_names(two_controls: Profile, context: Context) -> None:
    spec = two_controls.diagnose_spec(**FEW)
    result = run(StabilitySpec(diagnosis=spec, ks=(2, 8)), context)
    assert [(row.kind, row.variant) for row in result.rows] == [
        *(("score", name) for name in SCORE_NAMES),
        *(("k", str(k)) for k in (2, 4, 8)),  # the reference's own k stands among them
        *(("control", name) for name in two_controls.problems.control_names),
    ]
    reference = diagnose(spec, context)
    for row in result.rows:
        same = diagnose(variant_spec(spec, row), context)
        assert row.order == same.order["stories"]
        assert row.scores == tuple(cell.score for cell in same.cells)
        theirs = float(np.asarray(stats.kendalltau([c.score for c in reference.cells], row.scores))[0])
        assert row.kendall_tau == (None if np.isnan(theirs) else pytest.approx(theirs))
    itself = {("score", spec.score), ("k", str(spec.top_k)), ("control", spec.control)}
    assert [row.kendall_tau for row in result.rows if (row.kind, row.variant) in itself] == pytest.approx([1, 1, 1])
    others = [row for row in result.rows if (row.kind, row.variant) not in itself]
    assert any(row.kendall_tau is not None and row.kendall_tau < 1 for row in others)


def test_stability_is_kept_and_found_again(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = StabilitySpec(diagnosis=pico_profile.diagnose_spec(**FEW))
    first = run(spec, context)
    monkeypatch.setattr("stethoscope.pipeline.stability.observed_scores", lambda *_, **__: pytest.fail("scored again"))
    assert run(spec, context) == first
    assert {row.subject for row in first.rows} == set(pico_profile.problems.subjects)
    assert first.layers == tuple(range(first.n_layers))


def test_agreement_takes_the_layers_that_both_score() -> None:
    nan = np.nan
    assert _agreement(np.array([1.0, nan, 3.0, 2.0]), np.array([1.0, 9.0, 3.0, nan])) == 1
    assert _agreement(np.array([1.0, nan]), np.array([1.0, 2.0])) is None
    assert _agreement(np.array([0.0, 0.0]), np.array([1.0, 2.0])) is None
