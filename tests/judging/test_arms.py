"""The standard set: each control once, three different random draws, no duplicates, missing arms explained."""

import pytest
import torch

from stethoscope.delta.patch import build_patch
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.judging import arms
from stethoscope.model.loaded_model import load_checkpoint
from stethoscope.profiles import MINI
from stethoscope.recipes.reach import reach
from stethoscope.records import BenchArm, EditRecipe, ModelRef, RandomSubspaceEdit
from stethoscope.results import Ground
from tests.grounds import ground

ORDER = (9, 8, 5, 4, 3, 2, 7, 6, 0, 1)
DIAGNOSIS = MINI.diagnose_spec()


def recipe_on(layers: tuple[int, ...], **fields: object) -> EditRecipe:
    named = {"model": MINI.model, "task_vector": MINI.task_vector(), "layers": dict.fromkeys(layers, 1.0)}
    return EditRecipe.model_validate(named | fields)


def standard(recipe: EditRecipe, n_layers: int | Ground = 10, **fields: object) -> arms.StandardSet:
    chosen = {"order": ORDER, "diagnosis": DIAGNOSIS, "subject": "algebra", "top_k": 8} | fields
    of = ground(n_layers) if isinstance(n_layers, int) else n_layers
    return arms.standard_set(recipe, of, **chosen)  # type: ignore[arg-type]


def layers_of(found: arms.StandardSet) -> dict[str, list[int]]:
    return {arm.name: list(arm.recipe.layers) for arm in found.arms if arm.recipe is not None}


def test_every_control_once() -> None:
    found = standard(recipe_on((4, 5)))
    layers = layers_of(found)
    drawn = [name for name in layers if name.startswith("random layers ")]
    assert [arm.name for arm in found.arms] == [
        "base",
        "recipe",
        "all layers",
        "bottom 2",
        "last 2",
        *drawn,
        "projected",
        "projected, norm-matched",
        "full fine-tune",
    ]
    assert len({tuple(layers[name]) for name in drawn} - {(4, 5), (0, 1), (8, 9)}) == len(drawn) == 3
    assert (layers["bottom 2"], layers["last 2"]) == ([0, 1], [8, 9])
    assert found.notes == ()
    assert found.arms == standard(recipe_on((4, 5))).arms
    assert standard(recipe_on((4, 5)), seed=1).arms != found.arms


def test_the_same_edit_stands_there_once() -> None:
    found = standard(recipe_on((4, 5)), order=tuple(range(10)))
    assert layers_of(found)["bottom 2"] == [8, 9]
    assert "last 2" not in layers_of(found)
    assert found.notes == ("“last 2” is left out, because it is the same edit as “bottom 2”.",)


def test_a_recipe_on_all_layers_has_no_other_sets() -> None:
    found = standard(recipe_on(tuple(range(10))))
    assert [arm.name for arm in found.arms] == [
        "base",
        "recipe",
        "projected",
        "projected, norm-matched",
        "raw, where projected",
        "full fine-tune",
    ]
    assert "“all layers” is left out, because it is the same edit as “recipe”." in found.notes
    assert "0 random draws instead of 3, because there are no more sets of 10 layers." in found.notes
    whole = recipe_on(tuple(range(10)), norms=True, embeddings=True)
    assert "“full fine-tune” is left out, because it is the same edit as “recipe”." in standard(whole).notes


def test_random_draws_never_repeat_a_named_control() -> None:
    for seed in range(30):
        found = standard(recipe_on((0,)), n_layers=5, order=(0, 1, 2, 3, 4), seed=seed)
        drawn = {tuple(layers) for name, layers in layers_of(found).items() if name.startswith("random")}
        assert drawn == {(1,), (2,), (3,)}
    few = standard(recipe_on((0,)), n_layers=3, order=(0, 1, 2))
    assert "1 random draws instead of 3, because there are no more sets of 1 layers." in few.notes


def test_other_layers_are_those_that_the_task_vector_moves_at_equal_count() -> None:
    found = standard(recipe_on((2, 3, 5)), ground(10, moved=(1, 2, 5, 6, 8, 9)))  # 3 is in the recipe in name only
    layers = {name: set(chosen) for name, chosen in layers_of(found).items()}
    assert layers["bottom 3"] == {3, 6, 1}
    assert layers["last 3"] == {3, 8, 9}
    assert layers["all layers"] == {1, 2, 3, 5, 6, 8, 9}
    drawn = [chosen for name, chosen in layers.items() if name.startswith("random layers ")]
    assert len(drawn) == 3
    assert all(3 in chosen and len(chosen & {1, 2, 5, 6, 8, 9}) == 2 for chosen in drawn)
    kinds = {arms.layer_control(arm, recipe_on((2, 3, 5))) for arm in found.arms}
    assert {"all", "bottom", "last", "random"} < kinds


def test_the_bottom_is_never_the_recipe_s_own() -> None:
    order = (27, 3, 15)
    found = standard(recipe_on((15, 27)), ground(30, saes=order), order=order)
    assert (
        "No bottom 2: only 1 of the scored layers are outside the recipe and changed by the task vector." in found.notes
    )
    assert layers_of(standard(recipe_on((15,)), ground(30, saes=order), order=order))["bottom 1"] == [3]


def test_a_raw_arm_that_moves_the_same_matrices_stands_beside_the_projected_ones() -> None:
    of = ground(30, saes=(15, 27))
    found = standard(recipe_on(tuple(range(15, 28))), of)
    reaches = {arm.name: reach(arm.recipe, of).moves for arm in found.arms if arm.recipe is not None}
    assert reaches["projected"] == reaches["projected, norm-matched"] == reaches["raw, where projected"]
    assert sum(len(row.names) for row in reaches["projected"]) == 2 + 5 + 2
    assert len(reaches["recipe"]) == 13 * 4
    roles = {arm.name: arms.group_of(arm) for arm in found.arms}
    assert roles["raw, where projected"] == "filtered"
    (said,) = [note for note in found.notes if "edits the same matrices" in note]
    assert "Edits 9 of 91 matrices: o_proj, down_proj in layers 15, 27; q_proj" in said
    none = standard(recipe_on((4, 5)), ground(30, saes=(15, 27)))
    assert not any("projected" in arm.name for arm in none.arms)


def test_an_edit_that_changes_nothing_has_no_controls() -> None:
    found = standard(recipe_on((3, 4)), ground(10, moved=(1, 2)))
    assert [arm.name for arm in found.arms] == ["base", "recipe", "full fine-tune"]
    assert any("Changes nothing" in note for note in found.notes)


def test_a_fine_tune_that_no_arm_can_be_is_not_among_the_arms() -> None:
    of = ground(10).model_copy(update={"not_the_fine_tune": "it moves a bias"})
    found = standard(recipe_on((4, 5)), of)
    assert found.arms == standard(recipe_on((4, 5))).arms[:-1]
    (note,) = found.notes
    assert arms.FINE_TUNE in note


def test_what_cannot_be_is_said() -> None:
    found = standard(recipe_on((4, 5)), order=None, diagnosis=None)
    assert found.notes == (
        "Run Diagnose to enable the bottom-layers control.",
        "No projected arms, because a diagnosis is not possible.",
    )
    filtered = standard(recipe_on((4, 5), edit_type=RandomSubspaceEdit(rank=4)))
    assert not any(arm.name.startswith("projected") for arm in filtered.arms)
    assert "No projected arms, because the recipe's edit type is random-subspace." in filtered.notes


def test_controls_of_the_set_are_known_as_such() -> None:
    recipe = recipe_on((4, 5))
    kinds = [arms.layer_control(arm, recipe) for arm in standard(recipe).arms]
    assert kinds == [None, None, "all", "bottom", "last", "random", "random", "random", None, None, None]


@pytest.mark.parametrize("task_vector", ["math", "forgetting"])
def test_the_full_fine_tune_is_the_fine_tuned_checkpoint_bit_by_bit(task_vector: str) -> None:
    loaded = load_checkpoint(MINI.model, device="cpu")
    ref = MINI.task_vector(task_vector)
    arm = arms.full_fine_tune(recipe_on((4,), task_vector=ref, master_alpha=0.3), loaded.layout.n_layers)
    assert arm.recipe is not None
    patch = build_patch(loaded, open_task_vector(ref, loaded), arm.recipe)
    tuned = load_checkpoint(ModelRef(id=ref.tuned), device="cpu")
    moved = 0
    for name, parameter in tuned.model.named_parameters():
        edited = patch.tensors.get(name, loaded.parameter(name).detach())
        assert torch.equal(edited, parameter.detach()), name
        moved += not torch.equal(edited, loaded.parameter(name).detach())
    assert moved > 100


@pytest.mark.parametrize(
    "name", ["all layers", "random layers 0,1", "bottom 2", "last 2", "projected", "full fine-tune"]
)
def test_a_recipe_that_is_called_like_a_control_is_a_recipe(name: str) -> None:
    found = standard(recipe_on((4, 5)))
    controls = {arm.name: arms.group_of(arm) for arm in found.arms}
    mine = BenchArm(name=name, recipe=recipe_on((0, 1)))
    assert arms.group_of(mine) == "recipe"
    assert arms.layer_control(mine, recipe_on((4, 5))) is None
    assert arms.judged((arms.BASE, mine)) == mine
    assert set(controls.values()) == {"base", "recipe", "other layers", "filtered", "fine-tune"}


def test_a_control_of_another_recipe_is_none_of_this_one() -> None:
    control = arms.last_layers(recipe_on((4, 5)), range(10))
    assert arms.layer_control(control, recipe_on((4, 5))) == "last"
    assert arms.layer_control(control, recipe_on((1, 2), master_alpha=0.5)) is None
    assert arms.layer_control(control, recipe_on((1, 2, 3))) is None
    assert arms.group_of(control) == "other layers"
