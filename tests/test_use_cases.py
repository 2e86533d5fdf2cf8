"""The registry of use cases is consistent, and every table that depends on it is derived from it."""

import inspect
from pathlib import Path

import pytest

from stethoscope import records, results
from stethoscope.pipeline import MODULES
from stethoscope.records import Spec
from stethoscope.results import Result
from stethoscope.use_cases import USE_CASES, UseCase, use_case_called, use_case_of

ROOT = Path(__file__).parent.parent
OPTIONAL = {"needs": ["spec", "setting", "saes_of"], "smaller": ["spec"], "seen": ["spec"]}
by_kind = pytest.mark.parametrize("case", USE_CASES, ids=lambda case: case.kind)


def test_every_spec_and_result_belongs_to_one_use_case() -> None:
    specs = {name for name in records.__all__ if issubclass_of(getattr(records, name), Spec)}
    found = {name for name in results.__all__ if issubclass_of(getattr(results, name), Result)}
    assert {case.spec.__name__ for case in USE_CASES} == specs
    assert {case.result.__name__ for case in USE_CASES} == found
    for names in zip(*((case.kind, case.spec, case.result) for case in USE_CASES), strict=True):
        assert len(set(names)) == len(USE_CASES)


def issubclass_of(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base) and value is not base


@by_kind
def test_it_is_found_by_kind_and_its_module_computes_it(case: UseCase) -> None:
    assert use_case_called(case.kind) is case
    assert use_case_of(case.spec.model_construct()) is case
    module = MODULES[case.spec]
    assert module.__name__ == f"stethoscope.pipeline.{case.kind}"
    annotations = inspect.get_annotations(module.run)
    assert (annotations["spec"], annotations["return"]) == (case.spec, case.result)
    for name, parameters in OPTIONAL.items():
        if hasattr(module, name):
            assert list(inspect.signature(getattr(module, name)).parameters) == parameters
            assert inspect.get_annotations(getattr(module, name))["spec"] is case.spec


@by_kind
def test_what_is_reused_or_opened_again_is_kept(case: UseCase) -> None:
    assert case.kept or not (case.reused or case.resumable or case.place)
    assert not case.kept or case.place is not None, "whatever the history keeps can be opened again"
    if case.place is not None:
        assert (ROOT / "screens" / case.place.page / f"{case.place.page}.py").exists()


def test_slots_are_not_shared() -> None:
    slots = [case.place.slot for case in USE_CASES if case.place is not None]
    assert len(set(slots)) == len(slots)
