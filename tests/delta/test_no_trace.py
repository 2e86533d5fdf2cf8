"""Applying and removing any recipe leaves logits, checksums and storage bit-identical, also after errors."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from stethoscope.delta.certificate import certified
from stethoscope.delta.edits import Directions
from stethoscope.delta.patch import BufferLike, Patch, applied, build_patch, patch_removed
from stethoscope.delta.ready import ReadyPatches
from stethoscope.delta.task_vector import TaskVector, open_task_vector
from stethoscope.errors import StethoscopeError
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import EditRecipe, EditType, ModelRef, NormMatchedEdit, RandomSubspaceEdit, TaskVectorRef

strengths = st.floats(-1.5, 1.5, allow_nan=False).map(lambda alpha: round(alpha, 2))
layer_sets = st.dictionaries(
    st.integers(0, 3), st.fixed_dictionaries({"attention": strengths, "mlp": strengths}), max_size=4
)
steps = st.lists(
    st.fixed_dictionaries(
        {
            "layers": layer_sets,
            "master_alpha": strengths,
            "norms": st.booleans(),
            "embeddings": st.booleans(),
            "arm": st.sampled_from(["raw", "projected", "matched", "random", "random-matched"]),
            "inside": st.sampled_from(["logits", "raise", "nest", "lift", "lift and raise"]),
        }
    ),
    min_size=1,
    max_size=4,
)


class Interrupted(Exception):
    """Raised in the middle of a body."""


@pytest.fixture(scope="module")
def moved_ref(make_pico: Callable[..., Path]) -> TaskVectorRef:
    """A fine-tune that moves every parameter, the tied embeddings and the norms among them."""

    def move(model: torch.nn.Module) -> None:
        generator = torch.Generator().manual_seed(6)
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    return TaskVectorRef(name="moved", tuned=str(make_pico(move)))


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest, pico_folder: Path) -> LoadedModel:
    return load_checkpoint(ModelRef(id=str(pico_folder), dtype=request.param), device="cpu")


@pytest.fixture(scope="module")
def tau(model: LoadedModel, moved_ref: TaskVectorRef) -> TaskVector:
    return open_task_vector(moved_ref, model)


def logits_of(loaded: LoadedModel) -> Tensor:
    batch = loaded.batch(loaded.encode(["Problem: the prime divisor"]))
    with torch.no_grad():
        return loaded.model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits


def state_of(loaded: LoadedModel) -> tuple[str, dict[str, int], Tensor]:
    storage = {name: p.data_ptr() for name, p in loaded.model.named_parameters(remove_duplicate=False)}
    return loaded.checksum(), storage, logits_of(loaded)


def assert_same(now: tuple[str, dict[str, int], Tensor], before: tuple[str, dict[str, int], Tensor]) -> None:
    assert now[:2] == before[:2]
    assert torch.equal(now[2], before[2])


@contextlib.contextmanager
def any_end() -> Iterator[None]:
    with contextlib.suppress(Interrupted):
        yield


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_no_recipe_leaves_a_trace(
    model: LoadedModel,
    tau: TaskVector,
    moved_ref: TaskVectorRef,
    make_arm: Callable[..., EditType],
    rows_of_layer: Callable[[int], Tensor],
    steps: list[dict[str, Any]],
) -> None:
    arms = {
        "projected": make_arm(),
        "matched": make_arm(NormMatchedEdit),
        "random": RandomSubspaceEdit(rank=4),
        "random-matched": RandomSubspaceEdit(rank=4, norm_matched=True),
    }
    before = state_of(model)
    patches, directions = ReadyPatches(0), Directions(200_000)  # every build writes over the buffers of the last
    for step in steps:
        inside, arm = step["inside"], step["arm"]
        fields = {name: value for name, value in step.items() if name not in ("inside", "arm")}
        fields |= {"edit_type": arms[arm]} if arm in arms else {}
        recipe = EditRecipe.model_validate({"model": model.ref, "task_vector": moved_ref} | fields)
        naive = build_patch(model, tau, recipe, rows_of_layer)

        def build(buffer_like: BufferLike, recipe: EditRecipe = recipe) -> Patch:
            return build_patch(model, tau, recipe, rows_of_layer, directions=directions, buffer_like=buffer_like)

        patch = patches.get_or_build(recipe.model_dump_json(), build)
        with any_end(), certified(model, patch) as certifying:
            assert set(patch.tensors) == set(naive.tensors)
            for name, tensor in naive.tensors.items():
                assert torch.equal(model.parameter(name), tensor)
            assert model.model.lm_head.weight is model.model.get_input_embeddings().weight
            edited = state_of(model)
            assert (edited[0] != before[0]) is any(
                not torch.equal(tensor, before_tensor)
                for tensor, before_tensor in ((t, _base(model, name)) for name, t in naive.tensors.items())
            )
            if inside == "raise":
                raise Interrupted
            if inside == "nest":
                with pytest.raises(StethoscopeError, match="do not nest"), applied(model, naive):
                    pass
                with pytest.raises(StethoscopeError, match="before building another one"):
                    build_patch(model, tau, recipe, rows_of_layer)
                assert_same(state_of(model), edited)
            if inside.startswith("lift"):
                with patch_removed(model):
                    assert_same(state_of(model), before)
                    if inside == "lift and raise":
                        raise Interrupted
                assert_same(state_of(model), edited)
        assert_same(state_of(model), before)
        if inside in ("logits", "nest", "lift"):
            assert certifying.certificate.restored_checksum == certifying.certificate.loaded_checksum


def _base(loaded: LoadedModel, name: str) -> Tensor:
    with patch_removed(loaded):
        return loaded.parameter(name).detach().clone()
