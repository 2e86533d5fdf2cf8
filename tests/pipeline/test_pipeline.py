"""Use cases end to end on the pico model: what is stored, reused, and left after a cancel."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stethoscope import pipeline
from stethoscope.errors import CheckpointError, RecipeError
from stethoscope.judging import arms
from stethoscope.pipeline.context import Context, LruCache
from stethoscope.pipeline.editing import patch_of
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.records import (
    BenchArm,
    BenchSpec,
    EditRecipe,
    EnergySpec,
    ExportSpec,
    InfoSpec,
    ProbeSpec,
    ProjectedEdit,
    SaeRef,
    TaskVectorRef,
)
from stethoscope.results import (
    BenchResult,
    DiagnosisResult,
    EnergyResult,
    ExportResult,
    InfoResult,
    ProbeResult,
)
from stethoscope.store.runs import RunStore


def recipe_of(profile: Profile, layers: dict[int, float], **fields: object) -> EditRecipe:
    return EditRecipe(model=profile.model, task_vector=profile.task_vector(), layers=layers, **fields)


def bench_of(profile: Profile, *chosen: BenchArm, **fields: object) -> BenchSpec:
    defaults = {"subjects": profile.problems.subjects, "n": 4, "max_new_tokens": 6, "batch_size": 4}
    return BenchSpec(model=profile.model, problems=profile.problems, arms=(arms.BASE, *chosen), **(defaults | fields))


def test_info_counts_the_models_parameters(pico_profile: Profile, context: Context) -> None:
    spec = InfoSpec(model=pico_profile.model, saes=pico_profile.saes, task_vectors=pico_profile.task_vectors)
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, InfoResult)
    assert context.loaded is not None
    assert result.model.parameters == sum(parameter.numel() for parameter in context.loaded.model.parameters())
    assert [row.layer for row in result.saes] == list(range(result.model.n_layers))
    assert all(norm > 0 for norm in result.task_vectors[0].relative_norm_by_layer)


def test_diagnosis_is_kept_and_found_again(pico_profile: Profile, context: Context) -> None:
    spec = pico_profile.diagnose_spec(n_bootstrap=20, n_permutations=20)
    first = pipeline.run(spec, context, Progress())
    again = pipeline.run(spec, Context(context.store, device="cpu"), Progress())
    assert isinstance(first.result, DiagnosisResult)
    assert again == first
    assert {cell.subject for cell in first.result.cells} == set(pico_profile.problems.subjects)
    assert sorted(first.result.order["geometry"]) == list(range(first.result.n_layers))


def test_another_score_listens_to_nothing_again(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.run(pico_profile.diagnose_spec(n_bootstrap=20, n_permutations=20), context, Progress())
    monkeypatch.setattr("stethoscope.pipeline.listening.count_firing", lambda *_, **__: pytest.fail("listened again"))
    spec = pico_profile.diagnose_spec(score="log_ratio", top_k=2, n_bootstrap=20, n_permutations=20)
    assert isinstance(pipeline.run(spec, context, Progress()).result, DiagnosisResult)


def test_energy_of_a_full_span_is_one(
    pico_profile: Profile,
    context: Context,
    tmp_path: Path,
    write_sae_bank: Callable[..., Path],
    random_sae_tensors: Callable[..., dict[str, torch.Tensor]],
) -> None:
    """More latents than dimensions span everything: nothing of the task vector can be lost."""
    always = {layer: random_sae_tensors(layer, d_sae=40) for layer in range(4)}
    for tensors in always.values():
        tensors["b_enc"] += 100.0  # every latent is live
    saes = SaeRef(location=str(write_sae_bank(tmp_path / "saes", always)))
    diagnosis = pico_profile.diagnose_spec().model_copy(update={"saes": saes})
    spec = EnergySpec(diagnosis=diagnosis, task_vector=pico_profile.task_vector(), subject="geometry", k=(2, 40))
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, EnergyResult)
    for cell in (*result.layers, *result.cells):
        assert cell.retention is not None
        if cell.k == 40:
            assert cell.rank == cell.d == 32
            assert cell.retention == pytest.approx(1)
            assert cell.functional_share == pytest.approx(1)
        else:
            assert 0 <= cell.retention < 0.5


def test_energy_does_not_depend_on_what_was_measured_before(
    pico_profile: Profile, context: Context, tmp_path: Path, make_pico: Callable[..., Path]
) -> None:
    """Another task vector and plain weights have spectra and a functional energy of their own."""
    others = TaskVectorRef(name="other", tuned=str(make_pico(seed=7)))
    diagnosis = pico_profile.diagnose_spec(live_share=0.0)
    specs = [
        EnergySpec(diagnosis=diagnosis, task_vector=ref, subject="geometry", k=(4,), fold_gains=folded)
        for ref in (pico_profile.task_vector(), others)
        for folded in (True, False)
    ]
    results: list[EnergyResult] = []
    for i, spec in enumerate(specs):
        result = pipeline.run(spec, context, Progress()).result
        alone = Context(RunStore(tmp_path / f"alone{i}"), device="cpu")
        assert pipeline.run(spec, alone, Progress()).result == result
        alone.close()
        assert isinstance(result, EnergyResult)
        results.append(result)
    cells = [cell for result in results for cell in result.cells if (cell.layer, cell.matrix) == (2, "down_proj")]
    for name in ("ceiling", "retention", "functional_share"):
        assert len({getattr(cell, name) for cell in cells}) == 4, name


def test_energy_stands_beside_its_references_and_the_next_subject_factorises_nothing(
    pico_profile: Profile, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(subject: str, **fields: bool) -> EnergyResult:
        spec = EnergySpec(
            diagnosis=pico_profile.diagnose_spec(live_share=0.0),
            task_vector=pico_profile.task_vector(),
            subject=subject,
            k=(2, 6),
            **fields,
        )
        result = pipeline.run(spec, context, Progress()).result
        assert isinstance(result, EnergyResult)
        return result

    geometry = measure("geometry")
    assert geometry.n_tokens > 20
    for cell in geometry.layers:
        assert None not in (cell.components, cell.control, cell.functional_share, cell.principal_cos2, cell.percentile)
        assert cell.random_low is not None
        assert cell.random_mean is not None
        assert cell.random_high is not None
        assert cell.random_low <= cell.random_mean <= cell.random_high
        assert (cell.encoder is None) == (cell.layer == 0)
    assert len({cell.retention for cell in (*geometry.layers, *measure("geometry", fold_gains=False).layers)}) == 16
    monkeypatch.setattr("stethoscope.delta.parts.spectrum_of", lambda _: pytest.fail("factorised again"))
    other = measure("number_theory")
    assert [cell.ceiling for cell in other.layers] == [cell.ceiling for cell in geometry.layers]
    assert [cell.components for cell in other.layers] != [cell.components for cell in geometry.layers]


def test_a_cache_of_bytes_forgets_the_oldest_and_keeps_one() -> None:
    kept: LruCache[str, str] = LruCache(5, len)
    for text in ("aa", "bb", "c"):
        kept.get_or_make(text, lambda text=text: text)
    kept.get_or_make("aa", lambda: pytest.fail("was kept"))
    kept.get_or_make("dd", lambda: "dd")
    assert list(kept.entries) == ["c", "aa", "dd"]
    kept.get_or_make("too long", lambda: "too long")
    assert list(kept.entries) == ["too long"]


def test_probe_of_no_strength_is_zero_and_of_a_real_edit_is_not(pico_profile: Profile, context: Context) -> None:
    def probe(layers: dict[int, float]) -> ProbeResult:
        spec = ProbeSpec(recipe=recipe_of(pico_profile, layers), problems=pico_profile.problems, n=4)
        result = pipeline.run(spec, context, Progress()).result
        assert isinstance(result, ProbeResult)
        assert result.certificate.verified
        return result

    assert [row.difference for row in probe({0: 0.0}).rows] == [0.0] * 3
    assert all(row.difference != 0 for row in probe({1: 1.0}).rows)


def test_control_arms_differ_only_in_their_layers(pico_profile: Profile) -> None:
    recipe = recipe_of(pico_profile, {0: 0.5, 1: 1.0})
    draws = arms.random_layers(recipe, range(4), draws=3, seed=0)
    assert draws == arms.random_layers(recipe, range(4), draws=3, seed=0)
    sets = [tuple(arm.recipe.layers) for arm in draws if arm.recipe]
    assert len(set(sets)) == 3
    assert (0, 1) not in sets
    last = arms.last_layers(recipe, range(4)).recipe
    assert last is not None
    assert list(last.layers) == [2, 3]
    assert last.layers[2].mlp == 0.75


def test_export_reloads_to_the_live_weights(pico_profile: Profile, context: Context, tmp_path: Path) -> None:
    spec = ExportSpec(recipe=recipe_of(pico_profile, {2: 1.0}), out=str(tmp_path / "edited"))
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, ExportResult)
    assert result.max_abs_difference == 0.0


def test_mistakes_are_told_and_kept_as_failed_runs(
    pico_profile: Profile, context: Context, make_pico: Callable[..., Path]
) -> None:
    beyond = bench_of(pico_profile, BenchArm(name="recipe", recipe=recipe_of(pico_profile, {9: 1.0})))
    with pytest.raises(RecipeError, match="9"):
        pipeline.run(beyond, context, Progress())
    assert context.store.list_runs()[0].state == "failed"
    other = TaskVectorRef(name="wide", tuned=str(make_pico(d_model=64)))
    wide = recipe_of(pico_profile, {1: 1.0}).model_copy(update={"task_vector": other})
    with pytest.raises(CheckpointError):
        pipeline.run(bench_of(pico_profile, BenchArm(name="wide", recipe=wide)), context, Progress())
    assert context.loaded is not None
    assert context.loaded.checksum() == context.base_checksum


def test_projected_recipe_runs_through_the_probe(pico_profile: Profile, context: Context) -> None:
    edit_type = ProjectedEdit(
        diagnosis=pico_profile.diagnose_spec(live_share=0.0, dense_rate=1.0), subject="geometry", top_k=3
    )
    spec = ProbeSpec(recipe=recipe_of(pico_profile, {1: 1.0}, edit_type=edit_type), problems=pico_profile.problems, n=4)
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, ProbeResult)
    assert result.certificate.verified
    assert result.certificate.layers_edited == (1,)


def test_ready_patches_keep_to_the_contexts_bytes_and_go_with_the_model(
    pico_profile: Profile, tmp_path: Path, make_pico: Callable[..., Path]
) -> None:
    context = Context(RunStore(tmp_path / "runs"), device="cpu", edit_bytes=300_000)
    one = patch_of(recipe_of(pico_profile, {1: 1.0}), context, Progress()).size_bytes
    for alpha in range(1, 9):
        patch_of(recipe_of(pico_profile, {1: alpha / 8}), context, Progress())
    assert len(context.patches.keys) == 150_000 // one < 8
    assert context.patches.size_bytes <= 150_000
    assert 0 < context.directions.size_bytes <= 150_000
    assert patch_of(recipe_of(pico_profile, {1: 1.0}), context, Progress()) is patch_of(
        recipe_of(pico_profile, {1: 1.0}), context, Progress()
    )
    context.load(pico_profile.model.model_copy(update={"id": str(make_pico(seed=3))}), Progress())
    assert context.patches.keys == ()
    assert context.patches.size_bytes == context.directions.size_bytes == 0
    context.close()


def test_the_exports_card_shows_what_was_measured_for_the_very_recipe(
    pico_profile: Profile, context: Context, tmp_path: Path
) -> None:
    recipe = recipe_of(pico_profile, {2: 1.0})
    outcome = pipeline.run(bench_of(pico_profile, BenchArm(name="mine", recipe=recipe)), context, Progress())

    def card(recipe: EditRecipe, out: str) -> str:
        result = pipeline.run(ExportSpec(recipe=recipe, out=str(tmp_path / out)), context, Progress()).result
        assert isinstance(result, ExportResult)
        assert {"mergekit.yaml", "delta/delta.safetensors", "recipe.json"} <= set(result.files)
        assert result.left_out is None
        return (tmp_path / out / "README.md").read_text()

    assert isinstance(outcome.result, BenchResult)
    shown = card(recipe, "a")
    assert str(outcome.run_id) in shown
    for row in outcome.result.comparisons:
        assert f"| {row.subject} | {row.difference:+.3f} |" in shown
    assert "Not evaluated" in card(recipe_of(pico_profile, {2: 0.5}), "b")
