"""The disk fills up during work: the result is returned with the reason why it is not stored."""

import pytest

from stethoscope import pipeline
from stethoscope.errors import ResourceError
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import EditRecipe, LayerAlpha, ProbeSpec
from stethoscope.results import DiagnosisResult, ProbeResult


def fail(*_: object, **__: object) -> None:
    raise ResourceError("cannot write runs.sqlite3", got="a full disk", next_step="Free some.")


@pytest.mark.parametrize("write", ["finish_run", "put_settings", "remember"])
def test_a_result_is_returned_though_it_could_not_be_kept(
    write: str, pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = pico_profile.diagnose_spec(top_k=3, documents=20)
    place = {
        "finish_run": "stethoscope.store.runs.RunStore.finish_run",
        "put_settings": "stethoscope.pipeline.put_settings",
        "remember": "stethoscope.pipeline.tuned_on.remember",
    }[write]
    with monkeypatch.context() as patched:
        patched.setattr(place, fail)
        outcome = pipeline.run(spec, context, Progress())
    assert isinstance(outcome.result, DiagnosisResult)
    assert isinstance(outcome.unkept, ResourceError)
    assert outcome.unkept.got == "a full disk"
    assert (outcome.run_id is None) == (write != "remember")
    again = pipeline.run(spec, context, Progress())
    assert again.unkept is None
    assert again.result.model_dump() == outcome.result.model_dump()
    assert context.store.get_run(again.run_id or "").state == "done"


def test_a_probe_is_returned_though_what_it_showed_could_not_be_noted(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = EditRecipe(
        model=pico_profile.model, task_vector=pico_profile.task_vectors[0], layers={1: LayerAlpha(attention=0.5)}
    )
    monkeypatch.setattr("stethoscope.pipeline.tuned_on.remember", fail)
    outcome = pipeline.run(ProbeSpec(recipe=recipe, problems=pico_profile.problems, n=2), context, Progress())
    assert isinstance(outcome.result, ProbeResult)
    assert isinstance(outcome.unkept, ResourceError)


def test_what_is_no_hindrance_of_the_store_is_raised(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(*_: object) -> None:
        raise ValueError("ours")

    monkeypatch.setattr("stethoscope.pipeline.tuned_on.remember", other)
    with pytest.raises(ValueError, match="ours"):
        pipeline.run(pico_profile.diagnose_spec(top_k=3, documents=20), context, Progress())
