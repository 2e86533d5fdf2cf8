"""A patch removed for a while: the base in between, the same edit afterwards, also after errors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from stethoscope.delta.patch import Patch, applied, build_patch, patch_removed
from stethoscope.delta.task_vector import TaskVector
from stethoscope.errors import StethoscopeError
from stethoscope.model.loaded_model import LoadedModel
from stethoscope.records import EditRecipe

MakeRecipe = Callable[..., EditRecipe]


@pytest.fixture
def first(loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe) -> Patch:
    return build_patch(loaded, task_vector, make_recipe({1: 1.0, 2: 0.5}))


@pytest.fixture
def second(loaded: LoadedModel, task_vector: TaskVector, make_recipe: MakeRecipe) -> Patch:
    return build_patch(loaded, task_vector, make_recipe({2: 1.0, 3: 1.0}))


def pointers(loaded: LoadedModel) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in loaded.model.named_parameters()}


def weights(loaded: LoadedModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in loaded.model.named_parameters()}


def test_the_base_stands_inside_and_the_same_edit_afterwards(loaded: LoadedModel, first: Patch) -> None:
    base = pointers(loaded)
    with applied(loaded, first):
        edited, held = pointers(loaded), weights(loaded)
        assert edited != base
        with patch_removed(loaded):
            assert pointers(loaded) == base
        assert pointers(loaded) == edited
        assert all(torch.equal(parameter, held[name]) for name, parameter in loaded.model.named_parameters())
    assert pointers(loaded) == base


def test_another_edit_may_be_applied_inside_and_lifted_in_turn(
    loaded: LoadedModel, first: Patch, second: Patch
) -> None:
    base = pointers(loaded)
    with applied(loaded, first):
        on_first = pointers(loaded)
        with patch_removed(loaded), applied(loaded, second):
            on_second = pointers(loaded)
            assert {name for name in base if on_second[name] != base[name]} == set(second.tensors)
            with pytest.raises(StethoscopeError, match="do not nest"), applied(loaded, first):
                pass
            with patch_removed(loaded):
                assert pointers(loaded) == base
            assert pointers(loaded) == on_second
        assert pointers(loaded) == on_first
        with pytest.raises(StethoscopeError, match="do not nest"), applied(loaded, second):
            pass
    assert pointers(loaded) == base


def test_an_error_inside_puts_the_edit_back_and_an_error_outside_the_base(
    loaded: LoadedModel, first: Patch, second: Patch
) -> None:
    base = pointers(loaded)

    def fail_inside() -> None:
        with applied(loaded, first):
            on_first = pointers(loaded)
            with pytest.raises(ZeroDivisionError), patch_removed(loaded), applied(loaded, second):
                raise ZeroDivisionError
            assert pointers(loaded) == on_first
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert pointers(loaded) == base


def test_without_an_edit_nothing_is_lifted(loaded: LoadedModel, first: Patch) -> None:
    base = pointers(loaded)
    with patch_removed(loaded):
        assert pointers(loaded) == base
        with applied(loaded, first):
            pass
    assert pointers(loaded) == base


def test_weights_that_were_moved_meanwhile_are_an_error_and_the_base_comes_back(
    loaded: LoadedModel, first: Patch
) -> None:
    base = pointers(loaded)
    name = next(iter(first.tensors))
    with pytest.raises(StethoscopeError, match="base weights"), applied(loaded, first), patch_removed(loaded):
        loaded.parameter(name).data = loaded.parameter(name).detach().clone()
    assert pointers(loaded) == base

    def lift_unknown_weights() -> None:
        with applied(loaded, first):
            loaded.parameter(name).data = loaded.parameter(name).detach().clone()
            with patch_removed(loaded):
                pytest.fail("the body must not run on unknown weights")

    with pytest.raises(StethoscopeError, match="weights"):
        lift_unknown_weights()
    assert pointers(loaded) == base
