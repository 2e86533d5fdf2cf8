"""Patches apply exactly what the recipe says, and removing them restores the base bit by bit."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stethoscope.delta.patch import Patch, applied, build_patch
from stethoscope.delta.projection import (
    cumulative_energy,
    facing_basis,
    gain_of,
    project_delta,
    serving,
    span_basis,
)
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import RecipeError, SaeError, StethoscopeError, UserError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import EditRecipe, EditType, ModelRef, NormMatchedEdit, ProjectedEdit, TaskVectorRef

MakeRecipe = Callable[..., EditRecipe]
MakeArm = Callable[..., EditType]
Rows = Callable[[int], Tensor]
PROMPT = "Problem: the prime divisor of the river"


def logits_of(loaded: LoadedModel) -> Tensor:
    batch = loaded.batch(loaded.encode([PROMPT]))
    with torch.no_grad():
        return loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def pointers(loaded: LoadedModel) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in loaded.model.named_parameters()}


# --- what a patch holds ----------------------------------------------------------------------------------------------


def test_raw_patch_is_base_plus_alpha_tau(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    patch = build_patch(loaded, task_vector, make_recipe({1: 0.5, 3: 1.0}, master_alpha=0.8), recipe_id="sha256-r")
    assert patch.recipe_id == "sha256-r"
    assert set(patch.tensors) == {site.name for layer in (1, 3) for site in loaded.layout.of_layer(layer)}
    for name, tensor in patch.tensors.items():
        alpha = 0.8 * (0.5 if loaded.layout.site(name).layer == 1 else 1.0)
        base = loaded.parameter(name).detach()
        assert tensor.dtype == base.dtype
        assert torch.equal(tensor, base + alpha * task_vector.delta(name))
    assert patch.size_bytes == sum(tensor.numel() * 4 for tensor in patch.tensors.values())


def test_full_strength_is_the_fine_tune(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, pico_tuned_folder: Path
) -> None:
    tuned = load_checkpoint(ModelRef(id=str(pico_tuned_folder)), device="cpu")
    patch = build_patch(loaded, task_vector, make_recipe(dict.fromkeys(range(4), 1.0)))
    with applied(loaded, patch):
        for name, parameter in loaded.model.named_parameters():
            assert torch.allclose(parameter, tuned.parameter(name), atol=1e-6)  # theta + (tuned - theta) in float32


def test_attention_and_mlp_have_their_own_strength(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    patch = build_patch(loaded, task_vector, make_recipe({2: {"attention": 0.0, "mlp": -0.5}}))
    assert {loaded.layout.site(name).matrix for name in patch.tensors} == {"gate_proj", "up_proj", "down_proj"}
    for name, tensor in patch.tensors.items():
        assert torch.equal(tensor, loaded.parameter(name) - 0.5 * task_vector.delta(name))


def test_bfloat16_is_rounded_once_from_float32(
    bf16_session: LoadedModel, tuned_ref: TaskVectorRef, make_recipe: MakeRecipe
) -> None:
    task_vector = open_task_vector(tuned_ref, bf16_session)
    patch = build_patch(bf16_session, task_vector, make_recipe({0: 0.7}, model=bf16_session.ref))
    for name, tensor in patch.tensors.items():
        base, delta = task_vector.origin(name), task_vector.delta(name)
        assert delta.dtype == torch.float32
        assert torch.equal(tensor, (base.float() + 0.7 * delta).to(torch.bfloat16))
    twice_rounded = base.to(torch.bfloat16) + (0.7 * delta).to(torch.bfloat16)
    assert not torch.equal(tensor, twice_rounded)  # the difference is visible at this size


@pytest.mark.parametrize("layers", [{}, {1: 0.0}, {0: {"attention": 0.0, "mlp": 0.0}}])
def test_a_recipe_without_strength_is_the_base(
    loaded: LoadedModel, make_recipe: MakeRecipe, layers: dict[int, object]
) -> None:
    assert build_patch(loaded, None, make_recipe(layers)).tensors == {}
    assert build_patch(loaded, None, make_recipe({1: 1.0}, master_alpha=0.0)).tensors == {}


def test_projected_patch_is_the_projected_edit_of_every_served_matrix(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, make_arm: MakeArm, rows_of_layer: Rows
) -> None:
    recipe = make_recipe({0: 1.0, 2: 0.5}, edit_type=make_arm(ProjectedEdit, top_k=4))
    patch = build_patch(loaded, task_vector, recipe, rows_of_layer)
    readers_of_0 = {site.name for site in loaded.layout.of_layer(0) if site.side == "read"}
    expected = {site.name for layer in (0, 2) for site in loaded.layout.of_layer(layer)} - readers_of_0
    assert set(patch.tensors) == expected  # no SAE reads what layer 0 reads
    for name, tensor in patch.tensors.items():
        site = loaded.layout.site(name)
        rows = rows_of_layer(site.layer if site.side == "write" else site.layer - 1)
        edit = project_delta(task_vector.delta(name), site, gain_of(loaded, site), span_basis(rows[:4]).Q)
        alpha = 1.0 if site.layer == 0 else 0.5
        assert torch.allclose(tensor, loaded.parameter(name) + alpha * edit, atol=1e-7)


@pytest.mark.parametrize(("sae_site", "matrix"), [("mlp_out", "down_proj"), ("attn_out", "o_proj")])
def test_mlp_and_attention_saes_edit_one_matrix(
    loaded: LoadedModel,
    task_vector: TaskVector,
    make_recipe: MakeRecipe,
    make_arm: MakeArm,
    rows_of_layer: Rows,
    sae_site: str,
    matrix: str,
) -> None:
    recipe = make_recipe({1: 1.0}, edit_type=make_arm(site=sae_site))
    patch = build_patch(loaded, task_vector, recipe, rows_of_layer)
    assert [loaded.layout.site(name).matrix for name in patch.tensors] == [matrix]


def test_norm_matched_edit_has_the_raw_norm_in_the_metric_of_the_retention(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, make_arm: MakeArm, rows_of_layer: Rows
) -> None:
    layers = {1: {"attention": 0.4, "mlp": 1.0}, 3: 0.5}
    matched = build_patch(loaded, task_vector, make_recipe(layers, edit_type=make_arm(NormMatchedEdit)), rows_of_layer)
    plain = build_patch(loaded, task_vector, make_recipe(layers, edit_type=make_arm()), rows_of_layer)
    raw = build_patch(loaded, task_vector, make_recipe(layers))
    for layer in layers:
        energy = dict.fromkeys(("matched", "plain", "raw"), 0.0)
        for site in loaded.layout.of_layer(layer):
            use = serving(site, "resid_post")
            assert use is not None
            for arm, patch in (("matched", matched), ("plain", plain), ("raw", raw)):
                edit = patch.tensors[site.name] - loaded.parameter(site.name).detach()
                energy[arm] += float(facing_basis(edit, use, gain_of(loaded, site)).square().sum())
        assert energy["matched"] == pytest.approx(energy["raw"], rel=1e-4)  # edits are read back out of float32 weights
        assert energy["plain"] < 0.6 * energy["raw"]
        scale = (energy["raw"] / energy["plain"]) ** 0.5
        name = loaded.layout.of_layer(layer)[0].name
        base = loaded.parameter(name)
        assert torch.allclose(matched.tensors[name] - base, scale * (plain.tensors[name] - base), atol=1e-5)


def test_projected_writes_stay_in_the_span_behind_the_models_own_post_norm_gain(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, make_arm: MakeArm, rows_of_layer: Rows
) -> None:
    """The change of down_proj's output, times the post-norm weight, is a sum of decoder rows."""
    patch = build_patch(loaded, task_vector, make_recipe({1: 1.0}, edit_type=make_arm()), rows_of_layer)
    layer = loaded.model.get_submodule(f"{loaded.layout.layers}.1")
    x = torch.randn(5, 48, generator=torch.Generator().manual_seed(0))
    before = layer.mlp.down_proj(x)
    with applied(loaded, patch):
        more = layer.mlp.down_proj(x) - before
    norm = layer.post_feedforward_layernorm
    seen = norm(more) * more.square().mean(dim=-1, keepdim=True).add(norm.eps).sqrt()  # the gain alone
    seen = seen.T.double()
    basis = span_basis(rows_of_layer(1))
    assert float(cumulative_energy(seen, basis)[-1] / seen.square().sum()) == pytest.approx(1, abs=1e-4)


def test_projected_readers_only_hear_the_span_through_the_models_own_pre_norm(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, make_arm: MakeArm, rows_of_layer: Rows
) -> None:
    """A residual orthogonal to the previous layer's decoder rows makes the edit have no effect; others do not."""
    patch = build_patch(loaded, task_vector, make_recipe({2: 1.0}, edit_type=make_arm()), rows_of_layer)
    layer = loaded.model.get_submodule(f"{loaded.layout.layers}.2")
    Q = span_basis(rows_of_layer(1)).Q.float()
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    for residual, silent in ((x - x @ Q @ Q.T, True), (x @ Q @ Q.T, False)):
        heard = layer.input_layernorm(residual)
        before = layer.self_attn.q_proj(heard)
        with applied(loaded, patch):
            change = (layer.self_attn.q_proj(heard) - before).abs().max()
        assert (float(change) < 1e-5) is silent


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("field", "value"), [("id", "embedded:other"), ("revision", "main2"), ("dtype", "bfloat16")])
def test_a_recipe_for_another_model_is_refused(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, field: str, value: str
) -> None:
    recipe = make_recipe({1: 1.0}, model=loaded.ref.model_copy(update={field: value}))
    with pytest.raises(RecipeError, match=f"another model; got {field} {value}"):
        build_patch(loaded, task_vector, recipe)


def test_layers_beyond_the_model_are_refused(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError, match="got 4, 9; expected layers 0 to 3"):
        build_patch(loaded, task_vector, make_recipe({1: 1.0, 4: 0.0, 9: 1.0}))


def test_another_task_vector_is_refused(loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe({1: 1.0}, task_vector=TaskVectorRef(name="other", tuned="elsewhere"))
    with pytest.raises(RecipeError, match="another task vector"):
        build_patch(loaded, task_vector, recipe)
    with pytest.raises(RecipeError, match="no task vector"):
        build_patch(loaded, None, make_recipe({1: 1.0}))


def test_rows_of_another_width_are_refused(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, make_arm: MakeArm
) -> None:
    with pytest.raises(SaeError, match="width 32"):
        build_patch(loaded, task_vector, make_recipe({1: 1.0}, edit_type=make_arm()), lambda layer: torch.randn(4, 16))


def test_a_projection_with_nothing_to_edit_is_refused(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, make_arm: MakeArm, rows_of_layer: Rows
) -> None:
    recipe = make_recipe({1: {"attention": 1.0, "mlp": 0.0}}, edit_type=make_arm(site="mlp_out"))
    with pytest.raises(RecipeError, match="changes nothing"):
        build_patch(loaded, task_vector, recipe, rows_of_layer)


def test_norm_matching_a_projection_that_keeps_nothing_is_refused(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, make_arm: MakeArm
) -> None:
    recipe = make_recipe({1: 1.0}, edit_type=make_arm(NormMatchedEdit))
    with pytest.raises(RecipeError, match="keeps nothing"):
        build_patch(loaded, task_vector, recipe, lambda layer: torch.zeros(4, 32))


# --- in and out ------------------------------------------------------------------------------------------------------


def test_inside_the_model_answers_differently(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    base = logits_of(loaded)
    patch = build_patch(loaded, task_vector, make_recipe({1: 1.0}))
    with applied(loaded, patch):
        edited = logits_of(loaded)
    assert not torch.equal(base, edited)
    with applied(loaded, patch):  # and the same way each time
        assert torch.equal(logits_of(loaded), edited)


def test_an_error_inside_leaves_the_base_and_its_version(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    patch, base, version = (
        build_patch(loaded, task_vector, make_recipe({1: 1.0})),
        pointers(loaded),
        loaded.weights_version,
    )

    def fail_inside() -> None:
        with applied(loaded, patch):
            assert loaded.weights_version == patch.weights_version != version
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_inside()
    assert pointers(loaded) == base
    assert loaded.weights_version == version


def test_only_the_layouts_matrices_are_touched_and_embeddings_stay_tied(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    before = {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}
    patch = build_patch(loaded, task_vector, make_recipe(dict.fromkeys(range(4), 1.0)))
    embeddings = loaded.model.get_input_embeddings().weight
    with applied(loaded, patch):
        assert loaded.model.lm_head.weight is embeddings
        assert loaded.model.get_input_embeddings().weight is embeddings
        changed = {
            name for name, parameter in loaded.model.named_parameters() if not torch.equal(parameter, before[name])
        }
    assert changed == {site.name for site in loaded.layout.matrices}


def test_edits_do_not_nest_and_the_first_one_stays_whole(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    before = loaded.checksum()
    first = build_patch(loaded, task_vector, make_recipe({1: 1.0}))
    second = build_patch(loaded, task_vector, make_recipe({1: 0.5}))
    with applied(loaded, first):
        inside = loaded.checksum()
        with pytest.raises(StethoscopeError, match="already applied"), applied(loaded, second):
            pass
        assert loaded.checksum() == inside
        refused: list[str] = []

        def try_from_another_thread() -> None:
            try:
                with applied(loaded, second):
                    pass
            except StethoscopeError as error:
                refused.append(str(error))

        thread = threading.Thread(target=try_from_another_thread)
        thread.start()
        thread.join()
        assert len(refused) == 1
    assert loaded.checksum() == before
    with applied(loaded, second):  # free again
        pass


def test_a_patch_of_the_wrong_shape_or_dtype_is_refused_before_anything_is_swapped(loaded: LoadedModel) -> None:
    before = pointers(loaded)
    names = [site.name for site in loaded.layout.matrices[:2]]
    good = torch.zeros_like(loaded.parameter(names[0]))
    for bad in (torch.zeros(2, 2), torch.zeros_like(loaded.parameter(names[1])).to(torch.float16)):
        with (
            pytest.raises(UserError, match="does not fit"),
            applied(loaded, Patch(None, {names[0]: good, names[1]: bad})),
        ):
            pass
        assert pointers(loaded) == before
