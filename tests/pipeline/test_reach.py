"""What a recipe is said to change is what it changes, if only some layers have SAEs and a task vector."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stethoscope import pipeline
from stethoscope.delta.certificate import certified
from stethoscope.errors import RecipeError
from stethoscope.judging import arms
from stethoscope.judging.verdicts import referee_text
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.pipeline.context import Context
from stethoscope.pipeline.editing import patch_of, reach_of_arms
from stethoscope.profiles import Profile
from stethoscope.progress import Progress
from stethoscope.recipes.reach import in_words
from stethoscope.records import (
    BenchArm,
    BenchPlanSpec,
    BenchSpec,
    EditRecipe,
    EditType,
    ExportSpec,
    InfoSpec,
    LayerAlpha,
    NormMatchedEdit,
    PreflightSpec,
    ProjectedEdit,
    RandomSubspaceEdit,
    RankSpec,
    RawEdit,
    ServedEdit,
)
from stethoscope.report.document import RunFacts, report_html
from stethoscope.results import BenchPlanResult, BenchResult, InfoResult, PreflightResult, RankResult, Reach
from stethoscope.store.runs import RunStore

RAW = RawEdit()


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    """One context for the file, so that the model is loaded and its corpora are read once."""
    context = Context(RunStore(tmp_path_factory.mktemp("runs")), device="cpu")
    yield context
    context.close()


def recipe(
    profile: Profile, layers: dict[int, object] | tuple[int, ...], edit_type: EditType = RAW, **fields: object
) -> EditRecipe:
    chosen = layers if isinstance(layers, dict) else dict.fromkeys(layers, 1.0)
    named = {"model": profile.model, "task_vector": profile.task_vectors[0], "layers": chosen, "edit_type": edit_type}
    return EditRecipe.model_validate(named | fields)


def kinds(profile: Profile) -> dict[str, EditType]:
    spec = {"diagnosis": profile.diagnose_spec(), "subject": "geometry", "top_k": 4}
    return {
        "raw": RawEdit(),
        "projected": ProjectedEdit(**spec),
        "norm-matched": NormMatchedEdit(**spec),
        "where projected": ServedEdit(saes=profile.saes),
        "random": RandomSubspaceEdit(rank=4),
        "random, served": RandomSubspaceEdit(rank=4, saes=profile.saes),
    }


def changed_matrices(edit: EditRecipe, context: Context) -> set[str]:
    loaded = context.load(edit.model, Progress())
    tensors = patch_of(edit, context, Progress()).tensors
    return {name for name, tensor in tensors.items() if not torch.equal(tensor, loaded.parameter(name))}


def named(found: Reach, loaded: LoadedModel) -> set[str]:
    short = {(row.layer, name) for row in found.moves for name in row.names}
    sites = [(site.layer, site.matrix, site.name) for site in loaded.layout.matrices]
    sites += [(norm.layer, norm.name.split(".")[-2], norm.name) for norm in loaded.layout.norms]
    return {name for layer, matrix, name in sites if (layer, matrix) in short}


LAYERS = [(2, 3), (3, 4), (0, 1), (6,), (3, 4, 5, 6, 7), {3: LayerAlpha(attention=0.0), 4: 0.5}]


def test_every_arm_changes_what_is_said(partial_profile: Profile, context: Context) -> None:
    loaded = context.load(partial_profile.model, Progress())
    cases = itertools.product(enumerate(kinds(partial_profile).items()), enumerate(LAYERS))
    for (i, (kind, arm)), (j, layers) in cases:
        vector = (0, 2)[(i + j) % 2]  # each with every arm and with every choice of layers
        edit = recipe(partial_profile, layers, arm, task_vector=partial_profile.task_vectors[vector], norms=True)
        found = reach_of_arms([BenchArm(name="a", recipe=edit)], context, Progress())["a"]
        try:
            changed = changed_matrices(edit, context)
        except RecipeError:  # a projection that has no matrix to edit, or a span that keeps nothing of it, is refused
            assert kind == "norm-matched" or not found.moves
            continue
        assert changed == named(found, loaded), (kind, layers, in_words(found))


def test_a_random_subspace_control_moves_the_matrices_of_the_projected_arm(
    partial_profile: Profile, context: Context
) -> None:
    for layers, vector in itertools.product(LAYERS[:-1], (0, 2)):
        own = recipe(partial_profile, layers, task_vector=partial_profile.task_vectors[vector])
        projected = arms.projected(own, partial_profile.diagnose_spec(), "geometry", 4)[0]
        controls = arms.random_subspace(own, 4, partial_profile.site, saes=partial_profile.saes)
        found = reach_of_arms([projected, *controls], context, Progress())
        assert found["projected"].moves == found["random subspace"].moves, layers
        assert found["projected"] == found["random subspace"] == found["random subspace, norm-matched"]
    wide = recipe(partial_profile, (3, 4), RandomSubspaceEdit(rank=4, seed=5))
    served = recipe(partial_profile, (3, 4), RandomSubspaceEdit(rank=4, seed=5, saes=partial_profile.saes))
    every, some = (patch_of(edit, context, Progress()).tensors for edit in (wide, served))
    assert set(some) < set(every)
    assert all(torch.equal(tensor, every[name]) for name, tensor in some.items()), "the subspace is the same"


def test_pages_and_worker_tell_the_same(partial_profile: Profile, context: Context) -> None:
    spec = InfoSpec(model=partial_profile.model, saes=partial_profile.saes, task_vectors=partial_profile.task_vectors)
    info = pipeline.run(spec, context, Progress()).result
    assert isinstance(info, InfoResult)
    moved = {row.name: sorted({weights.layer for weights in row.moved}) for row in info.task_vectors}
    assert moved == {"some": [1, 3, 4, 6], "four": [1, 3, 4, 6], "whole": list(range(8)), "nothing": []}


def test_a_projected_recipe_names_what_it_lacks(partial_profile: Profile, context: Context) -> None:
    edit = recipe(partial_profile, (1, 3, 4), kinds(partial_profile)["projected"])
    found = reach_of_arms([BenchArm(name="a", recipe=edit)], context, Progress())["a"]
    assert found.layers == (3, 4)
    said = in_words(found)
    assert said.startswith("Edits 12 of 21 matrices: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in")
    assert "no SAE for q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj in layer 1; o_proj" in said


def bench(profile: Profile, chosen: tuple[BenchArm, ...]) -> BenchSpec:
    return BenchSpec(
        model=profile.model, problems=profile.problems, arms=chosen, subjects=("geometry",), n=4, max_new_tokens=4
    )


def test_an_arm_that_changes_nothing_is_named_and_gets_no_verdict(partial_profile: Profile, context: Context) -> None:
    own = recipe(partial_profile, (3, 4))
    chosen = (
        arms.BASE,
        BenchArm(name="recipe", recipe=own),
        BenchArm(name="random layers 0,2", recipe=arms.with_layers(own, (0, 2)), role="random"),
        BenchArm(name="random layers 5,7", recipe=arms.with_layers(own, (5, 7)), role="random"),
        BenchArm(name="last 2", recipe=arms.with_layers(own, (1, 6)), role="last"),
    )
    spec = bench(partial_profile, chosen)
    plan = pipeline.run(BenchPlanSpec(bench=spec), context, Progress()).result
    assert isinstance(plan, BenchPlanResult)
    idle = {"random layers 0,2", "random layers 5,7"}
    assert {name for name, found in plan.reach.items() if found.nothing} == idle
    result = pipeline.run(spec, context, Progress()).result
    assert isinstance(result, BenchResult)
    assert set(result.idle) == idle
    assert all(certificate.verified for certificate in result.certificates.values())
    assert {row.arm for row in result.comparisons if row.verdict is None} == idle
    assert {claim.control for claim in result.layer_claims} == {"last"}  # draws that change nothing are none
    text = referee_text(result, None)
    assert sum("changes nothing" in paragraph for paragraph in text) == 2
    page = report_html(result, RunFacts("run", "now", "done"))
    assert "NO</td>" not in page
    assert page.count("Changes nothing") >= 2


def test_a_certificate_tells_an_idle_edit_from_a_swap_that_failed(partial_profile: Profile, context: Context) -> None:
    loaded = context.load(partial_profile.model, Progress())
    with certified(loaded, patch_of(recipe(partial_profile, (0, 2)), context, Progress())) as certifying:
        pass
    idle = certifying.certificate
    assert (idle.idle, idle.is_base, idle.verified, idle.layers_edited) == (True, True, True, ())
    assert not idle.model_copy(update={"idle": False}).verified
    with certified(loaded, patch_of(recipe(partial_profile, (2, 3)), context, Progress())) as certifying:
        pass
    assert certifying.certificate.layers_edited == (3,)


def rank(profile: Profile, context: Context, layers: tuple[int, ...], vector: str, **fields: object) -> RankResult:
    edit = recipe(profile, layers, task_vector=profile.task_vector(vector), **fields)
    result = pipeline.run(RankSpec(recipe=edit, problems=profile.problems, n=2, n_sets=8), context, Progress()).result
    assert isinstance(result, RankResult)
    return result


def test_the_same_edit_has_the_same_rank(partial_profile: Profile, context: Context) -> None:
    """By names (a bare delta), by values (a checkpoint), and with layers in the recipe that change nothing."""
    found = [
        rank(partial_profile, context, layers, vector)
        for layers, vector in (((3, 4), "four"), ((3, 4), "some"), ((0, 3, 4, 7), "some"))
    ]
    assert [result.rows for result in found] == [found[0].rows] * 3
    assert {layer for drawn in found[0].sets for layer in drawn.layers} == {1, 3, 4, 6}
    assert (found[0].n_possible, found[0].layers) == (5, (3, 4))
    assert all(drawn.norm > 0 for drawn in found[0].sets)


def test_a_recipe_that_moves_every_layer_there_is_has_no_rank(partial_profile: Profile, context: Context) -> None:
    with pytest.raises(RecipeError, match="no other sets of layers"):
        rank(partial_profile, context, (1, 3, 4, 6), "four")
    projected = kinds(partial_profile)["projected"]
    result = rank(partial_profile, context, (3,), "whole", edit_type=projected)
    assert {layer for drawn in result.sets for layer in drawn.layers} == {2, 4, 6, 7}


def test_the_card_lists_what_changed(partial_profile: Profile, context: Context, tmp_path: Path) -> None:
    edit = recipe(partial_profile, (1, 3, 4), kinds(partial_profile)["projected"])
    pipeline.run(ExportSpec(recipe=edit, out=str(tmp_path / "out"), kind="checkpoint"), context, Progress())
    card = (tmp_path / "out" / "README.md").read_text()
    assert "added to 12 matrices of 2 layers" in card
    assert [line.split("|")[1].strip() for line in card.splitlines() if line.startswith("| ")][1:] == ["3", "4"]
    assert "no SAE for" in card


def test_preflight_names_the_layers_that_stay(partial_profile: Profile, context: Context) -> None:
    for name, said in (("some", "tau is 0 in layers 0, 2, 5, 7"), ("whole", None)):
        spec = PreflightSpec(model=partial_profile.model, task_vector=partial_profile.task_vector(name))
        result = pipeline.run(spec, context, Progress()).result
        assert isinstance(result, PreflightResult)
        (evenness,) = [check for check in result.checks if check.name == "evenness"]
        assert ("tau is 0" in evenness.what) == (said is not None)
        assert said is None or said in evenness.what
