"""Links that hold a whole recipe, differences between recipes, and strengths of many layers at once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stethoscope.errors import RecipeError
from stethoscope.profiles import MINI
from stethoscope.recipes import strengths
from stethoscope.recipes.files import differences, from_link, parse_layers, shown_layers, to_link
from stethoscope.records import EditRecipe, LayerAlpha, NormMatchedEdit, ProjectedEdit, RandomSubspaceEdit, RawEdit

finite = st.floats(-2, 2, allow_nan=False)
alphas = st.builds(LayerAlpha, attention=finite, mlp=finite)
diagnosis = MINI.diagnose_spec()
edit_types = st.one_of(
    st.just(RawEdit()),
    st.builds(
        ProjectedEdit,
        diagnosis=st.just(diagnosis),
        subject=st.sampled_from(MINI.problems.subjects),
        top_k=st.integers(1, 64),
    ),
    st.builds(NormMatchedEdit, diagnosis=st.just(diagnosis), subject=st.just("algebra"), top_k=st.integers(1, 64)),
    st.builds(RandomSubspaceEdit, rank=st.integers(1, 96), seed=st.integers(0, 99), norm_matched=st.booleans()),
)
recipes = st.builds(
    EditRecipe,
    model=st.just(MINI.model),
    task_vector=st.sampled_from(MINI.task_vectors),
    layers=st.dictionaries(st.integers(0, 33), alphas, max_size=34),
    master_alpha=finite,
    edit_type=edit_types,
    norms=st.booleans(),
    embeddings=st.booleans(),
)


@given(recipes)
def test_a_link_carries_the_recipe_whole(recipe: EditRecipe) -> None:
    link = to_link(recipe)
    assert from_link(link) == recipe
    assert set(link) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


@given(recipes, recipes)
def test_no_difference_means_equal(one: EditRecipe, other: EditRecipe) -> None:
    assert differences(one, one) == []
    assert (differences(one, other) == []) == (one == other)


def test_a_difference_names_field_and_values() -> None:
    before = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers={3: LayerAlpha()}, master_alpha=0.5)
    after = before.model_copy(update={"master_alpha": 1.0, "layers": {3: LayerAlpha(mlp=0.2), 5: LayerAlpha()}})
    assert [(change.field, change.before, change.after) for change in differences(before, after)] == [
        ("layers.3.mlp", "1.0", "0.2"),
        ("master_alpha", "0.5", "1.0"),
        ("layers.5.attention", "–", "1.0"),
        ("layers.5.mlp", "–", "1.0"),
    ]


@pytest.mark.parametrize("text", ["z.", "z.AAAA", "z.!!!", "z.eJw", "z." + "A" * 5000])
def test_a_broken_link_gets_one_clear_message(text: str) -> None:
    with pytest.raises(RecipeError, match="link"):
        from_link(text)


def test_a_cut_link_is_refused_and_so_is_a_bomb() -> None:
    import base64
    import zlib

    recipe = EditRecipe(model=MINI.model, task_vector=MINI.task_vectors[0], layers={3: LayerAlpha()})
    with pytest.raises(RecipeError, match="Copy the complete link"):
        from_link(to_link(recipe)[:-8])
    bomb = "z." + base64.urlsafe_b64encode(zlib.compress(b" " * 10_000_000)).decode()
    with pytest.raises(RecipeError, match="too large"):
        from_link(bomb)


def test_presets() -> None:
    assert strengths.ramp([0, 5, 9], 10)[5].mlp == pytest.approx(5 / 9, abs=1e-4)
    assert strengths.ramp([0, 9], 10, 0.2, 0.8) == {
        0: LayerAlpha(attention=0.2, mlp=0.2),
        9: LayerAlpha(attention=0.8, mlp=0.8),
    }
    assert strengths.ramp([0], 1)[0].mlp == 0
    assert strengths.only(strengths.uniform([2]), "attention") == {2: LayerAlpha(attention=1, mlp=0)}
    assert strengths.assigned({1: LayerAlpha(attention=0.5, mlp=0.5)}, 0.2, "mlp") == {
        1: LayerAlpha(attention=0.5, mlp=0.2)
    }
    assert strengths.multiplied({1: LayerAlpha(attention=0.5, mlp=0.4)}, 0.5, "attention") == {
        1: LayerAlpha(attention=0.25, mlp=0.4)
    }


@given(st.sets(st.integers(0, 33), min_size=1))
def test_shown_layers_can_be_read_back(layers: set[int]) -> None:
    assert set(parse_layers(shown_layers(layers), 34)) == layers


def test_shown_layers_uses_spans() -> None:
    assert shown_layers([9, 0, 1, 2, 3, 7, 8]) == "0-3, 7, 8, 9".replace("7, 8, 9", "7-9")
    assert shown_layers([]) == ""
