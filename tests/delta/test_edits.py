"""What a recipe adds to each tensor: norms, embeddings, random subspaces, and directions that are left alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from stethoscope.delta.edits import Direction, Directions
from stethoscope.delta.patch import applied, build_patch
from stethoscope.delta.projection import cumulative_energy, facing_basis, gain_of, serving, span_basis
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import RecipeError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import EditRecipe, RandomSubspaceEdit, TaskVectorRef

MakeRecipe = Callable[..., EditRecipe]
AROUND_ATTENTION = {"input_layernorm", "post_attention_layernorm", "q_norm", "k_norm"}
AROUND_MLP = {"pre_feedforward_layernorm", "post_feedforward_layernorm"}


@pytest.fixture(scope="module")
def moved_ref(make_pico: Callable[..., Path]) -> TaskVectorRef:
    """A fine-tune that moves every parameter: matrices, norms, embeddings."""

    def move(model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(5)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    return TaskVectorRef(name="moved", tuned=str(make_pico(move)))


@pytest.fixture(scope="module")
def moved(loaded: LoadedModel, moved_ref: TaskVectorRef) -> TaskVector:
    return open_task_vector(moved_ref, loaded)


# --- norms and embeddings --------------------------------------------------------------------------------------------


def test_norms_move_with_the_half_of_the_layer_that_they_stand_around(
    loaded: LoadedModel, moved: TaskVector, moved_ref: TaskVectorRef, make_recipe: MakeRecipe
) -> None:
    layers = {1: {"attention": 0.5, "mlp": 0.0}, 2: {"attention": 0.25, "mlp": 2.0}}
    without = build_patch(loaded, moved, make_recipe(layers, task_vector=moved_ref, master_alpha=0.8))
    recipe = make_recipe(layers, task_vector=moved_ref, master_alpha=0.8, norms=True)
    patch = build_patch(loaded, moved, recipe)
    added = {name.removesuffix(".weight") for name in set(patch.tensors) - set(without.tensors)}
    expected = {(1, norm): 0.5 for norm in AROUND_ATTENTION} | {(2, norm): 0.25 for norm in AROUND_ATTENTION}
    expected |= {(2, norm): 2.0 for norm in AROUND_MLP}
    assert {(int(name.split(".")[2]), name.split(".")[-1]) for name in added} == set(expected)
    for name in added:
        strength = 0.8 * expected[int(name.split(".")[2]), name.split(".")[-1]]
        base = loaded.parameter(f"{name}.weight").detach()
        assert torch.equal(patch.tensors[f"{name}.weight"], base + strength * moved.delta(f"{name}.weight"))


def test_embeddings_head_and_final_norm_move_with_the_master_alpha_and_stay_tied(
    loaded: LoadedModel, moved: TaskVector, moved_ref: TaskVectorRef, make_recipe: MakeRecipe
) -> None:
    patch = build_patch(loaded, moved, make_recipe({1: 0.5}, task_vector=moved_ref, master_alpha=0.6, embeddings=True))
    outside = {name for name in patch.tensors if "layers" not in name}
    assert outside == {"model.embed_tokens.weight", "model.norm.weight"}
    for name in outside:
        assert torch.equal(patch.tensors[name], loaded.parameter(name) + 0.6 * moved.delta(name))
    with applied(loaded, patch):
        assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
        assert loaded.model.lm_head.weight.data_ptr() == patch.tensors["model.embed_tokens.weight"].data_ptr()
    assert build_patch(loaded, moved, make_recipe({}, task_vector=moved_ref, embeddings=True)).tensors


def test_everything_at_full_strength_is_the_fine_tune(
    loaded: LoadedModel, moved: TaskVector, moved_ref: TaskVectorRef, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(dict.fromkeys(range(4), 1.0), task_vector=moved_ref, norms=True, embeddings=True)
    patch = build_patch(loaded, moved, recipe)
    assert set(patch.tensors) == {name for name, _ in loaded.model.named_parameters()}
    for name, tensor in patch.tensors.items():
        assert torch.allclose(tensor, loaded.parameter(name) + moved.delta(name), atol=1e-6)


# --- random subspaces ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_a_random_subspace_serves_the_same_sides_as_an_sae_and_has_its_rank(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, site: str
) -> None:
    rank = 5
    edit_type = RandomSubspaceEdit(rank=rank, site=site, seed=3)
    patch = build_patch(loaded, task_vector, make_recipe({0: 1.0, 2: 0.5}, edit_type=edit_type))
    served = {m.name for layer in (0, 2) for m in loaded.layout.of_layer(layer) if serving(m, site) is not None}
    assert set(patch.tensors) == served
    spans: dict[int, list[Tensor]] = {}
    for name, tensor in patch.tensors.items():
        matrix_site = loaded.layout.site(name)
        use = serving(matrix_site, site)
        assert use is not None
        edit = (tensor - loaded.parameter(name)).detach()
        seen = facing_basis(edit, use, gain_of(loaded, matrix_site))
        singular = torch.linalg.svdvals(seen)
        assert singular[rank - 1] > 100 * singular[rank]  # rank 5 and no more, up to float32 rounding
        spans.setdefault(use.layer, []).append(torch.linalg.svd(seen, full_matrices=False).U[:, :rank].T.float())
    for parts in spans.values():  # matrices that one SAE serves share one subspace
        for part in parts[1:]:
            kept = cumulative_energy(part.T.double(), span_basis(parts[0]))[-1] / part.square().sum()
            assert float(kept) == pytest.approx(1, abs=1e-3)


def test_random_subspaces_keep_rank_over_d_on_average_and_follow_their_seed(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    name = loaded.layout.of_layer(1)[-1].name
    site = loaded.layout.site(name)
    use = serving(site, "resid_post")
    assert use is not None
    gain, total = gain_of(loaded, site), facing_basis(task_vector.delta(name), use, gain_of(loaded, site))

    def edited(seed: int, rank: int = 8) -> Tensor:
        edit_type = RandomSubspaceEdit(rank=rank, seed=seed)
        recipe = make_recipe({1: {"attention": 0.0, "mlp": 1.0}}, edit_type=edit_type)
        return build_patch(loaded, task_vector, recipe).tensors[name] - loaded.parameter(name)

    retained = [
        float(facing_basis(edited(seed), use, gain).square().sum() / total.square().sum()) for seed in range(40)
    ]
    assert sum(retained) / len(retained) == pytest.approx(8 / 32, abs=0.02)  # 40 draws of sd .02: 6 standard errors
    assert torch.equal(edited(1), edited(1))
    assert not torch.allclose(edited(1), edited(2), atol=1e-3)
    assert torch.allclose(edited(1, rank=32), task_vector.delta(name), atol=1e-5)  # the whole space keeps everything


def test_the_norm_matched_random_edit_is_the_plain_one_at_the_raw_norm(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    layers = {1: {"attention": 0.4, "mlp": 1.0}}
    plain = build_patch(loaded, task_vector, make_recipe(layers, edit_type=RandomSubspaceEdit(rank=6)))
    matched = build_patch(
        loaded, task_vector, make_recipe(layers, edit_type=RandomSubspaceEdit(rank=6, norm_matched=True))
    )
    raw = build_patch(loaded, task_vector, make_recipe(layers))
    energy = dict.fromkeys(("plain", "matched", "raw"), 0.0)
    for site in loaded.layout.of_layer(1):
        use = serving(site, "resid_post")
        assert use is not None
        for edit_type, patch in (("plain", plain), ("matched", matched), ("raw", raw)):
            edit = patch.tensors[site.name] - loaded.parameter(site.name).detach()
            energy[edit_type] += float(facing_basis(edit, use, gain_of(loaded, site)).square().sum())
    assert energy["matched"] == pytest.approx(energy["raw"], rel=1e-4)
    assert energy["plain"] < 0.4 * energy["raw"]
    name = loaded.layout.of_layer(1)[3].name
    scale = (energy["raw"] / energy["plain"]) ** 0.5
    base = loaded.parameter(name)
    assert torch.allclose(matched.tensors[name] - base, scale * (plain.tensors[name] - base), atol=1e-5)


def test_a_random_subspace_larger_than_its_axis_is_refused(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe
) -> None:
    with pytest.raises(RecipeError, match="got rank 33; expected 1 to 32 at resid_post"):
        build_patch(loaded, task_vector, make_recipe({1: 1.0}, edit_type=RandomSubspaceEdit(rank=33)))


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the tensors of the task vector that were read, in order."""
    reads: list[str] = []
    real = TaskVector.delta

    def delta(self: TaskVector, name: str) -> Tensor:
        reads.append(name)
        return real(self, name)

    monkeypatch.setattr(TaskVector, "delta", delta)
    return reads


@pytest.mark.parametrize("edit_type", [None, RandomSubspaceEdit(rank=4), RandomSubspaceEdit(rank=4, norm_matched=True)])
def test_each_tensor_is_read_once_and_a_new_alpha_reads_nothing(
    loaded: LoadedModel,
    task_vector: TaskVector,
    make_recipe: MakeRecipe,
    counting: list[str],
    edit_type: RandomSubspaceEdit | None,
) -> None:
    fields = {} if edit_type is None else {"edit_type": edit_type}
    kept = Directions(2**30)
    first = build_patch(loaded, task_vector, make_recipe({1: 0.5, 2: 1.0}, **fields), directions=kept)
    assert sorted(counting) == sorted(first.tensors)
    counting.clear()
    recipe = make_recipe({1: 0.7, 2: {"attention": 0.1, "mlp": 1.0}}, **fields, master_alpha=0.3)
    moved = build_patch(loaded, task_vector, recipe, directions=kept)
    assert counting == []
    fresh = build_patch(loaded, task_vector, recipe)
    assert all(torch.equal(tensor, fresh.tensors[name]) for name, tensor in moved.tensors.items())


def test_directions_of_another_identity_arm_or_seed_are_not_mixed_up(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, counting: list[str]
) -> None:
    kept = Directions(2**30)
    arms = [{}, {"edit_type": RandomSubspaceEdit(rank=4)}, {"edit_type": RandomSubspaceEdit(rank=4, seed=1)}]
    arms += [{"edit_type": RandomSubspaceEdit(rank=5)}, {"edit_type": RandomSubspaceEdit(rank=4, norm_matched=True)}]
    for fields in arms:
        recipe = make_recipe({1: 1.0}, **fields)
        patch, alone = (build_patch(loaded, task_vector, recipe, directions=d) for d in (kept, None))
        assert all(torch.equal(tensor, alone.tensors[name]) for name, tensor in patch.tensors.items())
    counting.clear()
    build_patch(loaded, task_vector, make_recipe({1: 1.0}), directions=kept, identity="other weights")
    assert len(counting) == 7


def test_directions_stay_within_their_bytes_and_an_edit_too_large_keeps_what_fits() -> None:
    def make(value: float) -> Direction:
        return Direction(torch.full((256,), value), 1.0, 1.0)  # 1 KiB

    kept = Directions(3 * 1024)
    made: list[str] = []

    def ask(*names: str) -> None:
        kept.start()
        for name in names:
            kept.get_or_make("tau", name, lambda name=name: made.append(name) or make(0.0))
        assert kept.size_bytes <= 3 * 1024

    ask("a", "b")
    ask("b", "c", "d")  # a is the oldest and makes room
    assert made == ["a", "b", "c", "d"]
    ask("b", "c", "d")
    assert made == ["a", "b", "c", "d"]
    made.clear()
    for _ in range(2):  # five of which three fit: what fits is not pushed out by what does not
        ask("b", "c", "d", "e", "f")
    assert made == ["e", "f", "e", "f"]
    kept.clear()
    assert kept.size_bytes == 0
