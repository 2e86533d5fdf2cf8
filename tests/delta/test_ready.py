"""Cached patches stay within their memory limit, and a buffer in use is never overwritten."""

import gc
from collections.abc import Callable

import pytest
import torch

from stethoscope.delta import ready
from stethoscope.delta.patch import BufferLike, Patch, applied, build_patch, patch_removed
from stethoscope.delta.ready import ReadyPatches, budget_bytes
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import ResourceError
from stethoscope.model.free_memory import free_bytes
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import EditRecipe

MakeRecipe = Callable[..., EditRecipe]
Make = Callable[..., Patch]


@pytest.fixture
def patches() -> ReadyPatches:
    return ReadyPatches(0)


@pytest.fixture
def make(
    loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe, patches: ReadyPatches
) -> Callable[..., Patch]:
    """Factory `make(layer, alpha)` of the patch of one layer, by way of `patches`."""

    def get(layer: int, alpha: float = 1.0) -> Patch:
        recipe = make_recipe({layer: alpha})

        def build(buffer_like: BufferLike) -> Patch:
            return build_patch(loaded, task_vector, recipe, buffer_like=buffer_like)

        return patches.get_or_build(f"{layer} {alpha}", build)

    return get


def pointers(patch: Patch) -> set[int]:
    return {tensor.data_ptr() for tensor in patch.tensors.values()}


def right(patch: Patch, loaded: LoadedModel, task_vector: TaskVector, alpha: float) -> bool:
    return all(
        torch.equal(tensor, loaded.parameter(name) + alpha * task_vector.delta(name))
        for name, tensor in patch.tensors.items()
    )


def test_least_recently_used_goes_first_and_bytes_are_kept(patches: ReadyPatches, make: Make) -> None:
    one = make(0).size_bytes
    patches.capacity_bytes = 3 * one
    first = pointers(make(0))
    make(1)
    make(2)
    assert pointers(make(0)) == first  # ready: not built again
    make(3)
    assert patches.keys == ("2 1.0", "0 1.0", "3 1.0")
    assert patches.size_bytes == 3 * one


def test_a_forgotten_patchs_buffers_are_written_again(
    patches: ReadyPatches, make: Make, loaded: LoadedModel, task_vector: TaskVector
) -> None:
    patches.capacity_bytes = make(0).size_bytes
    before = pointers(make(0))
    for step in range(1, 20):
        patch = make(0, step / 10)
        assert right(patch, loaded, task_vector, step / 10)
        assert pointers(patch) == before
        del patch
    assert patches.size_bytes == patches.capacity_bytes


def test_a_patch_that_is_held_applied_or_lifted_keeps_its_values(
    patches: ReadyPatches, make: Make, loaded: LoadedModel, task_vector: TaskVector
) -> None:
    patches.capacity_bytes = make(0).size_bytes
    with applied(loaded, make(0, 0.5)):
        on = {name: loaded.parameter(name).detach().clone() for name, _ in loaded.model.named_parameters()}
        with patch_removed(loaded):
            for alpha in (0.1, 0.2, 0.3):  # each pushes out all others
                with applied(loaded, make(0, alpha)):
                    pass
        assert all(torch.equal(parameter, on[name]) for name, parameter in loaded.model.named_parameters())
    held = make(1, 0.5)
    others = [make(1, alpha) for alpha in (0.6, 0.7, 0.8)]
    assert right(held, loaded, task_vector, 0.5)
    assert all(right(other, loaded, task_vector, 0.6 + i / 10) for i, other in enumerate(others))
    assert len(set.union(*map(pointers, [held, *others]))) == 4 * 7
    assert patches.size_bytes >= 4 * held.size_bytes  # what is held counts
    del held, others
    gc.collect()
    make(2)
    make(2, 0.5)
    assert patches.size_bytes == patches.capacity_bytes


def test_a_patch_larger_than_the_budget_still_works_alone(patches: ReadyPatches, make: Make) -> None:
    make(0)
    make(1)
    assert patches.keys == ("1 1.0",)
    assert pointers(make(1)) == pointers(make(1))
    assert patches.size_bytes == make(1).size_bytes


def test_a_build_that_fails_gives_its_buffers_back(patches: ReadyPatches, make: Make, loaded: LoadedModel) -> None:
    patches.capacity_bytes = 10 * make(0).size_bytes
    size = patches.size_bytes

    def fail(buffer_like: BufferLike) -> Patch:
        for site in loaded.layout.of_layer(1):
            buffer_like(loaded.parameter(site.name))
        raise ZeroDivisionError

    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            patches.get_or_build("bad", fail)
        assert patches.size_bytes == 2 * size
    assert patches.keys == ("0 1.0",)
    make(1)
    assert patches.size_bytes == 2 * size


def test_clear_forgets_all(patches: ReadyPatches, make: Make) -> None:
    patches.capacity_bytes = 2**30
    make(0)
    make(1)
    patches.clear()
    assert patches.keys == ()
    assert patches.size_bytes == 0


def test_too_little_memory_is_said_with_both_numbers_after_everything_else_was_forgotten(
    patches: ReadyPatches, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches.capacity_bytes = 2**30
    make(0)
    monkeypatch.setattr(ready, "free_bytes", lambda device: 100 * 2**20)
    with pytest.raises(ResourceError, match="got 100 MiB free on cpu; expected 256 MiB for the next tensor"):
        make(1)
    assert patches.keys == ()


def test_the_budget_is_asked_or_from_the_environment_or_twice_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert budget_bytes(cpu, 5) == 5
    monkeypatch.setenv(ready.BUDGET_VARIABLE, "100")
    assert budget_bytes(cpu) == 100 * 2**20
    monkeypatch.setenv(ready.BUDGET_VARIABLE, "lots")
    with pytest.raises(ResourceError, match="STETHOSCOPE_EDIT_MIB; got 'lots'"):
        budget_bytes(cpu)
    monkeypatch.delenv(ready.BUDGET_VARIABLE)
    for free, weights, expected in (
        (1000, 0, 500),  # never more than half of what is free
        (64 << 30, 1 << 20, 256 << 20),  # a small model
        (64 << 30, 8 << 30, 16 << 30),  # else twice the model
        (24 << 30, 8 << 30, 12 << 30),
    ):
        monkeypatch.setattr(ready, "free_bytes", lambda device, free=free: free)
        assert budget_bytes(cpu, weights_bytes=weights) == expected


def test_free_memory_is_read_from_the_system() -> None:
    assert 2**20 < free_bytes(torch.device("cpu")) < 2**50
