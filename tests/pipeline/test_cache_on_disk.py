"""Firing rates and spectra are reused in a new process: the same numbers without recomputation."""

from pathlib import Path

import pytest

from stethoscope import pipeline
from stethoscope.delta import parts
from stethoscope.pipeline import context as contexts
from stethoscope.pipeline import listening
from stethoscope.pipeline.context import Context
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import DiagnoseSpec, EnergySpec, Spec
from stethoscope.results import Result
from stethoscope.store.cache import ArrayCache
from stethoscope.store.runs import RunStore


class Calls:
    """Counts computations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counted = self.factorised = 0
        count, factorise = listening.count_firing, parts.spectrum_of

        def counting(*args: object, **kwargs: object) -> object:
            self.counted += 1
            return count(*args, **kwargs)  # type: ignore[arg-type]

        def factorising(*args: object, **kwargs: object) -> object:
            self.factorised += 1
            return factorise(*args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(listening, "count_firing", counting)
        monkeypatch.setattr(parts, "spectrum_of", factorising)

    def taken(self) -> tuple[bool, bool]:
        """Return whether documents were counted and matrices factorised since the last call."""
        done = (self.counted > 0, self.factorised > 0)
        self.counted = self.factorised = 0
        return done


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


def diagnosis_of(profile: Profile) -> DiagnoseSpec:
    return profile.diagnose_spec(n_bootstrap=20, n_permutations=20)


def energy_of(profile: Profile) -> EnergySpec:
    return EnergySpec(
        diagnosis=diagnosis_of(profile), task_vector=profile.task_vector(), subject="geometry", k=(1, 2), draws=2
    )


def run_anew(folder: Path, cache: Path, *specs: Spec) -> tuple[list[Result], list[Progress]]:
    """Run `specs` like a new process: nothing in memory, no stored runs."""
    context = Context(RunStore(folder), device="cpu", cache=ArrayCache(cache))
    progresses = [Progress() for _ in specs]
    results = [pipeline.run(spec, context, each).result for spec, each in zip(specs, progresses, strict=True)]
    context.close()
    return results, progresses


def test_a_restart_listens_to_nothing_again(tmp_path: Path, pico_profile: Profile, calls: Calls) -> None:
    specs = (diagnosis_of(pico_profile), energy_of(pico_profile))
    first, _ = run_anew(tmp_path / "runs", tmp_path / "cache", *specs)
    assert calls.taken() == (True, True)
    second, progresses = run_anew(tmp_path / "other runs", tmp_path / "cache", *specs)
    assert calls.taken() == (False, False)
    assert second == first
    assert all(each.done == each.total for each in progresses)
    without, _ = run_anew(tmp_path / "more runs", tmp_path / "empty cache", *specs)
    assert calls.taken() == (True, True)
    assert without == first


def test_a_damaged_or_deleted_cache_costs_the_work_and_nothing_else(
    tmp_path: Path, pico_profile: Profile, calls: Calls
) -> None:
    spec, cache = energy_of(pico_profile), tmp_path / "cache"
    first, _ = run_anew(tmp_path / "runs", cache, spec)
    calls.taken()
    for number, path in enumerate(sorted(cache.iterdir())):
        content = bytearray(path.read_bytes())
        content[-1] ^= 0x40
        path.write_bytes(content) if number % 2 else path.unlink()
    second, _ = run_anew(tmp_path / "other runs", cache, spec)
    assert calls.taken() == (True, True)
    assert second == first


@pytest.mark.parametrize("what", ["code", "torch", "processor"])
def test_what_other_code_computed_is_not_taken(
    tmp_path: Path, pico_profile: Profile, calls: Calls, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    spec = diagnosis_of(pico_profile)
    run_anew(tmp_path / "runs", tmp_path / "cache", spec)
    calls.taken()
    if what == "code":
        monkeypatch.setattr(contexts, "_code", lambda: "other code")
    elif what == "torch":
        monkeypatch.setattr(contexts.torch, "__version__", "0.0.0")
    else:
        monkeypatch.setattr(contexts, "_processor", lambda _: "another GPU")
    run_anew(tmp_path / "other runs", tmp_path / "cache", spec)
    assert calls.taken() == (True, False)


def test_another_model_or_task_vector_finds_nothing(
    tmp_path: Path, pico_profile: Profile, pico_tuned_folder: Path, calls: Calls
) -> None:
    run_anew(tmp_path / "runs", tmp_path / "cache", energy_of(pico_profile))
    calls.taken()
    model = pico_profile.model.model_copy(update={"id": str(pico_tuned_folder)})
    other = pico_profile.model_copy(update={"model": model})
    run_anew(tmp_path / "other runs", tmp_path / "cache", diagnosis_of(other))
    assert calls.taken() == (True, False)
