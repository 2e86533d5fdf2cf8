"""The second computation of edited weights equals the patch bit by bit, and detects a wrong patch."""

import dataclasses
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from stethoscope.delta import expectation
from stethoscope.delta.certificate import certified
from stethoscope.delta.expectation import expected_digests
from stethoscope.delta.patch import Patch, build_patch
from stethoscope.delta.task_vector import open_task_vector
from stethoscope.model.loaded_model import LoadedModel, load_checkpoint
from stethoscope.records import EditRecipe, ModelRef, RandomSubspaceEdit, TaskVectorRef
from stethoscope.results import Certificate


@pytest.fixture(scope="module")
def delta_ref(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> TaskVectorRef:
    """A bare delta of every parameter of the pico model."""
    generator = torch.Generator().manual_seed(2)
    tensors = {
        name: 0.05 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in loaded.model.named_parameters()
    }
    path = tmp_path_factory.mktemp("delta") / "delta.safetensors"
    save_file(tensors, path)
    return TaskVectorRef(name="delta", tuned=str(path))


@pytest.fixture(scope="module", params=["float32", "bfloat16", "float16"])
def of_dtype(request: pytest.FixtureRequest, pico_folder: Path) -> LoadedModel:
    return load_checkpoint(ModelRef(id=str(pico_folder), dtype=request.param), device="cpu")


def checked_patch(loaded: LoadedModel, ref: TaskVectorRef, recipe: EditRecipe) -> Patch:
    task_vector = open_task_vector(ref, loaded)
    patch = build_patch(loaded, task_vector, recipe, recipe_id="sha256-x")
    return dataclasses.replace(patch, expected=expected_digests(loaded, task_vector, recipe, patch.tensors, "sha256-x"))


def certificate_of(loaded: LoadedModel, patch: Patch) -> Certificate:
    with certified(loaded, patch) as certifying:
        pass
    return certifying.certificate


@pytest.fixture
def recipe(of_dtype: LoadedModel, delta_ref: TaskVectorRef) -> EditRecipe:
    return EditRecipe(
        model=of_dtype.ref,
        task_vector=delta_ref,
        layers={0: {"attention": 0.7, "mlp": 0.0}, 2: {"attention": -0.3, "mlp": 1.45}},
        master_alpha=0.9,
        norms=True,
        embeddings=True,
    )


def test_every_tensor_is_the_same_bit_by_bit(
    of_dtype: LoadedModel, delta_ref: TaskVectorRef, recipe: EditRecipe
) -> None:
    patch = checked_patch(of_dtype, delta_ref, recipe)
    certificate = certificate_of(of_dtype, patch)
    assert certificate.verified
    assert certificate.recomputed == certificate.touched
    assert len(certificate.touched) == 4 + 7 + 4 + 6 + 2  # matrices and norms of layers 0 and 2, embeddings, norm
    assert certificate.recomputed_checksum == certificate.expected_checksum == certificate.edited_checksum
    assert certificate.loaded_checksum == certificate.base_checksum
    assert "All edited tensors were recomputed" in certificate.evidence


def test_one_wrong_bit_or_strength_in_a_patch_is_not_verified(
    of_dtype: LoadedModel, delta_ref: TaskVectorRef, recipe: EditRecipe
) -> None:
    good = checked_patch(of_dtype, delta_ref, recipe)
    for name in ("model.layers.0.self_attn.o_proj.weight", "model.layers.2.mlp.up_proj.weight", "model.norm.weight"):
        wrong = good.tensors[name].clone()
        wrong.view(-1).view(torch.uint8)[0] ^= 1
        patch = dataclasses.replace(good, tensors={**good.tensors, name: wrong})
        assert not certificate_of(of_dtype, patch).verified
    swapped = recipe.model_copy(update={"master_alpha": 0.8999})
    other = build_patch(of_dtype, open_task_vector(delta_ref, of_dtype), swapped)
    assert not certificate_of(of_dtype, dataclasses.replace(good, tensors=other.tensors)).verified


def test_large_edits_are_checked_on_a_seeded_sample(
    of_dtype: LoadedModel, delta_ref: TaskVectorRef, recipe: EditRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_vector = open_task_vector(delta_ref, of_dtype)
    patch = build_patch(of_dtype, task_vector, recipe, recipe_id="sha256-x")
    reads: list[str] = []
    real = type(task_vector).delta
    monkeypatch.setattr(type(task_vector), "delta", lambda self, name: reads.append(name) or real(self, name))
    monkeypatch.setattr(expectation, "SAMPLE_BYTES", 8000)
    drawn = [set(expected_digests(of_dtype, task_vector, recipe, patch.tensors, seed)) for seed in ("a", "a", "b")]
    assert drawn[0] == drawn[1] != drawn[2]
    assert 1 <= len(drawn[0]) < len(patch.tensors)
    assert len(reads) == sum(map(len, drawn))  # nothing else is read
    monkeypatch.setattr(expectation, "SAMPLE_BYTES", 1)
    digests = expected_digests(of_dtype, task_vector, recipe, patch.tensors, "a")
    assert len(digests) == 1
    certificate = certificate_of(of_dtype, dataclasses.replace(patch, expected=digests))
    assert certificate.verified
    assert "1 sampled edited tensors" in certificate.evidence


def test_only_raw_edits_are_recomputed_and_the_certificate_says_so(
    of_dtype: LoadedModel, delta_ref: TaskVectorRef, recipe: EditRecipe
) -> None:
    filtered = recipe.model_copy(update={"edit_type": RandomSubspaceEdit(rank=4)})
    patch = checked_patch(of_dtype, delta_ref, filtered)
    assert patch.expected == {}
    certificate = certificate_of(of_dtype, patch)
    assert certificate.verified
    assert "not recomputed" in certificate.evidence


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_rounding_to_bfloat16_is_to_nearest_even(values: list[float]) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    assert torch.equal(expectation._rounded(tensor, torch.bfloat16), tensor.to(torch.bfloat16))
